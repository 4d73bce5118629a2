"""The realtime process's side of the node's own socket: see server.base.changes."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Any

import orjson

from server.base import unix
from server.base.changes import Unframer, framed
from server.base.events import Events, Failed
from server.realtime.process import Process


class Control(asyncio.Protocol):
    """One connection of a worker. Its messages are taken in their order."""

    def __init__(self, process: Process, events: Events) -> None:
        self.process = process
        self.events = events
        self.unframer = Unframer()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for text in self.unframer.feed(data):
                self._take(orjson.loads(text))
        except Exception:
            self.events.emit(Failed("a message of a worker", traceback.format_exc()))
            self.transport.close()

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("kind")
        if kind == "mongo":
            self.process.documents(message)
        elif kind == "publish":
            if not self.process.may_publish(message["project"]):
                self.transport.write(framed({"id": message["id"], "refused": True}))
                return
            event = message.get("event")
            delivered = self.process.publish(
                message["project"],
                message["channels"],
                None if event is None else orjson.dumps(event),
                orjson.dumps(message["payload"]),
            )
            self.transport.write(framed({"id": message["id"], "delivered": delivered}))


async def serve(process: Process, events: Events, path: Path) -> asyncio.AbstractServer:
    """Listens at `path`, readable by this account only."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: Control(process, events), sock=unix.listen(path)
    )
