"""One process of all that share a control database does the maintenance at a time."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

import psycopg

from server.base.events import Events, Failed, Lost, Noted
from server.base.listen import ask
from server.control.database import Connection, connect, fetch

LOCK = "ichibase maintenance"
RETRY_SECONDS = 3.0  # between tries to become the leader
BEAT_SECONDS = 2.0  # between looks whether the lock is still held
PATIENCE = 60.0  # seconds without an answer until it counts as lost, with all that is being done
JOBS = "ichibase_jobs"


class Leader:
    """Holds a session lock of the control database while `work` runs; the server lets go of it
    when this process or its connection dies. told: called for each new job."""

    def __init__(
        self,
        dsn: str,
        events: Events,
        work: Callable[[], Awaitable[None]],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.dsn = dsn
        self.events = events
        self.work = work
        self.told = told
        self.leads = False

    async def run(self) -> None:
        """Until cancelled."""
        lost = False
        while True:
            try:
                async with await connect(self.dsn) as connection:
                    lost = False
                    while not await self._take(connection):
                        await asyncio.sleep(RETRY_SECONDS)
                    await self._lead(connection)
            except (psycopg.Error, OSError) as error:
                if not lost:
                    self.events.emit(Lost("the control database", str(error).strip()))
                lost = True
            await asyncio.sleep(RETRY_SECONDS)

    @staticmethod
    async def _take(connection: Connection) -> bool:
        lock = "select pg_try_advisory_lock(hashtextextended($1, 0))"
        return bool((await fetch(connection, lock, (LOCK,)))[0][0])

    async def _lead(self, connection: Connection) -> None:
        await connection.execute(f"listen {JOBS}")
        self.leads = True
        self.events.emit(Noted("this node does the maintenance"))
        task = asyncio.ensure_future(self.work())
        try:
            while not task.done():
                async for _ in connection.notifies(timeout=BEAT_SECONDS):
                    self.told()
                await ask(connection, PATIENCE)
        finally:
            # Nothing goes on without the lock: another node may hold it a moment later.
            self.leads = False
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                trace = "".join(traceback.format_exception(error))
                self.events.emit(Failed("the maintenance", trace))
