"""Ends sessions of projects that fill what a PostgreSQL server has once for all of them: its table
of locks, without room in which nobody can write, and its queue of notifications.

Postgres has no limits of this kind for a login. A session that is ended here could come back at
once, so the owner's login is closed until the next look at changes of state opens it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import psycopg
from psycopg import sql

from server.base.events import Events, Noted
from server.control.database import Connection, connect, fetch, run
from server.control.lifecycle import owe
from server.control.projects import Projects, audit

FULL = 0.5  # of the table of locks, from which those are ended who have the most
FEW = 64  # locks that a session may have anyhow
QUEUE = 0.2  # of the queue of notifications, from which transactions of projects are ended
LONG = 5.0  # seconds that a transaction may last then

# With the table full, nothing can be read that all databases share; these two ask functions alone.
LOCKS = """select l.pid, s.usesysid::int8, count(*)::int4 from pg_lock_status() l
  join pg_stat_get_activity(null) s on s.pid = l.pid
  where not l.fastpath group by 1, 2 having count(*) > $1"""
LOGINS = "select oid::int8, rolname::text from pg_roles where rolname like 'ichi\\_%'"
TERMINATE = "select pg_terminate_backend(pid) from unnest($1::int4[]) pid"
GONE = "select count(*) from pg_stat_get_activity(null) where pid = any($1)"
WAITS = 50  # hundredths of a second for sessions to let go of what they had
ROOM = """select current_setting('max_locks_per_transaction')::int4
  * (current_setting('max_connections')::int4
    + current_setting('max_prepared_transactions')::int4)"""
OLD = """select pid, usename::text from pg_stat_activity
  where usename like 'ichi\\_%' and backend_type = 'client backend'
    and xact_start < now() - $1 * interval '1 second' and pg_notification_queue_usage() > $2"""


class Shared:
    """Keeps a session with each cluster: while the table of locks is full, no new one begins."""

    def __init__(self, projects: Projects, events: Events) -> None:
        self.projects = projects
        self.events = events
        self._sessions: dict[str, Connection] = {}
        self._logins: dict[str, dict[int, str]] = {}

    async def look(self) -> int:
        """Gives how many sessions were ended."""
        ended = 0
        for cluster_id, cluster in self.projects.clusters.items():
            admin = self._sessions.get(cluster_id)
            if admin is None or admin.broken:
                admin = self._sessions[cluster_id] = await connect(cluster.admin_dsn)
            try:
                if locking := await self._locking(cluster_id, admin):
                    ended += await self._end(cluster_id, admin, "locks", locking)
                self._logins[cluster_id] = dict(await fetch(admin, LOGINS))
                if holding := await fetch(admin, OLD, (LONG, QUEUE)):
                    ended += await self._end(cluster_id, admin, "notifications", holding)
            except psycopg.OperationalError:
                await admin.close()
                raise
        return ended

    async def stop(self) -> None:
        for admin in self._sessions.values():
            await admin.close()
        self._sessions = {}

    async def _locking(self, cluster_id: str, admin: Connection) -> list[tuple[Any, ...]]:
        """Sessions, and their logins, of those who have the most locks when there are too many."""
        room = int((await fetch(admin, ROOM))[0][0] * FULL)
        logins = self._logins.get(cluster_id, {})
        rows = [
            (pid, logins[login], count) for pid, login, count in await fetch(admin, LOCKS, (FEW,))
            if login in logins
        ]  # fmt: skip
        held: dict[str, int] = {}
        for _, login, count in rows:
            held[_database(login)] = held.get(_database(login), 0) + count
        most = set()
        for database in sorted(held, key=lambda one: held[one], reverse=True):
            if sum(held.values()) <= room:
                break
            most.add(database)
            del held[database]
        return [(pid, login) for pid, login, _ in rows if _database(login) in most]

    async def _end(
        self, cluster_id: str, admin: Connection, what: str, sessions: list[tuple[Any, ...]]
    ) -> int:
        pids = [pid for pid, _ in sessions]
        if self.projects.clusters[cluster_id].kind == "embedded":
            for pid in pids:  # the server would look the login up first, for which it needs a lock
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        else:
            await fetch(admin, TERMINATE, (pids,))
        for _ in range(WAITS):
            if not (await fetch(admin, GONE, (pids,)))[0][0]:
                break
            await asyncio.sleep(0.01)
        counts: dict[str, int] = {}
        for _, login in sessions:
            counts[_database(login)] = counts.get(_database(login), 0) + 1
        for record in await self.projects.all():
            if record.cluster_id != cluster_id or record.database not in counts:
                continue
            count = counts[record.database]
            async with self.projects.control() as control, control.transaction():
                await owe(control, record.id)  # opens the login again, also if this process dies
                detail = {"reason": what, "sessions": count}
                await audit(control, "maintenance", "project.sessions_ended", record.slug, detail)
            owner = sql.Identifier(record.role("owner"))
            await run(admin, sql.SQL("alter role {} nologin").format(owner))
            self.events.emit(Noted(
                f"ended {count} sessions of project {record.slug}", f"too many {what}"
            ))  # fmt: skip
        return len(sessions)


def _database(login: str) -> str:
    return login.rpartition("_")[0]
