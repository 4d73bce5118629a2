"""A socket of our own to a connection of the HTTP server, for what that server cannot write."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket

from ichicore.http import lenient


def connection_of(client: str) -> socket.socket | None:
    """The connection from `client`, address:port, beside the HTTP server's own hold on it; None
    when the client has left or the server cannot be asked. Closing it does not end the connection,
    shutdown() does."""
    host, _, port = client.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        descriptors = lenient.accepted(int(port))
    except (ValueError, OverflowError):
        return None
    for descriptor in descriptors:
        # The descriptor may be somebody else's by now: only what is held of it is looked at.
        held = _held(descriptor)
        if held is None:
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            other = held.getpeername()
            if ipaddress.ip_address(other[0]) == address and other[1] == int(port):
                return held
        held.close()
    return None


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
