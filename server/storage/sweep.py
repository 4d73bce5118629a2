"""Releases reservations that have run out and deletes blobs that no object has any more."""

from __future__ import annotations

import asyncio
import contextlib

from server.storage.database import statement, sure
from server.storage.room import Room, Tenant, log

EVERY = 5.0  # seconds between looks at projects where something may be left
COUNT_EVERY = 1.0  # seconds between hand-overs of the reads that were counted
BATCH = 500  # blobs of one round
# A replaced or deleted blob stays as long: a reader may have been told its name a moment ago.
GRACE = 15.0  # seconds

RELEASE = statement("select storage.sweep_uploads()")
DUE = statement(
    f"""select version from storage.garbage g where due_at <= now()
      and not exists (select from storage.objects o where o.version = g.version) limit {BATCH}"""
)
GONE = statement("delete from storage.garbage where version = any ($1::text[])")
LEFT = statement(
    "select exists (select from storage.garbage) or exists (select from storage.uploads)"
)


async def sweep(room: Room, tenant: Tenant) -> bool:
    """One round over one project; whether something is left for a later one. May run in several
    processes at once."""
    database = tenant.database
    await database.rows(RELEASE)
    while True:
        due = [sure(row[0]) for row in await database.rows(DUE)]
        if due:
            await room.store.delete(tenant.project.id, due)
            await database.rows(GONE, due)
        if len(due) < BATCH:
            break
    return (await database.row(LEFT))[0] == b"t"


class Keeper:
    """Two tasks of one worker: sweeping, and counting reads."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._sweep(), name="storage sweep"),
            loop.create_task(self._count(), name="storage count"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            for tenant in list(self.room.tenants.values()):
                if not tenant.dirty or not self.room.context.serving(tenant.project):
                    continue
                try:
                    tenant.dirty = False
                    left = await sweep(self.room, tenant)
                    tenant.dirty = tenant.dirty or left
                except Exception as error:
                    tenant.dirty = True
                    log.warning("sweeping project %s failed: %s", tenant.project.slug, error)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_EVERY)
            for tenant in self.room.tenants.values():
                self.room.count(tenant)
