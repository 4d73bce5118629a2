"""Large files, read here and handed to the HTTP server as it gets rid of them.

Left to itself the server reads a file in pieces of 128 KB, each of which is copied once more and
passes to another thread and back. Here a thread of ours reads larger ones and stays a little ahead.
The server queues what it is given without limit and does not tell how far it is; the kernel does:
what a connection has been given is what its peer has acknowledged and what still waits.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import fcntl
import ipaddress
import logging
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from server.base.http import Headers

log = logging.getLogger("ichibase.gateway")
LARGE = 4 << 20  # bytes from which a file goes this way
PIECE = 256 << 10  # bytes read at once
AHEAD = 1 << 20  # bytes that may be handed over and not yet sent, to a client that takes them
LEAST_AHEAD = 192 << 10  # the same at first, and when there are many
ALL_AHEAD = 12 << 20  # of all large files of a worker together
BUFFERED = 8 << 20  # bytes that the kernels of both sides may take of a client that takes none
READ_AHEAD = 2 << 20  # bytes that the disk is told of before they are read
SOON, LINGER, LATE = 0.0001, 0.002, 0.05  # seconds: least pause, longest in the thread, longest
TURN = 0.001  # seconds of the least pause when others wait for the thread
IDLE = 1.0  # seconds between looks at a client that takes nothing
MOST_OPEN = 4096  # descriptors among which a connection is looked for
ESTABLISHED = 1  # of TCP_INFO's state
ACKED = 120  # where TCP_INFO has the acknowledged bytes


class Gone(Exception):
    """The client has left."""


async def send(
    protocol: Any, status: int, headers: Headers, file: tuple[str, int, int], client: str,
    unsent: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Answers with a piece of a file (path, offset, length); the headers tell its length. client:
    the peer's address as the server names it. unsent: is told how much a client that left did not
    get. Returns when the answer has begun; what goes wrong later breaks the connection off."""
    path, offset, length = file
    sending = _Sending(path, offset, length, client)
    sending.unsent = unsent
    if not await sending.begin():
        protocol.response_file_range(status, headers, path, offset, offset + length)
        return
    sending.transport = protocol.response_stream(status, headers)
    task = asyncio.get_running_loop().create_task(sending.run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def stop() -> None:
    """Breaks off what is still being sent."""
    for task in _tasks:
        task.cancel()
    if _tasks:
        await asyncio.wait(_tasks)


_tasks: set[asyncio.Task[None]] = set()
_piece = bytearray(PIECE)  # filled again and again: the server copies what it is given


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="large-file")


