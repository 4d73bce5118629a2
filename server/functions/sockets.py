"""WebSockets between a client and a function: the HTTP server speaks to the client, we to Deno.

That server knows neither subprotocols nor close codes: what of these goes to the client is written
on a hold of our own on its connection. The client's own close code does not reach the function.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import struct
from typing import Any

from server.base.clients import connection_of, send_now
from server.base.unixhttp import Answer, Connection

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_MESSAGE = 16 << 20
QUEUE = 64  # messages that wait for a slow client until the function is no longer read
CLOSE_SECONDS = 1.0  # that a client has to confirm a close
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}\Z")  # the name of a subprotocol
SWITCHING = "HTTP/1.1 101 Switching Protocols"
TIME_IS_OVER = struct.pack(">H", 1001)
FUNCTION_IS_GONE = struct.pack(">H", 1011)
NO_MASK = b"\x00\x00\x00\x00"  # a mask that changes nothing: no proxy stands between us and Deno


class WireError(ValueError):
    """What came is no WebSocket."""


def encode(kind: int, data: bytes) -> bytes:
    """One frame from a client."""
    size = len(data)
    if size < 126:
        head = bytes((0x80 | kind, 0x80 | size))
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | kind, 0xFE, size)
    else:
        head = struct.pack(">BBQ", 0x80 | kind, 0xFF, size)
    return head + NO_MASK + data


class Reader:
    """Frames from a server, put together to messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._kind = 0
        self._size = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, payload) of what is whole; kind: TEXT, BINARY, CLOSE, PING or PONG."""
        buffer = self._buffer
        buffer += data
        found: list[tuple[int, bytes]] = []
        while True:
            frame = self._frame()
            if frame is None:
                return found
            final, kind, payload = frame
            if kind >= CLOSE:
                if not final:
                    raise WireError
                found.append((kind, payload))
                continue
            if (kind == CONTINUED) != bool(self._parts or self._kind):
                raise WireError
            if kind != CONTINUED:
                self._kind = kind
            self._parts.append(payload)
            self._size += len(payload)
            if self._size > MAX_MESSAGE:
                raise WireError
            if final:
                found.append((self._kind, b"".join(self._parts)))
                self._parts, self._kind, self._size = [], 0, 0

    def _frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        kind, size, start = buffer[0] & 15, buffer[1] & 127, 2
        if buffer[0] & 0x70 or buffer[1] & 0x80 or kind not in (0, 1, 2, 8, 9, 10):
            raise WireError
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(buffer) < 2 + width:
                return None
            size, start = int.from_bytes(buffer[2 : 2 + width], "big"), 2 + width
        if size > MAX_MESSAGE:
            raise WireError
        if len(buffer) < start + size:
            return None
        payload = bytes(buffer[start : start + size])
        final = bool(buffer[0] & 0x80)
        del buffer[: start + size]
        return final, kind, payload


def offered(header: str | None) -> list[str]:
    """The subprotocols that a client offers."""
    names = (name.strip(" \t") for name in (header or "").split(","))
    return [name for name in names if TOKEN.match(name)]


def upgrade_lines(protocols: list[str]) -> str:
    """The headers that ask Deno for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = ["upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13",
             f"sec-websocket-key: {key}"]  # fmt: skip
    if protocols:
        lines.append(f"sec-websocket-protocol: {', '.join(protocols)}")
    return "\r\n".join(lines)


def chosen(answer: Answer, protocols: list[str]) -> str | None:
    """The subprotocol that the function has taken of those; others are none of the client's."""
    found = dict(answer.headers).get("sec-websocket-protocol")
    return found if found in protocols else None


async def relay(
    protocol: Any, address: str, chosen: str | None, connection: Connection,
    over: asyncio.Future[None],
) -> None:  # fmt: skip
    """Passes messages both ways until either side ends or `over` is done. address: of the client's
    connection. chosen: the subprotocol."""
    held = connection_of(address)
    try:
        if chosen is not None and held is not None:
            # The HTTP server's own first line, written next, becomes the value of the last header.
            head = (
                f"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-protocol: {chosen}\r\nx-http: "
            )
            send_now(held, head.encode())
        await _relay(protocol, held, connection, over)
    finally:
        if held is not None:
            held.close()


async def _relay(
    protocol: Any, held: socket.socket | None, connection: Connection, over: asyncio.Future[None]
) -> None:
    client = await protocol.accept()
    queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
    reader = Reader()

    def received(data: bytes) -> None:
        if not data:
            queue.put_nowait(None)
            return
        try:
            messages = reader.feed(data)
        except WireError:
            connection.close()
            return
        for message in messages:
            queue.put_nowait(message)
        if queue.qsize() > QUEUE:
            connection.pause()

    connection.take_raw(received)
    outwards = asyncio.ensure_future(_from_function(queue, client, connection))
    inwards = asyncio.ensure_future(_from_client(client, connection))
    ends: list[asyncio.Future[Any]] = [outwards, inwards, over]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if held is not None and not inwards.done():
            await _close(held, _told(outwards), inwards)
    finally:
        for task in (outwards, inwards):
            task.cancel()
        await asyncio.wait([outwards, inwards])
        connection.close()
        protocol.close()


def _told(task: asyncio.Task[bytes | None]) -> bytes:
    """What the client is told of the end: what the function has said with its close, else why there
    was none."""
    if not task.done():
        return TIME_IS_OVER
    payload = task.result() if task.exception() is None else None
    return FUNCTION_IS_GONE if payload is None or len(payload) > 125 else payload


async def _close(held: socket.socket, payload: bytes, inwards: asyncio.Task[None]) -> None:
    """Tells the client why, and lets it confirm that."""
    if send_now(held, bytes((0x80 | CLOSE, len(payload))) + payload):
        held.shutdown(socket.SHUT_WR)  # the HTTP server's own close would be a second one
        await asyncio.wait([inwards], timeout=CLOSE_SECONDS)


async def _from_function(
    queue: asyncio.Queue[Any], client: Any, connection: Connection
) -> bytes | None:
    """The payload of the function's close; None when it ended without."""
    while (message := await queue.get()) is not None:
        kind, payload = message
        if queue.qsize() < QUEUE // 2:
            connection.resume()
        if kind == TEXT:
            try:
                await client.send_str(payload.decode())
            except UnicodeDecodeError:
                return None
        elif kind == BINARY:
            await client.send_bytes(payload)
        elif kind == PING:
            await connection.write(encode(PONG, payload))
        elif kind == CLOSE:
            return bytes(payload)
    return None


async def _from_client(client: Any, connection: Connection) -> None:
    while True:
        message = await client.receive()
        if message.kind == 2:
            await connection.write(encode(TEXT, message.data.encode()))
        elif message.kind == 1:
            await connection.write(encode(BINARY, bytes(message.data)))
        else:
            await connection.write(encode(CLOSE, struct.pack(">H", 1000)))
            return
