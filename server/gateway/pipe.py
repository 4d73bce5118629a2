"""Streams of known length, sent through a pipe: the HTTP server reads it only as fast as the
client takes it, so what waits in memory is bounded by the pipe, however long the stream is."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import termios
from collections.abc import AsyncIterator
from typing import Any

from server.base.http import Headers

SIZE = 256 << 10  # bytes of the pipe
LATEST = 60.0  # seconds after the last byte at which a pipe that nobody has opened is given up
TICK = 0.05


class _Reader:
    """This process's reading end. The server opens the pipe by the path of it, a moment after it
    was told; until then it must stay, and after that it must go: while it is there, nothing tells
    that the server's own end has been closed because the client left."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def waiting(self) -> int:
        """Bytes that nobody has read yet."""
        found = array.array("i", [0])
        fcntl.ioctl(self.fd, termios.FIONREAD, found)
        return found[0]

    async def drained(self) -> None:
        """Closes once somebody has read what was written, or nobody will."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LATEST
        try:
            while self.waiting() and loop.time() < until:
                await asyncio.sleep(TICK)
        finally:
            self.close()


_draining: set[asyncio.Task[None]] = set()


async def send(protocol: Any, status: int, headers: Headers, chunks: AsyncIterator[bytes]) -> None:
    """Answers with the chunks; the headers tell their length. A stream that fails or ends early
    breaks the connection off, as the client must notice. Ends when all is handed over."""
    end, writer = os.pipe2(os.O_CLOEXEC)
    reader = _Reader(end)
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(OSError):  # more than this user may have: a smaller pipe will do
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
        capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        protocol.response_file(status, headers, reader.path)
        loop = asyncio.get_running_loop()
        written = 0
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                try:
                    done = os.write(writer, view)
                except BlockingIOError:
                    await _writable(loop, writer)
                    continue
                view = view[done:]
                written += done
                if written > capacity:  # somebody reads, so the server has opened it
                    reader.close()
    except BrokenPipeError:
        pass  # the client has left
    finally:
        os.close(writer)
        if reader.fd >= 0:
            task = asyncio.get_running_loop().create_task(reader.drained())
            _draining.add(task)
            task.add_done_callback(_draining.discard)


async def _writable(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    waiter: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_writer(fd, ready)
    try:
        await waiter
    finally:
        loop.remove_writer(fd)
