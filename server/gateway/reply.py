"""The one place that hands answers to the HTTP server, which aborts on what it does not expect."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Iterable
from typing import Any

from ichicore.errors import ApiError
from server.base.cors import VARY
from server.base.http import Headers, Response, error_response
from server.gateway import largefile, pipe
from server.gateway.request import EdgeRequest
from server.gateway.traffic import slowed

USUAL = frozenset({
    "content-type", "content-range", "content-location", "location", "preference-applied",
    "proxy-status", "retry-after", "cache-control", "etag",
})  # fmt: skip
NO_BODY = frozenset({204, 205, 304})
# The server queues what it is given without limit, so a long stream goes through a file instead.
MEMORY_LIMIT = 1 << 20
LIVE_BURST = 4 << 20  # bytes a live stream may be ahead of a reader of LIVE_RATE
LIVE_RATE = 2 << 20  # bytes a second
OPEN_GRACE = 10.0  # seconds
PACED = 200  # answers at once that may hold a thread of the server, of its 512
paced = 0


def fault() -> Response:
    """The answer to what must not happen; the log says more."""
    return error_response(ApiError(500, "internal", "The server could not serve this request."))


def clean(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers that may be sent: token names, values without control characters. One that may
    not is left out: its value came from data, and the rest of the answer is still good."""
    return [
        (name, value)
        for name, value in headers
        if (name in USUAL or _is_name(name)) and (value.isprintable() or _is_plain(value))
    ]


def _is_name(name: str) -> bool:
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()


def _is_plain(value: str) -> bool:
    return not any(
        (c < " " and c != "\t") or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value
    )


def _sealed(response: Response, request: EdgeRequest) -> Headers:
    """The headers that leave: the service's, the request's id, what the origin may read."""
    headers = clean(response.headers)
    cors = request.cors
    route = request.route
    if route is not None and route.own_cors is not None:
        named = [value for name, value in headers if name == "access-control-allow-origin"]
        if route.own_cors and named:
            cors = () if named == ["*"] else (VARY,)
        else:
            headers = [pair for pair in headers if not pair[0].startswith("access-control-")]
    if request.id:
        headers.append(("x-request-id", request.id))
    headers.extend(cors)
    return headers


def send(protocol: Any, response: Response, request: EdgeRequest) -> int:
    """Sends an answer that is whole; gives the status sent. Others: send_file, send_stream."""
    status = response.status
    if not 200 <= status <= 599:
        response = fault()
        status = 500
    headers = _sealed(response, request)
    method = request.method
    if not hasattr(protocol, "response_bytes"):  # a socket that is not to be opened
        protocol.close(status)
    elif status in NO_BODY:
        protocol.response_empty(status, headers)
    elif method == "HEAD":
        if response.body and not any(name == "content-length" for name, _ in headers):
            headers.append(("content-length", str(len(response.body))))
        protocol.response_empty(status, headers)
    else:
        protocol.response_bytes(status, headers, response.body)
    return status


async def send_file(protocol: Any, response: Response, request: EdgeRequest) -> int:
    """Sends an answer that is a piece of a file; gives the status sent."""
    assert response.file is not None
    path, offset, length = response.file
    status = response.status if 200 <= response.status <= 599 else 500
    headers = _sealed(response, request)
    if not any(name == "content-length" for name, _ in headers):
        headers.append(("content-length", str(length)))
    if request.method == "HEAD" or length == 0 or status in NO_BODY:
        protocol.response_empty(status, headers)
    elif length >= largefile.LARGE:
        await largefile.send(
            protocol, status, headers, response.file, request.client, response.unsent,
            request.traffic,
        )  # fmt: skip
    else:
        if request.traffic is not None:
            await request.traffic.wait(length)
        protocol.response_file_range(status, headers, path, offset, offset + length)
    return status


async def send_stream(protocol: Any, response: Response, request: EdgeRequest) -> int:
    """Sends an answer that is an iterable of chunks; always closes it. One with `size` has told
    its length in the headers."""
    stream: Any = response.stream
    if hasattr(stream, "path"):
        return send_spooled(protocol, response, request)
    status = response.status if 200 <= response.status <= 599 else 500
    headers = _sealed(response, request)
    chunks = aiter(stream)
    if request.traffic is not None:
        chunks = slowed(chunks, request.traffic)
    try:
        if request.method == "HEAD" or status in NO_BODY:
            protocol.response_empty(status, headers)
        elif hasattr(stream, "over"):
            await send_paced(protocol, status, headers, stream, chunks)
        elif any(n == "content-type" and v.startswith("text/event-stream") for n, v in headers):
            await _send_live(protocol, status, headers, chunks)
        elif hasattr(stream, "size"):
            await pipe.send(protocol, status, headers, chunks)
        else:
            await _send_bulk(protocol, status, headers, chunks)
    finally:
        if hasattr(stream, "aclose"):
            await stream.aclose()
    return status


