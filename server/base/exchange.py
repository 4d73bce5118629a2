"""Messages of any size between the nodes that share a control database, over LISTEN and NOTIFY.

Who sends never waits: messages are queued and go in batches, one transaction each, in their order.
A message longer than a notice may be lies in the table `exchange` until it has been read. Every
listener is told each message once, those of one sender in their order; what was sent while a
listener's connection was broken is lost to it, which the numbers of the messages show.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import psycopg

from server.base.events import Events, Failed, Noted
from server.base.listen import Listener, connect, reason_of

CHANNEL = "ichibase_exchange"
NAME = "ichibase exchange"
INLINE = 7_000  # bytes; Postgres takes less than 8,000
BATCH = 1024  # messages of one transaction
BATCH_BYTES = 1 << 20
QUEUE_BYTES = 32 << 20  # what may wait for the database; beyond that messages are dropped
KEEP_SECONDS = 60
RETRY = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between attempts; the last one repeats

SEND = "select pg_notify(%s, t) from unnest(%s::text[]) with ordinality as m (t, n) order by n"
KEEP = """
insert into exchange (body) select b from unnest(%s::text[]) with ordinality as m (b, n)
order by n returning id
"""
CLEAN = "delete from exchange where at < now() - make_interval(secs => %s)"
FETCH = "select id, body from exchange where id = any(%s)"

Taker = Callable[[str, int, dict[str, Any]], None]


class Exchange:
    """take: called with (sender, number, message) for each message of another process, in the
    running loop; numbers of a sender count from 1 without gaps, unless some were lost. began:
    called whenever the connection is up. run: this process among all others."""

    def __init__(self, dsn: str, events: Events, take: Taker, began: Callable[[], None]) -> None:
        self.dsn = dsn
        self.events = events
        self.take = take
        self.began = began
        self.run = secrets.token_hex(6)
        self.connected = False
        self.dropped = 0
        self._number = 0
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._come: deque[str] = deque()  # notices that wait for a long message before them
        self._listener = Listener(dsn, CHANNEL, NAME, self._told, self._began, self._lost)
        self._tasks: list[asyncio.Task[None]] = []
        self._fetching: asyncio.Task[None] | None = None
        self._reader: psycopg.AsyncConnection[Any] | None = None

    def start(self) -> None:
        """Begins to listen and to send, in the running loop."""
        self._listener.start()
        self._tasks.append(asyncio.get_running_loop().create_task(self._send(), name=NAME))

    async def stop(self, seconds: float = 2.0) -> None:
        """Sends what is queued, within `seconds`, and ends."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._queued and self.connected and loop.time() < deadline:
            await asyncio.sleep(0.01)
        tasks = [*self._tasks, *([self._fetching] if self._fetching else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._listener.stop()
        if self._reader is not None:
            await self._reader.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Queues a message for all other processes."""
        self._number += 1
        text = orjson.dumps({"r": self.run, "s": self._number, "m": message})
        if self._queued + len(text) > QUEUE_BYTES:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                self.events.emit(Noted("messages to other nodes were dropped", str(self.dropped)))
            return
        self._queue.append(text)
        self._queued += len(text)
        self._wake.set()

    # --- out ----------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Sends batches for ever. One that fails goes again: listeners know it by its numbers."""
        failures = 0
        batch: list[bytes] = []
        while True:
            try:
                async with await connect(self.dsn, NAME) as connection:
                    await connection.execute("set synchronous_commit = off")
                    cleaned = 0.0
                    while True:
                        if not batch:
                            await self._wake.wait()
                            batch = self._batch()
                        long = await self._put(connection, batch)
                        self._queued -= sum(map(len, batch))
                        batch = []
                        failures = 0
                        now = asyncio.get_running_loop().time()
                        if long and now - cleaned > KEEP_SECONDS:
                            cleaned = now
                            await connection.execute(CLEAN, (KEEP_SECONDS,))
            except (psycopg.Error, OSError) as error:
                if failures == 1:
                    self.events.emit(Noted("messages to other nodes wait", reason_of(error)))
            await asyncio.sleep(RETRY[min(failures, len(RETRY) - 1)])
            failures += 1

    def _batch(self) -> list[bytes]:
        taken: list[bytes] = []
        size = 0
        while self._queue and len(taken) < BATCH and size < BATCH_BYTES:
            taken.append(self._queue.popleft())
            size += len(taken[-1])
        if not self._queue:
            self._wake.clear()
        return taken

    async def _put(self, connection: psycopg.AsyncConnection[Any], batch: list[bytes]) -> bool:
        """Sends a batch; whether a message was too long for a notice."""
        long = [text.decode() for text in batch if len(text) > INLINE]
        async with connection.transaction():
            ids: list[Any] = []
            if long:
                ids = await (await connection.execute(KEEP, (long,))).fetchall()
            numbers = iter(ids)
            notices = [
                text.decode() if len(text) <= INLINE else f"#{next(numbers)[0]} {self.run}"
                for text in batch
            ]
            await connection.execute(SEND, (CHANNEL, notices))
        return bool(long)

    # --- in -----------------------------------------------------------------------------------

    def _began(self) -> None:
        self.connected = True
        self._come.clear()
        self.began()

    def _lost(self, reason: str) -> None:
        self.connected = False

    def _told(self, text: str) -> None:
        if text.startswith("#") or self._come:
            if text.endswith(self.run):
                return
            self._come.append(text)
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.get_running_loop().create_task(self._fetch())
            return
        self._deliver(text)

    async def _fetch(self) -> None:
        """Delivers what waits, long messages read from the table before."""
        while self._come:
            ids = [int(text[1:].split()[0]) for text in self._come if text.startswith("#")]
            asked = set(ids)
            found: dict[int, str] = {}
            if ids:
                try:
                    if self._reader is None or self._reader.closed:
                        self._reader = await connect(self.dsn, NAME)
                    cursor = await self._reader.execute(FETCH, (ids,))
                    found = dict(await cursor.fetchall())
                except (psycopg.Error, OSError) as error:
                    # Lost, as if the connection that listens had been broken.
                    self.events.emit(Noted("messages of other nodes were lost", reason_of(error)))
                    self._reader = None
            for text in list(self._come):
                if text.startswith("#"):
                    number = int(text[1:].split()[0])
                    if number not in asked:
                        break  # it came meanwhile
                    whole = found.get(number)
                    self._come.popleft()
                    if whole is not None:
                        self._deliver(whole)
                else:
                    self._come.popleft()
                    self._deliver(text)

    def _deliver(self, text: str) -> None:
        try:
            envelope = orjson.loads(text)
            run, number, message = envelope["r"], envelope["s"], envelope["m"]
        except (ValueError, KeyError, TypeError):
            return  # another program's notice on our channel
        if run == self.run:
            return
        try:
            self.take(run, number, message)
        except Exception:
            self.events.emit(Failed("a message of another node", traceback.format_exc()))
