"""WebSockets between a client and a function: the HTTP server speaks to the client, we to Deno.

The client's subprotocols and the function's close code do not pass: the HTTP server has neither.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from typing import Any

from server.base.unixhttp import Connection

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_MESSAGE = 16 << 20
QUEUE = 64  # messages that wait for a slow client until the function is no longer read
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


def upgrade_lines() -> str:
    """The headers that ask Deno for a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n"
        f"sec-websocket-key: {key}"
    )


async def relay(protocol: Any, connection: Connection, over: asyncio.Future[None]) -> None:
    """Passes messages both ways until either side ends or `over` is done."""
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
    tasks = [
        asyncio.ensure_future(_from_function(queue, client, connection)),
        asyncio.ensure_future(_from_client(client, connection)),
    ]
    try:
        await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        connection.close()
        protocol.close()


async def _from_function(queue: asyncio.Queue[Any], client: Any, connection: Connection) -> None:
    while (message := await queue.get()) is not None:
        kind, payload = message
        if queue.qsize() < QUEUE // 2:
            connection.resume()
        if kind == TEXT:
            try:
                await client.send_str(payload.decode())
            except UnicodeDecodeError:
                return
        elif kind == BINARY:
            await client.send_bytes(payload)
        elif kind == PING:
            await connection.write(encode(PONG, payload))
        elif kind == CLOSE:
            return


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
