"""Streams of known length, sent through a pipe: the HTTP server reads it only as fast as the
client takes it, so what waits in memory is bounded by the pipe, however long the stream is."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from typing import Any

from server.base.http import Headers

SIZE = 256 << 10  # bytes of the pipe
# The server opens the pipe by its path a moment after it was told of it. As long as this process
# has a reading end too, nothing tells that the server's is gone.
OPEN_GRACE = 10.0  # seconds


async def send(protocol: Any, status: int, headers: Headers, chunks: AsyncIterator[bytes]) -> None:
    """Answers with the chunks; the headers tell their length. A stream that fails or ends early
    breaks the connection off, as the client must notice. Ends when all is handed over."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)
    with contextlib.suppress(OSError):  # more than this user may have: a smaller pipe will do
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
    loop = asyncio.get_running_loop()
    try:
        protocol.response_file(status, headers, f"/proc/self/fd/{reader}")
    finally:
        loop.call_later(OPEN_GRACE, os.close, reader)
    try:
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(writer, view) :]
                except BlockingIOError:
                    await _writable(loop, writer)
    except BrokenPipeError:
        pass  # the client has left
    finally:
        os.close(writer)


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
