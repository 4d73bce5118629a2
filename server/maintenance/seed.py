"""Keeps one replication slot of each server from which those of the feeds are copied.

A new slot waits until every transaction has ended that is open in any database of its server, so
that one project's could keep another's feed from beginning. A copy waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib

import psycopg

from server.base import processor
from server.base.changes import SEED
from server.base.events import Events, Noted
from server.control.database import Connection, connect, fetch
from server.control.projects import Projects

PAUSE = 2.0  # seconds between looks
MOVED = 1 << 20  # bytes of log from which the slot follows
AGAIN = 4  # times those must be more than what it keeps, which is read again whenever it moves
PLUGIN = "pgoutput"
WEIGHT = 10  # of the processors, while others want them too
# Where the server does not bound what a slot keeps, one that nobody moves on would fill its disk.
USABLE = """select current_setting('wal_level') = 'logical' and not pg_is_in_recovery()
  and current_setting('max_slot_wal_keep_size') <> '-1' and (rolreplication or rolsuper)
  from pg_roles where rolname = current_user"""
STATE = """select wal_status = 'lost' or plugin <> $2 or database <> current_database(), active,
  pg_current_wal_lsn() - confirmed_flush_lsn, confirmed_flush_lsn - restart_lsn
  from pg_replication_slots where slot_name = $1"""
MAKE = "select pg_create_logical_replication_slot($1, $2)"
DROP = "select pg_drop_replication_slot($1)"
MOVE = "select pg_replication_slot_advance($1, pg_current_wal_lsn())"


class Seed:
    """Of all servers of the node."""

    def __init__(self, projects: Projects, events: Events) -> None:
        self.projects = projects
        self.events = events

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for cluster in self.projects.clusters.values():
                local = cluster.kind == "embedded" and processor.usable()
                group.create_task(self._keep(cluster.admin_dsn, local))

    async def _keep(self, dsn: str, local: bool) -> None:
        told = False
        while True:
            try:
                async with await connect(dsn) as admin:
                    if local:
                        _step_aside(admin.info.backend_pid)
                    while await keep(admin):
                        told = False
                        await asyncio.sleep(PAUSE)
                    return
            except psycopg.Error as error:  # of a server that is away, others tell
                if not told and not isinstance(error, psycopg.OperationalError):
                    self.events.emit(Noted("no slot is kept for new feeds", str(error).strip()))
                    told = True
            await asyncio.sleep(PAUSE)


def _step_aside(process: int) -> None:
    """The slot follows by reading all that any project has written, and nobody waits for that."""
    processor.arrange(process, WEIGHT, processor.LAST)
    with contextlib.suppress(OSError):
        processor.place(process, processor.most(processor.processors()))


async def keep(admin: Connection) -> bool:
    """Makes the slot, or has it follow the log. False where there can be none."""
    usable = await fetch(admin, USABLE)
    if not usable or not usable[0][0]:
        return False
    found = await fetch(admin, STATE, (SEED, PLUGIN))
    if found and found[0][0]:
        await fetch(admin, DROP, (SEED,))
        found = []
    if not found:
        with contextlib.suppress(psycopg.errors.DuplicateObject):  # another node's
            await fetch(admin, MAKE, (SEED, PLUGIN))
    elif not found[0][1] and found[0][2] > max(MOVED, found[0][3] / AGAIN):
        with contextlib.suppress(psycopg.errors.ObjectInUse):
            await fetch(admin, MOVE, (SEED,))
    return True
