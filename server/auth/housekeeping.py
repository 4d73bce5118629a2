"""Removes what has run out from the databases of the projects that this worker serves."""

from __future__ import annotations

import asyncio
import contextlib
import random

from server.auth.audit import KEPT_DAYS
from server.auth.database import statement
from server.auth.room import Room, Tenant, log

EVERY = 600.0  # seconds
BATCH = 5_000  # rows a table and round
LOCK_KEY = 0x6175_7468  # one worker cleans a database at a time

_OLD = {
    "codes": "expires_at < now()",
    "oauth_flows": "expires_at < now()",
    "rate_limits": "due_at < now()",
    "guesses": "last_at < now() - interval '2 days'",
    "sessions": "ends_at < now() - interval '7 days'",
    "audit_events": f"at < now() - interval '{KEPT_DAYS} days'",
}
SWEEP = [
    statement(
        f"delete from auth.{table} where ctid = any (array(select ctid from auth.{table} "
        f"where {old} limit {BATCH})) and pg_try_advisory_xact_lock({LOCK_KEY})"
    )
    for table, old in _OLD.items()
]


async def sweep(tenant: Tenant) -> None:
    """One round over one project."""
    for what in SWEEP:
        await tenant.database.rows(what)


class Keeper:
    """A task of one worker."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="auth housekeeping")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.8, 1.2))  # noqa: S311
            for tenant in list(self.room.tenants.values()):
                if not self.room.context.serving(tenant.project):
                    continue
                try:
                    await sweep(tenant)
                except Exception:
                    log.exception("housekeeping of project %s failed", tenant.project.slug)
