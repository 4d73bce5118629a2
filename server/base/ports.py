"""Loopback ports that nobody uses."""

from __future__ import annotations

import random
import socket


class PortTakenError(RuntimeError):
    """Somebody else listens where we should."""


def free_port(low: int = 20000, high: int = 32000) -> int:
    """A free loopback port below the ephemeral range, where old client sockets would collide."""
    for _ in range(200):
        port = random.randrange(low, high)  # noqa: S311
        if is_unused(port):
            return port
    raise PortTakenError(f"no free port between {low} and {high}")


def is_unused(port: int) -> bool:
    """Whether a loopback port is neither listened on nor left over from connections of late."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