class _Sending:
    """One answer. handed: bytes given to the server."""

    def __init__(self, path: str, offset: int, length: int, client: str) -> None:
        self.path = path
        self.offset = offset
        self.length = length
        self.client = client
        self.fd = -1
        self.flow: Flow | None = None
        self.transport: Any = None
        self.unsent: Callable[[int], None] | None = None
        self.handed = 0
        self._told = 0  # to where the disk has been told
        self._seen = 0  # what had been sent at the last look
        self._looked = 0.0
        self._rate = 1e9  # bytes a second, between the last two looks that differed
        self._most = LEAST_AHEAD  # bytes that may be ahead
        self._idle = 0.0  # seconds of the last pause in which nothing was sent

    async def begin(self) -> bool:
        """Whether it can go this way."""
        working = asyncio.get_running_loop().run_in_executor(_thread(), self._begin)
        try:
            await asyncio.shield(working)
        except BaseException:
            working.add_done_callback(self._close)
            raise
        if self.flow is None:
            self._close()
        return self.flow is not None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        working: asyncio.Future[float] | None = None
        self._looked = time.monotonic()
        try:
            while self.handed < self.length:
                working = loop.run_in_executor(_thread(), self._burst)
                pause = await asyncio.shield(working)
                while pause:
                    await asyncio.sleep(pause)
                    pause = self._rest()
        except Gone:
            pass
        except OSError as error:
            log.warning("a file could not be read to its end: %s", error)
        finally:
            self.transport = None
            if self.handed < self.length and self.unsent is not None:
                self.unsent(self.length - self._seen)
            if working is None or working.done():
                self._close()
            else:  # not under the thread that is using it
                working.add_done_callback(self._close)

    def _close(self, _: object = None) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.flow is not None:
            self.flow.close()

    def _begin(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # the server answers as to any other
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.flow = Flow.of(self.client)

    def _burst(self) -> float:
        """Reads and hands over as much as may be ahead, again and again while the client is quick.
        Seconds until it is worth another look; 0 at the end. In the thread."""
        while True:
            ahead = self._ahead()
            limit = self._limit()
            size = min(PIECE, limit // 3)
            while ahead + size <= limit and self.handed < self.length:
                ahead += self._hand(min(size, self.length - self.handed))
            if self.handed == self.length:
                return 0.0
            pause = self._until(ahead - limit // 2)
            if len(_tasks) > 1:
                return max(pause, TURN)
            if pause > LINGER:
                return pause
            time.sleep(pause)

    def _rest(self) -> float:
        """Seconds until it is worth another look; 0 when more can be handed over."""
        ahead, most = self._ahead(), self._limit() * 2 // 3
        if ahead <= most:
            return 0.0
        return self._until(ahead - most)

    def _hand(self, size: int) -> int:
        piece: bytes | bytearray
        start = self.offset + self.handed
        if start + size > self._told:
            self._told = start + READ_AHEAD
            os.posix_fadvise(self.fd, start, READ_AHEAD * 2, os.POSIX_FADV_WILLNEED)
        if size == PIECE:
            piece = _piece
            got = os.preadv(self.fd, [piece], start)
            if got < size:
                piece = bytes(memoryview(piece)[:got])
        else:
            piece = os.pread(self.fd, size, start)
            got = len(piece)
        if not got:
            raise OSError(f"{self.path} is shorter than it was")
        self._give(piece)
        self.handed += got
        return got

    def _give(self, piece: bytes | bytearray) -> None:
        try:
            next(self.transport.send_bytes(piece), None)
        except RuntimeError:
            raise Gone from None

    def _ahead(self) -> int:
        """Bytes handed over that the server still has."""
        assert self.flow is not None
        now, sent = time.monotonic(), self.flow.sent()
        ahead = self.handed - sent
        if sent > self._seen:
            rate = (sent - self._seen) / max(now - self._looked, 1e-6)
            if ahead < self._most // 4:  # it may have waited for more
                rate = max(rate, 2 * self._rate)
                if sent > BUFFERED:
                    self._most = min(2 * self._most, AHEAD)
            self._rate = rate
            self._seen, self._looked, self._idle = sent, now, 0.0
        return ahead

    def _limit(self) -> int:
        return max(LEAST_AHEAD, min(self._most, ALL_AHEAD // len(_tasks)))

    def _until(self, size: int) -> float:
        """Seconds in which the client may take that many bytes."""
        if time.monotonic() - self._looked < LATE:
            return min(max(size / self._rate, SOON), LATE)
        self._idle = min(max(self._idle * 2, LATE), IDLE)
        if self._idle == IDLE:
            self._give(b"")  # which the server drops, unless it has closed the connection
        return self._idle


class Flow:
    """How far one connection of this process is."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._waiting = array.array("i", [0])
        self._start = self._given()

    @classmethod
    def of(cls, client: str) -> Flow | None:
        """The connection from an address ("10.0.0.1:4711"); None when it cannot be told."""
        wanted = _address(client)
        if wanted is None or not works():
            return None
        descriptor = _find(wanted)
        if descriptor < 0:
            return None
        try:
            return cls(descriptor)
        except (OSError, Gone):
            return None

    def sent(self) -> int:
        """Bytes that the kernel has been given since. Gone when there is no connection."""
        return self._given() - self._start

    def _given(self) -> int:
        try:
            told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, self._waiting)
        except OSError:
            raise Gone from None
        if told[0] != ESTABLISHED:
            raise Gone
        acknowledged: int = struct.unpack_from("=Q", told, ACKED)[0]
        return acknowledged + self._waiting[0]

    def close(self) -> None:
        self._socket.close()


@cache
def works() -> bool:
    """Whether this system's kernel tells how far a connection is."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as one,
            server.accept()[0] as other,
            contextlib.closing(Flow(other.fileno())) as flow,
        ):
            other.sendall(bytes(1000))
            other.sendall(bytes(24))
            waiting = flow.sent()
            received = one.recv(1024, socket.MSG_WAITALL)
            return waiting == flow.sent() == len(received)
    except (OSError, AttributeError, struct.error, Gone):
        return False


def _address(client: str) -> tuple[int, bytes, bytes] | None:
    """Family, port and address as the kernel has them."""
    host, _, port = client.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        return family, struct.pack("!H", int(port)), address.packed
    except (ValueError, struct.error):
        return None


def _find(wanted: tuple[int, bytes, bytes]) -> int:
    """The descriptor of the connection from there; -1 when there is none."""
    family, port, address = wanted
    at = 4 if family == socket.AF_INET else 8
    names = os.listdir("/proc/self/fd")
    if len(names) > MOST_OPEN:
        return -1
    room, size = ctypes.create_string_buffer(28), ctypes.c_uint()
    for name in names:
        size.value = len(room)
        if _getpeername(int(name), room, ctypes.byref(size)) == 0:
            raw = room.raw
            if raw[2:4] == port and raw[at : at + len(address)] == address:
                return int(name)
    return -1


_getpeername = ctypes.CDLL(None).getpeername
