"""A socket of our own to a connection of the HTTP server, for what that server cannot write."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

from ichicore.http import lenient

MOST_OPEN = 4096  # descriptors among which a connection is looked for


def connection_of(client: str) -> socket.socket | None:
    """The connection from `client`, address:port, beside the HTTP server's own hold on it; None
    when the client has left or it cannot be told. Closing it does not end the connection,
    shutdown() does."""
    host, _, port = client.rpartition(":")
    try:
        address = _address(host.strip("[]"))
        descriptors = lenient.accepted(int(port)) or _all()
    except (ValueError, OverflowError):
        return None
    for descriptor in descriptors:
        # The descriptor may be somebody else's by now: only what is held of it is looked at.
        held = _held(descriptor)
        if held is None:
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            other = held.getpeername()
            if _address(other[0]) == address and other[1] == int(port):
                return held
        held.close()
    return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _all() -> list[int]:
    """For an HTTP server that was not asked to tell what it accepts. The list's own is among them,
    and closed by now."""
    names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return [int(name) for name in names] if len(names) <= MOST_OPEN else []


def _held(descriptor: int) -> socket.socket | None:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None


def send_now(held: socket.socket, data: bytes) -> bool:
    """Whether all of it could be written at once."""
    with contextlib.suppress(OSError):
        return held.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    return False
