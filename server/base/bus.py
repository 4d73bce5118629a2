"""Small messages between all workers of a node, over LISTEN and NOTIFY in the control database.

A message is told to every worker, the sender included, once or, when the connection breaks, not at
all; after a break each worker gets the local topic RECONNECTED and reads again what it keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from typing import Any

import orjson
import psycopg

from server.base.events import Events, Failed, Lost, Regained

CHANNEL = "ichibase_bus"
MAX_PAYLOAD = 7_000  # bytes; Postgres takes less than 8,000
RECONNECTED = "bus.reconnected"
RETRY = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between attempts; the last one repeats
NAME = "ichibase bus"

Callback = Callable[[dict[str, Any]], None]


class PgBus:
    """A Bus. Callbacks run in the worker's event loop and must not block it."""

    def __init__(self, dsn: str, events: Events) -> None:
        self.dsn = dsn
        self.events = events
        self.connected = asyncio.Event()
        self._callbacks: dict[str, list[Callback]] = {}
        self._task: asyncio.Task[None] | None = None
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
                        self._sender = await self._connect()
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
        self._task = asyncio.get_running_loop().create_task(self._listen(), name="bus")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._sender is not None:
            await self._sender.close()

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self.dsn, autocommit=True, application_name=NAME, connect_timeout=5,
            keepalives_idle=30, keepalives_interval=10, keepalives_count=3,
        )  # fmt: skip

    async def _listen(self) -> None:
        failures, before = 0, False
        while True:
            try:
                connection = await self._connect()
                async with connection:
                    await connection.execute(f"listen {CHANNEL}")
                    if failures:
                        self.events.emit(Regained("the control database"))
                    failures = 0
                    self.connected.set()
                    if before:
                        self._deliver(RECONNECTED, {})
                    before = True
                    async for notice in connection.notifies():
                        self._receive(notice.payload)
            except (psycopg.Error, OSError) as error:
                reason = str(error)
            else:
                reason = "the server ended the connection"
            self.connected.clear()
            if failures == 0:
                self.events.emit(Lost("the control database", reason))
            await asyncio.sleep(RETRY[min(failures, len(RETRY) - 1)])
            failures += 1

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
