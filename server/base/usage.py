"""Counts what projects use: in the worker's memory, written to the control database every few
seconds in one statement.

A process that is killed loses what it counted since its last write, at most FLUSH_SECONDS; a write
whose answer was lost is not counted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from server.base.events import Events, Failed
from server.base.listen import ALIVE

FLUSH_SECONDS = 3.0
LONGEST_PAUSE = 30.0  # between tries while the control database is away
ROWS = 5_000  # of one statement

# Counters that say how much there is now; all others count what happened, per day (UTC).
LEVELS = frozenset(
    {"database_bytes", "document_bytes", "storage_bytes", "storage_objects", "storage_reserved"}
)

# Remembers the number of each writer's last batch, so that one sent again is left out.
FLUSH = """
with fresh as (
  insert into usage_writers as w (id, batch) values (%(writer)s, %(batch)s)
  on conflict (id) do update set batch = excluded.batch, at = now() where w.batch < excluded.batch
  returning 1
), told as (
  select t.project_id, t.counter, t.n,
    case when t.is_level then '-infinity'::date else (now() at time zone 'utc')::date end as day
  from unnest(%(projects)s::text[], %(counters)s::text[], %(numbers)s::bigint[],
    %(levels)s::bool[]) as t (project_id, counter, n, is_level)
  where exists (select from fresh) and exists (select from projects p where p.id = t.project_id)
  order by 1, 2
)
insert into usage as u (project_id, day, counter, value)
select project_id, day, counter, n from told
on conflict (project_id, day, counter)
do update set value = greatest(u.value + excluded.value, 0), changed_at = clock_timestamp()
"""
READ_LEVELS = """select project_id, counter, value, changed_at::text from usage
where day = '-infinity' and changed_at > %s::timestamptz order by changed_at"""
SET_LEVEL = """insert into usage (project_id, day, counter, value)
select id, '-infinity', %(counter)s, %(value)s from projects where id = %(project)s
on conflict (project_id, day, counter)
do update set value = excluded.value, changed_at = clock_timestamp()"""
OVERLAP = "2 seconds"  # changes of transactions that committed out of order are read again

Key = tuple[str, str]  # project id, counter
Source = Callable[[], Iterable[tuple[str, str, int]]]  # project id, counter, how many more


class Usage:
    """The counters of one process. add() and level() are for its event loop; start() in it."""

    def __init__(self, dsn: str, events: Events | None = None) -> None:
        self.dsn = dsn
        self.events = events or Events()
        self.sources: list[Source] = []  # asked before each write for what they have counted
        self._writer = uuid.uuid4().hex
        self._batch = 0
        self._pending: dict[Key, int] = {}
        self._sent: list[tuple[Key, int]] = []  # a batch whose answer is open
        self._levels: dict[Key, int] = {}
        self._seen = "-infinity"
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()

    def add(self, project_id: str, counter: str, n: int = 1) -> None:
        """Counts n more (or fewer, for what can shrink). No input or output."""
        key = (project_id, counter)
        pending = self._pending
        pending[key] = pending.get(key, 0) + n

    def level(self, project_id: str, counter: str) -> int:
        """How much there is of one of LEVELS: what all processes had written a flush ago, and
        what this one has counted since. For quota checks that may be late by seconds."""
        key = (project_id, counter)
        sent = sum(n for one, n in self._sent if one == key)
        return max(0, self._levels.get(key, 0) + sent + self._pending.get(key, 0))

    def start(self) -> None:
        """Begins to write, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Writes what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with contextlib.suppress(psycopg.Error, OSError):
            await self.flush()
        if self._connection is not None:
            await self._connection.close()

    async def flush(self) -> None:
        """Writes what has been counted and reads the levels that others have changed.
        psycopg.Error when the control database is away; nothing is lost then."""
        async with self._flushing:
            for source in self.sources:
                for project_id, counter, n in source():
                    self.add(project_id, counter, n)
            connection = await self._connect()
            try:
                while self._sent or self._pending:
                    await self._write(connection)
                await self._read(connection)
            except psycopg.OperationalError:
                await connection.close()
                self._connection = None
                raise

    async def set_level(self, project_id: str, counter: str, value: int) -> None:
        """Puts a measured number in place of one of LEVELS, for all processes."""
        async with self._flushing:
            connection = await self._connect()
            values = {"project": project_id, "counter": counter, "value": value}
            await connection.execute(SET_LEVEL, values)
            self._levels[project_id, counter] = value

    def forget(self, project_id: str) -> None:
        """Drops what is kept of a project that is gone."""
        for kept in (self._levels, self._pending):
            for key in [key for key in kept if key[0] == project_id]:
                del kept[key]

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self.dsn, autocommit=True, application_name="ichibase usage", connect_timeout=5,
                **ALIVE,
            )  # fmt: skip
        return self._connection

    async def _write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if not self._sent:
            taken = list(self._pending.items())[:ROWS]
            for key, _ in taken:
                del self._pending[key]
            self._sent = [(key, n) for key, n in taken if n]
            self._batch += 1
            if not self._sent:
                return
        values = {
            "writer": self._writer,
            "batch": self._batch,
            "projects": [key[0] for key, _ in self._sent],
            "counters": [key[1] for key, _ in self._sent],
            "numbers": [n for _, n in self._sent],
            "levels": [key[1] in LEVELS for key, _ in self._sent],
        }
        await connection.execute(FLUSH, values)
        for key, n in self._sent:
            if key[1] in LEVELS:
                self._levels[key] = max(0, self._levels.get(key, 0) + n)
        self._sent = []

    async def _read(self, connection: psycopg.AsyncConnection[Any]) -> None:
        statement = READ_LEVELS
        if self._seen != "-infinity":
            statement = READ_LEVELS.replace(
                "%s::timestamptz", f"%s::timestamptz - '{OVERLAP}'::interval"
            )
        rows = await (await connection.execute(statement, (self._seen,))).fetchall()
        for project_id, counter, value, changed_at in rows:
            self._levels[project_id, counter] = value
            self._seen = changed_at

    async def _run(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(min(FLUSH_SECONDS * 2**failures, LONGEST_PAUSE))
            try:
                await self.flush()
            except (psycopg.OperationalError, OSError):  # which the bus has told of
                failures = min(failures + 1, 10)
            except Exception:
                self.events.emit(Failed("writing the usage", traceback.format_exc()))
                failures = min(failures + 1, 10)
            else:
                failures = 0
