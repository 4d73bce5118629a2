"""The way from a function to its own project: HTTP from the process's socket to the node's public
listener. Only requests to the project's own host pass, and none can say where it comes from.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any
from urllib.parse import urlsplit

HEAD_END = b"\r\n\r\n"
MAX_HEAD = 128 << 10
ALIAS = "project.invalid"  # what boot.js names: an address of ours could be one that is closed
# What a proxy would add: a function is no proxy.
DROPPED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded",
                     b"x-real-ip"})  # fmt: skip
REFUSED = (
    b"HTTP/1.1 421 Misdirected Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 82\r\n\r\n{"code":"not_found","detail":"This socket leads to the project of '
    b'the function."}  '
)
HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, ASKED, RAW = range(8)
HEX = re.compile(rb"[0-9a-fA-F]{1,16}\Z")
SWITCHED = b"HTTP/1.1 101 "


class BadRequest(ValueError):
    """Not what an HTTP client sends."""


class RequestFilter:
    """Takes a client's bytes, gives those for the server. host: the only one that may be named.
    scheme: of the project's public address.

    The first request of a connection may ask for another protocol: what follows it is kept back
    until the server has said, in its first answer, whether it is one."""

    def __init__(self, host: str, scheme: str) -> None:
        self.host = host.lower().encode()
        self.scheme = scheme.encode()
        self.misdirected = False
        self._state = HEAD
        self._first = True
        self._buffer = b""
        self._answer = b""  # its begin, while another protocol is asked for
        self._left = 0

    def answered(self, data: bytes) -> bytes:
        """Takes in what the server has sent. Gives what it gets besides, of what was kept back."""
        if self._state != ASKED:
            return b""
        self._answer += data[: len(SWITCHED)]
        if len(self._answer) < len(SWITCHED) and SWITCHED.startswith(self._answer):
            return b""
        self._state = RAW if self._answer.startswith(SWITCHED) else HEAD
        return self.feed(b"")

    def feed(self, data: bytes) -> bytes:
        """BadRequest closes the connection."""
        if self._state == ASKED:
            self._buffer += data
            if len(self._buffer) > MAX_HEAD:
                raise BadRequest
            return b""
        buffer = self._buffer + data
        out: list[bytes] = []
        at = 0
        while at < len(buffer) and self._state != ASKED:
            if self._state in (LENGTH, CHUNK):
                piece = buffer[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._state = HEAD if self._state == LENGTH else CHUNK_END
            elif self._state == RAW:
                out.append(buffer[at:])
                at = len(buffer)
            elif self._state == HEAD:
                end = buffer.find(HEAD_END, at)
                if end < 0:
                    if len(buffer) - at > MAX_HEAD:
                        raise BadRequest
                    break
                out.append(self._head(buffer[at:end]))
                at = end + 4
            else:
                end = buffer.find(b"\r\n", at)
                if end < 0:
                    if len(buffer) - at > 8192:
                        raise BadRequest
                    break
                out.append(buffer[at : end + 2])
                self._line(buffer[at:end])
                at = end + 2
        self._buffer = buffer[at:]
        return b"".join(out)

    def _line(self, line: bytes) -> None:
        if self._state == CHUNK_SIZE:
            size = line.partition(b";")[0].strip()
            if not HEX.match(size):
                raise BadRequest
            self._left = int(size, 16)
            self._state = CHUNK if self._left else TRAILER
        elif self._state == CHUNK_END:
            if line:
                raise BadRequest
            self._state = CHUNK_SIZE
        elif not line:
            self._state = HEAD

    def _head(self, head: bytes) -> bytes:
        first, *lines = head.split(b"\r\n")
        if not first.endswith(b" HTTP/1.1") or first.count(b" ") != 2:
            raise BadRequest
        method, target, protocol = first.split(b" ")
        hosts = []
        if not target.startswith(b"/"):  # as a proxy is asked
            scheme, _, rest = target.partition(b"://")
            authority, slash, path = rest.partition(b"/")
            hosts.append(authority.lower())
            target = slash + path
            if scheme.lower() != b"http" or not slash:
                self.misdirected = True
                raise BadRequest
        kept = [b" ".join((method, target, protocol))]
        named = False
        lengths, chunked, upgrade = [], False, False
        for line in lines:
            name, colon, value = line.partition(b":")
            name = name.lower()
            value = value.strip()
            if not colon or name != name.strip() or b"\n" in line or b"\r" in line:
                raise BadRequest
            if name in DROPPED:
                continue
            if name == b"host":
                if named:
                    raise BadRequest
                named = True
                hosts.append(value.lower())
                line = b"host: " + self.host
            elif name == b"content-length":
                lengths.append(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or chunked:
                    raise BadRequest
                chunked = True
            elif name == b"upgrade":
                if not self._first:
                    continue
                upgrade = True
            kept.append(line)
        if not named or len(lengths) > 1 or (lengths and chunked):
            raise BadRequest
        if upgrade and (chunked or lengths):
            raise BadRequest
        self._first = False
        if not {*hosts} <= {self.host, ALIAS.encode()}:
            self.misdirected = True
            raise BadRequest
        if self.scheme != b"http":
            kept.append(b"x-forwarded-proto: " + self.scheme)
        if chunked:
            self._state = CHUNK_SIZE
        elif lengths:
            if not lengths[0].isdigit():
                raise BadRequest
            self._left = int(lengths[0])
            self._state = LENGTH if self._left else HEAD
        if upgrade:
            self._state = ASKED
        return b"\r\n".join(kept) + HEAD_END


class _Side(asyncio.Protocol):
    """One end of a connection; what it receives is passed to the other one."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.other: _Side | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Server(_Side):
    def __init__(self, filter: RequestFilter) -> None:
        super().__init__()
        self.filter = filter

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            return
        self.other.transport.write(data)
        try:
            if passed := self.filter.answered(data):
                self.transport.write(passed)
        except BadRequest:
            self.transport.close()


class _Client(_Side):
    """The function's end."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.filter = RequestFilter(origin.host, origin.scheme)
        self.early: list[bytes] = []
        self.connecting: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        try:
            passed = self.filter.feed(data)
        except BadRequest:
            if self.transport is not None:
                if self.filter.misdirected:
                    self.transport.write(REFUSED)
                self.transport.close()
            return
        if not passed:
            return
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(passed)
            return
        self.early.append(passed)
        if self.connecting is None:
            self.transport.pause_reading()
            self.connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        server = _Server(self.filter)
        try:
            await loop.create_connection(lambda: server, *self.origin.listener)
        except OSError:
            if self.transport is not None:
                self.transport.close()
            return
        if self.transport is None:
            server.transport.close()
            return
        server.other, self.other = self, server
        server.transport.write(b"".join(self.early))
        self.early.clear()
        self.transport.resume_reading()


class Origin:
    """The connections of one process. url: the project's public address. listener: (host, port)
    of the node."""

    def __init__(self, url: str, listener: tuple[str, int]) -> None:
        parts = urlsplit(url)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        self.scheme = parts.scheme
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        self.host = host if parts.port in (None, default) else f"{host}:{parts.port}"
        self.listener = listener
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Client(self), sock=listening
        )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
