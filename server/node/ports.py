"""TCP ports of a node's own listeners."""

from __future__ import annotations

import socket
import time

from server.base.ports import PortTakenError, free_port
from server.node.files import DataDir


def kept_port(data: DataDir, name: str, host: str = "127.0.0.1", seconds: float = 0.0) -> int:
    """The port that was chosen once and is kept in the file `name`_port; a new one when somebody
    else has it. seconds: to wait for a process that may still be letting go of it."""
    kept = {path.name: path.read_text().strip() for path in data.run.glob("*_port")}
    known = kept.pop(f"{name}_port", "")
    port = int(known) if known.isdecimal() else 0
    if not port or not becomes_free(host, port, seconds):
        while str(port := free_port()) in kept.values():  # the others may not listen yet
            pass
        data.write(data.run / f"{name}_port", f"{port}\n")
    return port


def check_port(host: str, port: int) -> None:
    """PortTakenError when it stays taken: a node that was killed may be letting go of it."""
    if not becomes_free(host, port, 5.0):
        raise PortTakenError(f"{host}:{port} is in use; choose another port")


def becomes_free(host: str, port: int, seconds: float) -> bool:
    """Whether nobody listens there, at once or within so many seconds."""
    deadline = time.monotonic() + seconds
    while not _is_free(host, port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
