"""Large files, read here and handed to the HTTP server as it gets rid of them.

Left to itself the server reads a file in pieces of 128 KB, each of which is copied once more and
passes to another thread and back, and a quick client waits for them. Here a thread of ours reads
larger ones and stays a little ahead. With several quick clients the server's threads are never
without work, so what comes while one is being served is left to the server.

The server queues what it is given without limit and does not tell how far it is; the kernel does:
what a connection has been given is what its peer has acknowledged and what still waits.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from server.base.clients import connection_of
from server.base.http import Headers
from server.gateway.traffic import Traffic

log = logging.getLogger("ichibase.gateway")
LARGE = 4 << 20  # bytes from which a file goes this way
PIECE = 512 << 10  # bytes read at once
AHEAD = 1 << 20  # bytes handed over and not yet sent, up to which another piece is handed over
PLACES = 8  # files of a worker that may go this way at once, however slow their clients
READ_AHEAD = 2 << 20  # bytes that the disk is told of before they are read
SOON, LINGER, LATE = 0.0001, 0.002, 0.05  # seconds: least pause, longest in the pump, longest
SLOWED = 256  # files of projects whose bytes are counted, at once
SLOWED_PIECE = 128 << 10  # bytes of one of them that are read at once
WATCH = 1.0  # seconds between looks at what the server sends by itself
IDLE = 1.0  # seconds between looks at a client that takes nothing
ESTABLISHED = 1  # of TCP_INFO's state
ACKED = 120  # where TCP_INFO has the acknowledged bytes


class Gone(Exception):
    """The client has left."""


async def send(
    protocol: Any, status: int, headers: Headers, file: tuple[str, int, int], client: str,
    unsent: Callable[[int], None] | None = None, traffic: Traffic | None = None,
) -> None:  # fmt: skip
    """Answers with a piece of a file (path, offset, length); the headers tell its length. client:
    the peer's address as the server names it. unsent: is told how much a client that left did not
    get. traffic: of a project whose bytes are counted. Returns when the answer has begun; what goes
    wrong later breaks the connection off."""
    path, offset, length = file
    sending = _Sending(path, offset, length, client, unsent)
    if traffic is not None:
        await _send_slowed(protocol, status, headers, sending, traffic)
        return
    ours = not _pump.busy and _pump.places > 0
    _pump.awaited += ours
    try:
        if ours and await sending.begin():
            sending.transport = protocol.response_stream(status, headers)
            work = sending.run()
        else:
            flow = None
            if unsent is not None:
                loop = asyncio.get_running_loop()
                flow = await loop.run_in_executor(None, Flow.of, client)
            protocol.response_file_range(status, headers, path, offset, offset + length)
            if flow is None or unsent is None:
                return
            work = _watch(flow, length, unsent)
        task = asyncio.get_running_loop().create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    finally:
        _pump.awaited -= ours


async def _send_slowed(
    protocol: Any, status: int, headers: Headers, sending: _Sending, traffic: Traffic
) -> None:
    """As fast as the project may. Beyond SLOWED at once, the bytes count before the first is sent,
    and the server sends them by itself."""
    global slowed
    own = slowed < SLOWED
    slowed += own
    try:
        if own and await sending.begin():
            sending.transport = protocol.response_stream(status, headers)
            work = sending.run_slowed(traffic)
            own = False  # the task counts on
        else:
            await traffic.wait(sending.length)
            end = sending.offset + sending.length
            protocol.response_file_range(status, headers, sending.path, sending.offset, end)
            if sending.unsent is None:
                return
            loop = asyncio.get_running_loop()
            flow = await loop.run_in_executor(None, Flow.of, sending.client)
            if flow is None:
                return
            work = _watch(flow, sending.length, sending.unsent)
    finally:
        slowed -= own
    task = asyncio.get_running_loop().create_task(work)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _watch(flow: Flow, length: int, unsent: Callable[[int], None]) -> None:
    """Sees how much is sent of what the server sends by itself."""
    try:
        while (sent := flow.sent()) < length and flow.open:
            await asyncio.sleep(WATCH)
        if sent < length:
            unsent(length - sent)
    finally:
        flow.close()


async def stop() -> None:
    """Breaks off what is still being sent."""
    for task in _tasks:
        task.cancel()
    if _tasks:
        await asyncio.wait(_tasks)


slowed = 0
_tasks: set[asyncio.Task[None]] = set()
_piece = bytearray(PIECE)  # filled again and again: the server copies what it is given


class _Sending:
    """One answer. handed: bytes given to the server."""

    def __init__(
        self, path: str, offset: int, length: int, client: str,
        unsent: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        self.path = path
        self.offset = offset
        self.length = length
        self.client = client
        self.fd = -1
        self.flow: Flow | None = None
        self.transport: Any = None
        self.unsent = unsent
        self.handed = 0
        self.over = False  # given up
        self._told = 0  # to where the disk has been told
        self._seen = 0  # what had been sent at the last look
        self._looked = 0.0
        self._rate = 1e9  # bytes a second, between the last two looks that differed
        self._idle = 0.0  # seconds of the last pause in which nothing was sent

    async def begin(self) -> bool:
        """Whether it can go this way."""
        working = asyncio.get_running_loop().run_in_executor(None, self._begin)
        try:
            await asyncio.shield(working)
        except BaseException:
            working.add_done_callback(self._close)
            raise
        if self.flow is None:
            self._close()
        return self.flow is not None

    async def run(self) -> None:
        handing: asyncio.Future[float] | None = None
        self._looked = time.monotonic()
        _pump.places -= 1
        try:
            while self.handed < self.length:
                handing = _pump.join(self)
                pause = await asyncio.shield(handing)
                while pause:
                    await asyncio.sleep(pause)
                    pause = self._rest()
        except Gone:
            pass
        except OSError as error:
            log.warning("a file could not be read to its end: %s", error)
        finally:
            _pump.places += 1
            if self.handed < self.length and self.unsent is not None:
                self.unsent(self.length - self._seen)
            if handing is None or handing.done():
                self._close()
            else:  # not under the thread that is using it
                self.over = True
                handing.add_done_callback(self._close)

    async def run_slowed(self, traffic: Traffic) -> None:
        """As run, apart from the pump."""
        global slowed
        loop = asyncio.get_running_loop()
        self._looked = time.monotonic()
        handing: asyncio.Future[int] | None = None
        try:
            while self.handed < self.length:
                if (ahead := self._ahead()) > SLOWED_PIECE:
                    await asyncio.sleep(max(LINGER, self._until(ahead - SLOWED_PIECE)))
                    continue
                size = min(SLOWED_PIECE, self.length - self.handed)
                await traffic.wait(size)
                handing = loop.run_in_executor(None, self._hand, size)
                await asyncio.shield(handing)
        except Gone:
            pass
        except OSError as error:
            log.warning("a file could not be read to its end: %s", error)
        finally:
            slowed -= 1
            if self.handed < self.length and self.unsent is not None:
                self.unsent(self.length - self._seen)
            if handing is None or handing.done():
                self._close()
            else:  # not under the thread that is using it
                handing.add_done_callback(self._close)

    def _close(self, _: object = None) -> None:
        self.transport = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.flow is not None:
            self.flow.close()

    def _begin(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # the server answers as to any other
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.flow = Flow.of(self.client)

    def step(self) -> float:
        """Reads and hands over as much as may be ahead. Seconds until it is worth another look; 0
        at the end. In the pump's thread."""
        ahead = self._ahead()
        while ahead <= AHEAD and self.handed < self.length:
            ahead += self._hand(min(PIECE, self.length - self.handed))
        return self._until(ahead - AHEAD) if self.handed < self.length else 0.0

    def _rest(self) -> float:
        """Seconds until it is worth another look; 0 when more can be handed over."""
        ahead = self._ahead()
        return 0.0 if ahead <= AHEAD else self._until(ahead - AHEAD)

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
            if ahead < PIECE // 2:  # it may have waited for more
                rate = max(rate, 2 * self._rate)
            self._rate = rate
            self._seen, self._looked, self._idle = sent, now, 0.0
        if not self.flow.open:
            raise Gone
        return ahead

    def _until(self, size: int) -> float:
        """Seconds in which the client may take that many bytes."""
        if time.monotonic() - self._looked < LATE:
            return min(max(size / self._rate, SOON), LATE)
        self._idle = min(max(self._idle * 2, LATE), IDLE)
        if self._idle == IDLE:
            self._give(b"")  # which the server drops, unless it has closed the connection
        return self._idle


