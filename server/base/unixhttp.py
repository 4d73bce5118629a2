"""A small HTTP/1.1 client over unix sockets: pooled connections, streams both ways.

Made for one peer that we start ourselves and whose answers are well-formed; what is not closes the
connection. Everything runs in one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

ONE_READ = 4096  # bytes of a request that the peer reads all at once or not at all
HIGH_WATER = 256 << 10  # bytes of a body that wait to be taken before reading pauses
MAX_HEAD = 64 << 10
MAX_IDLE = 64  # connections kept open
LINE_END = b"\r\n"
HEAD_END = b"\r\n\r\n"
NO_BODY = frozenset({204, 205, 304})

Headers = list[tuple[str, str]]


class PeerClosed(ConnectionError):
    """The connection ended before the answer did. begun: whether some of the answer had come.
    taken: False when the peer has certainly read nothing of the request."""

    def __init__(self, begun: bool, taken: bool = True) -> None:
        super().__init__("the peer closed the connection")
        self.begun = begun
        self.taken = taken


class BadAnswer(ConnectionError):
    """The peer does not speak HTTP/1.1."""


class Answer:
    """body: whole, or None when `stream` has it. connection: the raw one after a 101."""

    __slots__ = ("body", "connection", "headers", "status", "stream")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self.body: bytes | None = None
        self.stream: Body | None = None
        self.connection: Connection | None = None


class Body:
    """The rest of an answer, in pieces as they come. Reading pauses while nobody takes them.
    aclose() before the end closes the connection, which tells the peer."""

    __slots__ = ("_connection", "_done", "_error", "_parts", "_size", "_waiter", "length")

    def __init__(self, connection: Connection, length: int | None) -> None:
        self.length = length  # as declared, None when it is not
        self._connection: Connection | None = connection
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._done = False
        self._error: ConnectionError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > HIGH_WATER and self._connection is not None:
            self._connection.pause()
        self._wake()

    def finish(self, error: ConnectionError | None = None) -> None:
        self._done, self._error = True, error
        self._connection = None
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def read(self) -> bytes:
        """What has come since, b"" at the end; PeerClosed when it broke off."""
        while not self._parts:
            if self._done:
                if self._error is not None:
                    raise self._error
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if len(self._parts) == 1:
            taken = self._parts.popleft()
        else:
            taken = b"".join(self._parts)
            self._parts.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume()
        return taken

    @property
    def done(self) -> bool:
        """Whether all of it is here."""
        return self._done and self._error is None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.read():
            yield part

    async def aclose(self) -> None:
        self.abort()

    def abort(self) -> None:
        connection, self._connection = self._connection, None
        self._parts.clear()
        if connection is not None:
            connection.close()


def _text(head: bytes) -> str:
    """Headers are written as UTF-8 again: bytes that are that pass as they are."""
    if head.isascii():
        return head.decode("ascii")
    try:
        return head.decode()
    except UnicodeDecodeError:
        return head.decode("latin-1")


HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE, RAW, IDLE = range(9)


class Connection(asyncio.Protocol):
    """One connection of a pool: a request at a time."""

    __slots__ = (
        "_buffer", "_head_only", "_left", "_paused", "_pool", "_resumed", "_sent", "_state",
        "_waiter", "body", "closed", "once", "raw_received", "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool | None) -> None:
        self._pool = pool
        self._buffer = b""
        self._state = IDLE
        self._left = 0
        self._sent = 0  # bytes of the request
        self._head_only = False
        self._paused = False
        self._waiter: asyncio.Future[Answer] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self.body: Body | None = None
        self.closed = False
        self.once = False  # closed instead of kept for another request
        self.transport: Any = None
        self.raw_received: Any = None  # after a 101: called with what comes, b"" at the end

    # Sending

    def request(self, data: bytes, head_only: bool = False) -> asyncio.Future[Answer]:
        """Sends a request (or its head) and gives the answer to come. head_only: the method is
        HEAD, whose answers have no body."""
        self._state = HEAD
        self._head_only = head_only
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        self._sent = len(data)
        if self.closed or self.transport.is_closing():
            self._waiter = None
            waiter.set_exception(PeerClosed(False, taken=False))
        else:
            self.transport.write(data)
        return waiter

    async def write(self, data: bytes) -> None:
        """More of the request's body; waits while the peer does not take it."""
        if self.closed:
            raise PeerClosed(False)
        self._sent += len(data)
        self.transport.write(data)
        if self._resumed is not None:
            await asyncio.shield(self._resumed)

    def close(self) -> None:
        if not self.closed:
            self.transport.abort()

    def pause(self) -> None:
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    # Callbacks of the loop

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._pool is not None:
            self._pool.lost(self)
        self.resume_writing()
        if self._state == RAW:
            if self.raw_received is not None:
                self.raw_received(b"")
            return
        waiter, body = self._waiter, self.body
        self._waiter = self.body = None
        if waiter is not None and not waiter.done():
            # The kernel tells a reset when a peer has closed with bytes that it had not read.
            unread = isinstance(error, (ConnectionResetError, BrokenPipeError))
            taken = not unread or self._sent > ONE_READ or bool(self._buffer)
            waiter.set_exception(PeerClosed(bool(self._buffer), taken))
        if body is not None:
            body.finish(None if self._state == UNTIL_CLOSE else PeerClosed(True))

    def data_received(self, data: bytes) -> None:
        if self._state == HEAD:
            if self._buffer:
                data = self._buffer + data
                self._buffer = b""
            try:
                data = self._read_head(data)
            except (ValueError, IndexError):
                self._broken()
                return
            if not data:
                return
        if self._state == LENGTH:
            self._take(data)
        elif self._state == RAW:
            if self.raw_received is not None:
                self.raw_received(data)
            else:
                self._buffer += data
        elif self._state == UNTIL_CLOSE:
            if self.body is not None:
                self.body.feed(data)
        elif self._state == IDLE:
            self.close()  # nothing was asked for
        else:
            self._chunked(data)

    def _broken(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(BadAnswer("the answer is not HTTP/1.1"))
        self.close()

    def _read_head(self, data: bytes) -> bytes:
        """Reads the head when it is all there; gives what follows it."""
        end = data.find(HEAD_END)
        if end < 0:
            if len(data) > MAX_HEAD:
                raise ValueError
            self._buffer = data
            return b""
        lines = _text(data[:end]).split("\r\n")
        first = lines[0]
        if not first.startswith("HTTP/1.1 "):
            raise ValueError
        status = int(first[9:12])
        if 100 <= status < 200 and status != 101:
            return self._read_head(data[end + 4 :])
        headers: Headers = []
        length: int | None = None
        chunked = keep = True
        chunked = False
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name = name.lower()
            value = value.strip()
            if name == "content-length":
                length = int(value)
            elif name == "transfer-encoding":
                chunked = value.lower() == "chunked"
                continue
            elif name == "connection":
                keep = value.lower() != "close"
                continue
            headers.append((name, value))
        answer = Answer(status, headers)
        waiter, self._waiter = self._waiter, None
        rest = data[end + 4 :]
        if status == 101:
            self._state = RAW
            answer.connection = self
            self._buffer = rest
            if self._pool is not None:
                self._pool.lost(self)
            rest = b""
        elif self._head_only or status in NO_BODY or length == 0:
            answer.body = b""
            self._free(keep)
            rest = b""
        elif chunked:
            answer.stream = self.body = Body(self, None)
            self._state = CHUNK_SIZE
        elif length is None:
            answer.stream = self.body = Body(self, None)
            self._state = UNTIL_CLOSE
        elif len(rest) >= length:
            answer.body = rest[:length]
            self._free(keep and len(rest) == length)
            rest = b""
        else:
            answer.stream = self.body = Body(self, length)
            self._state, self._left = LENGTH, length
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)
        elif answer.connection is not None or answer.stream is not None:
            self.close()  # nobody waits for it any more
        return rest

    def _take(self, data: bytes) -> None:
        body = self.body
        if len(data) > self._left:
            self.close()
            return
        self._left -= len(data)
        if body is not None:
            body.feed(data)
        if self._left == 0:
            self._end_of_body()

    def _end_of_body(self) -> None:
        body, self.body = self.body, None
        if body is not None:
            body.finish()
        self.resume()
        self._free(True)

    def _chunked(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        body = self.body
        parts = []
        ended = False
        while at < size:
            state = self._state
            if state == CHUNK:
                piece = buffer[at : at + self._left]
                parts.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = CHUNK_END
                continue
            line_end = buffer.find(LINE_END, at)
            if line_end < 0:
                if size - at > 1024:
                    self.close()
                    return
                break
            line = buffer[at:line_end]
            at = line_end + 2
            if state == CHUNK_SIZE:
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError:
                    self.close()
                    return
                self._state = CHUNK if self._left else TRAILER
            elif state == CHUNK_END:
                self._state = CHUNK_SIZE
            elif not line:  # the end of the trailers
                ended = True
                break
        self._buffer = buffer[at:]
        if parts and body is not None:
            body.feed(parts[0] if len(parts) == 1 else b"".join(parts))
        if ended:
            self._buffer = b""
            self._end_of_body()

    def _free(self, keep: bool) -> None:
        self._state = IDLE
        pool = self._pool
        if keep and pool is not None:
            pool.free(self)
        else:
            self.close()

    def take_raw(self, received: Any) -> None:
        """After a 101: `received` gets all that comes from now on."""
        self.raw_received = received
        early, self._buffer = self._buffer, b""
        if early:
            received(early)
        if self.closed:
            received(b"")


class Pool:
    """Connections to one socket, made on demand; at most MAX_IDLE are kept."""

    __slots__ = ("_held", "_idle", "closing", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[Connection] = []
        self._held: set[Connection] = set()  # whose request is still being sent
        self.closing = False

    def idle(self) -> Connection | None:
        """A free connection, when there is one."""
        return self._idle.pop() if self._idle else None

    async def connect(self) -> Connection:
        """A new connection. OSError when nobody listens."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_unix_connection(lambda: Connection(self), self.path)
        return made

    def hold(self, connection: Connection) -> None:
        """The connection's request is not sent whole yet: it is not free with its answer. It
        serves no other one: the peer may close it with a body that nobody has read."""
        self._held.add(connection)
        connection.once = True

    def release(self, connection: Connection, whole: bool) -> None:
        """Takes back hold(). whole: whether the request was sent to its end."""
        self._held.discard(connection)
        if not whole:
            connection.close()
        elif connection._state == IDLE:
            self.free(connection)

    def free(self, connection: Connection) -> None:
        if connection in self._held:
            return
        if self.closing or connection.once or len(self._idle) >= MAX_IDLE:
            connection.close()
        elif not connection.closed and connection not in self._idle:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._held.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Closes what is idle, and the rest when it is free."""
        self.closing = True
        while self._idle:
            self._idle.pop().close()
