"""Access tokens that end before they expire, in the control database while they could be used.

Who revokes inserts rows; the database tells them to every process that listens to the bus, which
applies them as messages of the topic `token.revoked`. A process that starts, or whose connection to
the bus broke, reads all that are in force before it serves (again).
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any

import psycopg

from server.base.bus import RECONNECTED, PgBus
from server.base.events import Events, Failed, Lost
from server.base.listen import connect

NAME = "ichibase revocations"
MOST = 100_000  # of one project that a process reads, the ones that last longest first
RETRY_SECONDS = 1.0

ADD = """
with gone as (delete from revoked_tokens where ends_at < now() - interval '1 minute')
insert into revoked_tokens as r (project_id, kind, subject, before, ends_at)
select p.id, %(kind)s, t.subject, %(before)s, to_timestamp(%(ends)s)
from projects p, unnest(%(subjects)s::text[]) as t (subject) where p.id = %(project)s
order by t.subject
on conflict (project_id, kind, subject) do update
set before = greatest(r.before, excluded.before), ends_at = greatest(r.ends_at, excluded.ends_at)
"""
READ = """
select project_id, kind, subject, before, extract(epoch from ends_at)::float8 from (
  select *, row_number() over (partition by project_id order by ends_at desc) as place
  from revoked_tokens where ends_at > now()
) r where place <= %(most)s
"""

Apply = Callable[[dict[str, Any]], None]


class Revocations:
    """apply: takes one message {"project", "session_id"} or {"project", "user_id", "before"}, each
    with "exp", in the process's event loop; it is called for what is read at the start, the bus
    calls it for what comes later. `ready` is set once all have been read."""

    def __init__(self, dsn: str, bus: PgBus, apply: Apply, events: Events) -> None:
        self.dsn = dsn
        self.bus = bus
        self.apply = apply
        self.events = events
        self.ready = asyncio.Event()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._adding = asyncio.Lock()
        bus.subscribe(RECONNECTED, lambda _: self._wake.set())

    def start(self) -> None:
        """Begins to read, in the running loop, once the bus is connected: nothing is missed."""
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=NAME)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            await self._connection.close()

    async def sessions(self, project_id: str, ids: list[str], until: float) -> None:
        """Ends the tokens of these sessions. until: epoch seconds when the last of them expires.
        psycopg.OperationalError when the control database is away."""
        if ids:
            await self._add(project_id, "session", ids, None, until)

    async def user(self, project_id: str, id: str, before: float, until: float) -> None:
        """Ends a user's tokens issued before that time (epoch seconds); else as sessions."""
        await self._add(project_id, "user", [id], before, until)

    async def replay(self, apply: Apply) -> None:
        """Calls `apply` for all that are in force: for a service that began to listen to the bus
        later than its process. psycopg.OperationalError when the control database is away."""
        async with await connect(self.dsn, NAME) as connection:
            self._tell(apply, await self._read(connection))

    async def _add(
        self, project: str, kind: str, subjects: list[str], before: float | None, until: float
    ) -> None:
        values = {
            "project": project, "kind": kind, "subjects": subjects, "before": before, "ends": until,
        }  # fmt: skip
        async with self._adding:
            for attempt in (1, 2):
                try:
                    if self._connection is None or self._connection.closed:
                        self._connection = await connect(self.dsn, NAME)
                    await self._connection.execute(ADD, values)
                    return
                except psycopg.OperationalError:
                    if self._connection is not None:
                        await self._connection.close()
                        self._connection = None
                    if attempt == 2:
                        raise

    async def _run(self) -> None:
        lost = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.bus.connected.wait()
            try:
                async with await connect(self.dsn, NAME) as connection:
                    rows = await self._read(connection)
                lost = False
            except (psycopg.Error, OSError) as error:
                if not lost:
                    self.events.emit(Lost("the control database", str(error)))
                lost = True
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                self._tell(self.apply, rows)
            except Exception:
                self.events.emit(Failed("reading revoked tokens", traceback.format_exc()))
            self.ready.set()

    @staticmethod
    async def _read(connection: psycopg.AsyncConnection[Any]) -> list[Any]:
        return await (await connection.execute(READ, {"most": MOST})).fetchall()

    @staticmethod
    def _tell(apply: Apply, rows: list[tuple[str, str, str, float | None, float]]) -> None:
        for project, kind, subject, before, until in rows:
            message: dict[str, Any] = {"project": project, "exp": until}
            if kind == "session":
                message["session_id"] = subject
            else:
                message |= {"user_id": subject, "before": before}
            apply(message)
