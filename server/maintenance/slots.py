"""Keeps the log that a PostgreSQL server holds for change feeds within its bounds.

A slot keeps the log from the oldest transaction on that has written anything and is still open, in
whichever database. Once that is more than max_slot_wal_keep_size, the server takes every feed's
slot away. So a transaction of one project ends before the feeds of others lose theirs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from server.control.database import Connection, fetch
from server.maintenance.strain import Held

PAUSE = 1.0  # seconds between looks
PART = 0.6  # of what slots may keep, from which a transaction is ended
LEAST = 256 << 20  # bytes of log that a transaction may hold on any disk
STEPS = 64  # in which what slots may keep is written until the server is asked to note its state

BOUND = """select case when setting = '-1' then 0 else setting::int8 << 20 end,
  (select oid from pg_proc where proname = 'pg_log_standby_snapshot') is not null
    and (select rolsuper from pg_roles where rolname = current_user)
  from pg_settings where name = 'max_slot_wal_keep_size'"""
SLOTS = """select (pg_current_wal_insert_lsn() - '0/0')::int8,
  coalesce(array_agg(distinct datoid::int8) filter (where starts_with(slot_name, 'ichi_')), '{}'),
  (min(restart_lsn) - '0/0')::int8 from pg_get_replication_slots() where restart_lsn is not null"""
WRITING = """select pid, backend_xid::text, datid::int8, usesysid::int8
  from pg_stat_get_activity(null)
  where backend_xid is not null and backend_type = 'client backend' and datid > 0::oid"""
# A slot's reader learns from this record that older transactions have ended.
NOTE = "select pg_log_standby_snapshot()"


class Slots:
    """Looks at one server, always by the same session. folder: of an embedded server's data, whose
    disk the log is on."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._bound: int | None = None  # bytes; 0 for none
        self._noting = False
        self._noted = 0  # where the log was then
        self._since: dict[tuple[int, str], int] = {}  # by process and transaction
        self._before = 0  # where the log was at the last look
        self._looked = float("-inf")

    async def look(self, admin: Connection) -> list[Held]:
        """Sessions whose transaction holds too much of the log; count: how many MB. At most once
        a second."""
        now = time.monotonic()
        if now - self._looked < PAUSE:
            return []
        self._looked = now
        if self._bound is None:
            self._bound, self._noting = (await fetch(admin, BOUND))[0]
        if not self._bound:
            return []
        log, feeds, oldest = (await fetch(admin, SLOTS))[0]
        if self._noting and log - self._noted > self._bound // STEPS:
            await fetch(admin, NOTE)
            self._noted = log
        writing = await fetch(admin, WRITING)
        begun = self._before or oldest or log  # at the earliest
        self._before = log
        self._since = {
            (pid, number): self._since.get((pid, number), begun) for pid, number, _, _ in writing
        }
        return [
            Held(pid, database, login, held >> 20)
            for pid, number, database, login in writing
            if self._too_much(held := log - self._since[pid, number], database, feeds)
        ]

    def _too_much(self, held: int, database: int, feeds: list[int]) -> bool:
        assert self._bound is not None
        if held > self._bound * PART and any(one != database for one in feeds):
            return True
        return self._folder is not None and LEAST < held > shutil.disk_usage(self._folder).free
