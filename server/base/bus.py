"""Small messages between all workers of a node, over LISTEN and NOTIFY in the control database.

A message is told to every worker, the sender included, once or, when the connection breaks, not at
all; after a break each worker gets the local topic RECONNECTED and reads again what it keeps.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import orjson
import psycopg

from server.base.events import Events, Failed, Lost, Regained
from server.base.listen import Listener, connect

CHANNEL = "ichibase_bus"
MAX_PAYLOAD = 7_000  # bytes; Postgres takes less than 8,000
RECONNECTED = "bus.reconnected"
NAME = "ichibase bus"

Callback = Callable[[dict[str, Any]], None]


class PgBus:
    """A Bus. Callbacks run in the worker's event loop and must not block it. `connected` is set
    while messages arrive."""

    def __init__(self, dsn: str, events: Events) -> None:
        self.dsn = dsn
        self.events = events
        self.connected = asyncio.Event()
        self._before = False
        self._callbacks: dict[str, list[Callback]] = {}
        self._listener = Listener(dsn, CHANNEL, NAME, self._receive, self._began, self._lost)
        self._sender: psycopg.AsyncConnection[Any] | None = None
        self._sending = asyncio.Lock()

    def subscribe(self, topic: str, callback: Callback) -> None:
        self._callbacks.setdefault(topic, []).append(callback)

    async def publish(self, topic: str, payload: dict[str, Any]) -> None:
        """ValueError for a message that is too large; psycopg.OperationalError when the control
        database is away."""
        text = orjson.dumps({"topic": topic, "payload": payload}).decode()
        if len(text.encode()) > MAX_PAYLOAD:
            raise ValueError(f"a message of the bus has at most {MAX_PAYLOAD} bytes")
        async with self._sending:
            for attempt in (1, 2):
                try:
                    if self._sender is None or self._sender.closed:
                        self._sender = await connect(self.dsn, NAME)
                    await self._sender.execute("select pg_notify(%s, %s)", (CHANNEL, text))
                    return
                except psycopg.OperationalError:
                    if self._sender is not None:
                        await self._sender.close()
                        self._sender = None
                    if attempt == 2:
                        raise

    def start(self) -> None:
        """Begins to listen, in the running loop."""
        self._listener.start()

    async def stop(self) -> None:
        await self._listener.stop()
        if self._sender is not None:
            await self._sender.close()

    def _began(self) -> None:
        self.connected.set()
        if self._before:
            self.events.emit(Regained("the control database"))
            self._deliver(RECONNECTED, {})
        self._before = True

    def _lost(self, reason: str) -> None:
        self.connected.clear()
        self.events.emit(Lost("the control database", reason))

    def _receive(self, text: str) -> None:
        try:
            message = orjson.loads(text)
            topic, payload = message["topic"], message["payload"]
        except (ValueError, KeyError, TypeError):
            return  # another program's notice on our channel
        if isinstance(payload, dict):
            self._deliver(topic, payload)

    def _deliver(self, topic: str, payload: dict[str, Any]) -> None:
        for callback in self._callbacks.get(topic, ()):
            try:
                callback(payload)
            except Exception:
                self.events.emit(Failed(f"message of the topic {topic}", traceback.format_exc()))
