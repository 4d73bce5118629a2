"""Unix sockets in folders whose path may be longer than the 107 bytes that an address takes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A short name of the path, good while the context lasts."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def lasting_address(path: Path) -> str:
    """A short name of the path, good until this process ends."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}"


def listen(path: Path, backlog: int = 4096, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A unix socket that only this account may connect to; takes the place of an old one."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        with _address(path) as address:
            made.bind(address)
        path.chmod(0o600)
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    return made


def connect(path: Path) -> socket.socket:
    """A connected, non-blocking socket. OSError when nobody listens or too many wait there."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        with _address(path) as address:
            made.connect(address)
    except OSError:
        made.close()
        raise
    return made