def send_spooled(protocol: Any, response: Response, request: EdgeRequest) -> int:
    """Sends a stream that has `path` and `size`: it is in a file already."""
    spool: Any = response.stream
    status = response.status if 200 <= response.status <= 599 else 500
    headers = _sealed(response, request)
    if request.traffic is not None:
        request.traffic.tally.charge(spool.size)
    if request.method == "HEAD" or status in NO_BODY:
        protocol.response_empty(status, headers)
        spool.close()
    else:
        _send_open_file(protocol, status, headers, spool.path, spool.size)
        asyncio.get_running_loop().call_later(OPEN_GRACE, spool.close)
    return status


async def _send_live(
    protocol: Any, status: int, headers: Headers, chunks: AsyncIterator[bytes]
) -> None:
    """Each chunk at once. The server cannot tell how far the client has read, so the stream is
    held to a rate that bounds what a reader of that speed leaves queued."""
    loop = asyncio.get_running_loop()
    transport = protocol.response_stream(status, headers)
    credit, last = float(LIVE_BURST), loop.time()
    async for chunk in chunks:
        now = loop.time()
        credit = min(LIVE_BURST, credit + (now - last) * LIVE_RATE) - len(chunk)
        last = now
        await transport.send_bytes(bytes(chunk))
        if credit < 0:
            await asyncio.sleep(-credit / LIVE_RATE)


async def send_paced(
    protocol: Any, status: int, headers: Headers, stream: Any, chunks: AsyncIterator[bytes]
) -> None:
    """Each of the stream's chunks as it comes, and no faster than the client takes it: through a
    pipe that the server reads as if it were a file. stream.over: a future that is done when the
    answer is to end now."""
    global paced
    first = await anext(chunks, b"")
    await asyncio.sleep(0)
    if stream.done:  # most are whole by now
        rest = [bytes(chunk) async for chunk in chunks]
        protocol.response_bytes(status, headers, b"".join([first, *rest]))
        return
    if paced >= PACED:
        await _send_live(protocol, status, headers, _chained(first, chunks))
        return
    pipe = _Pipe()
    paced += 1
    try:
        protocol.response_file(status, headers, f"/proc/self/fd/{pipe.reader}")
        await pipe.write(first, stream.over)
        async for chunk in chunks:
            if not await pipe.write(chunk, stream.over):
                break
    except BrokenPipeError:
        pass  # the client left
    finally:
        paced -= 1
        pipe.close()


class _Pipe:
    """The server opens the reading end by its path a moment later, and then has one of its own;
    ours is closed as soon as that is seen, so that writing fails when the server has closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.writer, False)
        self.written = False

    async def write(self, data: bytes, over: asyncio.Future[None]) -> bool:
        """False when the answer is over before all is written. BrokenPipeError when nobody reads
        any more."""
        view = memoryview(data)
        while view:
            if self.written and self.reader >= 0 and not self._waiting():
                self._opened()
            try:
                view = view[os.write(self.writer, view) :]
                self.written = True
            except BlockingIOError:
                writable = self.loop.create_future()
                self.loop.add_writer(self.writer, _done, writable)
                try:
                    await asyncio.wait((writable, over), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self.loop.remove_writer(self.writer)
                if over.done():
                    return False
                self._opened()
        return not over.done()

    def _waiting(self) -> int:
        """Bytes that nobody has read yet."""
        found = bytearray(4)
        fcntl.ioctl(self.reader, termios.FIONREAD, found)
        return int.from_bytes(found, sys.byteorder)

    def _opened(self) -> None:
        reader, self.reader = self.reader, -1
        if reader >= 0:
            os.close(reader)

    def close(self) -> None:
        os.close(self.writer)
        if self.reader >= 0:
            self.loop.call_later(OPEN_GRACE, self._opened)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _chained(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _send_bulk(
    protocol: Any, status: int, headers: Headers, chunks: AsyncIterator[bytes]
) -> None:
    """Small ones from memory; larger ones through an unnamed file, which the server reads only as
    fast as the client takes it."""
    parts: list[bytes] = []
    size = total = 0
    async for chunk in chunks:
        parts.append(bytes(chunk))
        size += len(chunk)
        if size > MEMORY_LIMIT:
            break
    else:
        protocol.response_bytes(status, headers, b"".join(parts))
        return
    loop = asyncio.get_running_loop()
    file = tempfile.TemporaryFile(prefix="ichibase-reply-")  # noqa: SIM115 - outlives this call
    try:
        async for chunk in chunks:
            parts.append(bytes(chunk))
            size += len(chunk)
            if size > MEMORY_LIMIT:
                await loop.run_in_executor(None, file.writelines, parts)
                total, size, parts = total + size, 0, []
        await loop.run_in_executor(None, file.writelines, parts)
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        _send_open_file(protocol, status, headers, path, total + size)
    finally:
        loop.call_later(OPEN_GRACE, file.close)


def _send_open_file(protocol: Any, status: int, headers: Headers, path: str, size: int) -> None:
    """A file that only a descriptor of this process keeps: the server opens it by its path a
    moment later, and then has it on its own. The descriptor is closed OPEN_GRACE later."""
    if not any(name == "content-length" for name, _ in headers):
        headers.append(("content-length", str(size)))
    protocol.response_file_range(status, headers, path, 0, size)
