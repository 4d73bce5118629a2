"""WebSockets of the public port that could not be handed over to the realtime process as they are
(ichicore.http.lenient), because their request came in pieces or on a connection in use.

A worker takes the socket as it took the request, opens one of its own to the realtime process over
a unix socket and passes messages both ways. Who may connect is decided there.

Pings of the realtime process are not answered here: that would keep a client that is gone alive.
The HTTP server has no way to pass them on, so here it is the client's own frames that count.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

from server.base import unix
from server.base.http import Request
from server.base.project import Project
from server.realtime.intake import Intake, Taken
from server.realtime.pace import Paces

KEY = "aWNoaWJhc2UtcmVsYXktMQ=="
MASK = b"\x00\x00\x00\x00"  # a mask that changes nothing
PASSED = ("host", "origin")
TEXT, BINARY, CLOSE = 1, 2, 8
OPEN_SECONDS = 10.0
TOGETHER = 16  # frames that are passed to a client in one go


def socket_for_workers(data_dir: Path) -> Path:
    """Where the realtime process takes the sockets that workers hand on."""
    return data_dir / "run" / "realtime-ws.sock"


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, 0xFE, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 0xFF, size)
    return head + MASK + payload


class Frames:
    """Cuts what the realtime process sends into frames: always whole messages, unmasked."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of each frame that is complete with these bytes."""
        rest = self._rest
        rest += data
        found = []
        at = 0
        while len(rest) - at >= 2:
            size, head = rest[at + 1] & 127, 2
            if size == 126:
                if len(rest) - at < 4:
                    break
                size, head = struct.unpack_from(">H", rest, at + 2)[0], 4
            elif size == 127:
                if len(rest) - at < 10:
                    break
                size, head = struct.unpack_from(">Q", rest, at + 2)[0], 10
            if len(rest) - at < head + size:
                break
            found.append((rest[at] & 15, bytes(rest[at + head : at + head + size])))
            at += head + size
        if at:
            del rest[:at]
        return found


async def relay(path: Path, request: Request, protocol: Any, paces: Paces, intake: Intake) -> None:
    """Serves one socket of a worker to its end."""
    try:
        reader, writer = await asyncio.open_unix_connection(sock=unix.connect(path))
    except OSError:
        protocol.close(503)
        return
    try:
        status, rest = await asyncio.wait_for(_ask(request, reader, writer), OPEN_SECONDS)
        if status != 101:
            protocol.close(status)
            return
        transport = await protocol.accept()
        client: str = request.client  # type: ignore[attr-defined]
        taken = intake.enter(client)
        inwards = asyncio.ensure_future(
            _from_client(transport, writer, request.project, paces, taken)
        )
        outwards = asyncio.ensure_future(
            _to_client(transport, reader, rest, request.project, paces)
        )
        try:
            await asyncio.wait({inwards, outwards}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (inwards, outwards):
                task.cancel()
            await asyncio.wait({inwards, outwards})
            protocol.close(None)
            intake.leave(client, taken)
    except (TimeoutError, OSError):
        protocol.close(503)
    finally:
        writer.close()


async def _ask(
    request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, bytes]:
    """The status that the realtime process answers, and what it sent after that."""
    headers = request.headers
    lines = [
        f"GET /realtime?{request.query} HTTP/1.1",
        *(f"{name}: {headers[name]}" for name in PASSED if name in headers),
        "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13",
        f"sec-websocket-key: {KEY}", "", "",
    ]  # fmt: skip
    writer.write("\r\n".join(lines).encode("ascii", "replace"))
    head = b""
    while b"\r\n\r\n" not in head:
        more = await reader.read(4096)
        if not more:
            return 503, b""
        head += more
    head, _, rest = head.partition(b"\r\n\r\n")
    return int(head[9:12]), rest


async def _from_client(
    transport: Any, writer: asyncio.StreamWriter, project: Project, paces: Paces, taken: Taken
) -> None:
    while True:
        message = await transport.receive()
        if delay := paces.frame(project.id, project.limits):
            await asyncio.sleep(delay)
        if message.kind == 0:
            writer.write(masked(CLOSE, b""))
            return
        text = message.kind == 2
        data = message.data.encode() if text else message.data
        taken.add(len(data))
        writer.write(masked(TEXT if text else BINARY, data))
        await writer.drain()


async def _to_client(
    transport: Any, reader: asyncio.StreamReader, rest: bytes, project: Project, paces: Paces
) -> None:
    frames = Frames()
    data = rest
    while True:
        found = frames.feed(data)
        for number, (opcode, payload) in enumerate(found):
            if number % TOGETHER == 0:  # the worker's other requests come in between
                some = min(TOGETHER, len(found) - number)
                await asyncio.sleep(paces.deliveries(project.id, project.limits, some))
            if opcode == TEXT:
                await transport.send_str(payload.decode())
            elif opcode == CLOSE:
                return
        data = await reader.read(1 << 16)
        if not data:
            return
