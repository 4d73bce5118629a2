"""How much of unfinished messages a worker holds for the clients of its sockets.

The HTTP server puts a message's fragments together by itself, up to 64 MiB for each socket, and
tells of a message only when it is whole. But the kernel counts what each connection has received:
once the worker's memory grows, those who have sent far more than was handed on are cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

CHECK_SECONDS = 0.5
GROWTH = 48 << 20  # bytes of the worker's memory, after which its connections are looked at
MOST = 256 << 10  # bytes that a client may have sent beyond its whole messages
HEAD = 14  # bytes of a frame's header, at most
RECEIVED = struct.Struct("=Q")
RECEIVED_AT = 128  # of tcpi_bytes_received in struct tcp_info
TCP_INFO_SIZE = 136
PAGE = os.sysconf("SC_PAGE_SIZE")


class Taken:
    """One socket. size: bytes of its messages that were handed on."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0

    def add(self, size: int) -> None:
        """A whole message of so many bytes."""
        self.size += size + HEAD


class Intake:
    """All sockets of a worker."""

    def __init__(self) -> None:
        self.sockets: dict[str, Taken] = {}  # by the client's address with its port
        self.cut = 0  # connections
        self._least = 0
        self._watching: asyncio.Task[None] | None = None

    def enter(self, client: str) -> Taken:
        """A socket was opened. client: address and port as the HTTP server writes them."""
        made = self.sockets[_plain(client)] = Taken()
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch(), name="intake")
        return made

    def leave(self, client: str, taken: Taken) -> None:
        """It was closed."""
        if self.sockets.get(_plain(client)) is taken:
            del self.sockets[_plain(client)]

    async def _watch(self) -> None:
        self._least = _memory()
        while self.sockets:
            await asyncio.sleep(CHECK_SECONDS)
            memory = _memory()
            if memory > self._least + GROWTH:
                self.cut += await asyncio.to_thread(self._look)
                memory = _memory()
                self._least = memory
            self._least = min(self._least, memory)
        self._watching = None

    def _look(self) -> int:
        """Cuts off who holds too much; gives how many those were."""
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += self._cut(int(name))
        return found

    def _cut(self, number: int) -> bool:
        with socket.socket(fileno=os.dup(number)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            host, port = connection.getpeername()[:2]
            taken = self.sockets.get(_plain(f"{host}:{port}"))
            if taken is None:
                return False
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
            if len(info) < TCP_INFO_SIZE:
                return False  # a kernel that does not count
            (received,) = RECEIVED.unpack_from(info, RECEIVED_AT)
            if received - taken.size <= MOST:
                return False
            connection.shutdown(socket.SHUT_RDWR)
            return True


def _memory() -> int:
    """Bytes that are resident."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def _plain(address: str) -> str:
    """The same text for an address however it is written."""
    return address.replace("[", "").replace("]", "").removeprefix("::ffff:")
