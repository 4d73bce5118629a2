"""The realtime process's side of the node's own socket: see server.base.changes."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable
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
        self._answering: set[asyncio.Task[None]] = set()

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
            event_json = None if event is None else orjson.dumps(event)
            channels, payload = message["channels"], orjson.dumps(message["payload"])
            project, nodes = message["project"], self.process.nodes
            delivered = self.process.publish(project, channels, event_json, payload)
            if nodes is None or project not in nodes.wanted:
                self.transport.write(framed({"id": message["id"], "delivered": delivered}))
                return
            elsewhere = nodes.publish(project, channels, event_json, payload)
            task = asyncio.get_running_loop().create_task(
                self._answer(message["id"], delivered, elsewhere)
            )
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, delivered: int, elsewhere: Awaitable[int]) -> None:
        delivered += await elsewhere
        if not self.transport.is_closing():
            self.transport.write(framed({"id": number, "delivered": delivered}))


async def serve(process: Process, events: Events, path: Path) -> asyncio.AbstractServer:
    """Listens at `path`, readable by this account only."""
    return await asyncio.get_running_loop().create_unix_server(
        lambda: Control(process, events), sock=unix.listen(path)
    )