class _Pump:
    """The one thread that reads and hands over, in turn for all whose clients are quick. The memory
    that the server takes for a piece belongs to the thread that hands it over: with several of
    them, much of it would lie idle."""

    def __init__(self) -> None:
        self.awaited = 0  # that are about to join
        self.places = PLACES
        self._thread: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # of the two below
        self._joined: dict[_Sending, asyncio.Future[float]] = {}
        self._running = False

    @property
    def busy(self) -> bool:
        return self.awaited > 0 or self._running

    def join(self, sending: _Sending) -> asyncio.Future[float]:
        """Hands over until the file's end (0) or a pause of so many seconds."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            self._joined[sending] = future
            start, self._running = not self._running, True
        if start:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-file")
            self._thread.submit(self._run, loop)
        return future

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._lock:
                turns = list(self._joined.items())
                self._running = bool(turns)
            if not turns:
                return
            soonest = LINGER
            for sending, future in turns:
                pause, failed = 0.0, None
                try:
                    pause = 0.0 if sending.over else sending.step()
                except Exception as error:
                    failed = error
                if 0.0 < pause <= LINGER:
                    soonest = min(soonest, pause)
                    continue
                with self._lock:
                    del self._joined[sending]
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(_settle, future, pause, failed)
            if self._joined:
                time.sleep(soonest)


def _settle(future: asyncio.Future[float], pause: float, failed: Exception | None) -> None:
    if future.done():
        return
    if failed is None:
        future.set_result(pause)
    else:
        future.set_exception(failed)


_pump = _Pump()


class Flow:
    """How far one connection of this process is. open: whether it was at the last look."""

    def __init__(self, connection: socket.socket) -> None:
        """It is closed with the flow."""
        self._socket = connection
        self._waiting = array.array("i", [0])
        self._start = self._given()

    @classmethod
    def of(cls, client: str) -> Flow | None:
        """The connection from an address ("10.0.0.1:4711"); None when it cannot be told."""
        connection = connection_of(client) if works() else None
        if connection is None:
            return None
        try:
            return cls(connection)
        except OSError:
            connection.close()
            return None

    def sent(self) -> int:
        """Bytes that the kernel has been given since."""
        return self._given() - self._start

    def _given(self) -> int:
        told = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, self._waiting)
        self.open = told[0] == ESTABLISHED
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
            contextlib.closing(Flow(other.dup())) as flow,
        ):
            other.sendall(bytes(1000))
            other.sendall(bytes(24))
            waiting = flow.sent()
            received = one.recv(1024, socket.MSG_WAITALL)
            return waiting == flow.sent() == len(received)
    except (OSError, AttributeError, struct.error):
        return False
