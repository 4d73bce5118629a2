"""What a PostgreSQL server has once for all of its databases: how much of it is taken, and by whom.

Where nothing is taken one statement says so. All of them ask functions alone: while the table of
locks is full, nothing can be read that all databases share.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg
from psycopg.pq import ExecStatus

from server.control.database import Connection, fetch
from server.maintenance.memory import taken

FULL = 0.5  # of the table of locks, from which those are ended who have the most
FEW = 64  # locks that a session may have anyhow
QUEUE = 0.2  # of the queue of notifications, from which transactions of projects are ended
LONG = 5.0  # seconds that a transaction may last then
HELD = 0.5  # seconds for which a session of one database may hold up one of another
SNAPSHOTS = 256  # exported ones, each of which is a file
STALLED = 1.0  # seconds without a word with its client of a session that others have to wait for

NAME = b"look"
LOOK = """select count(*)::int4, count(*) filter (where not l.granted
    and l.waitstart < clock_timestamp() - {held} * interval '1 second')::int4,
  pg_notification_queue_usage(),
  (select count(*)::int4 from pg_stat_get_activity(null) where wait_event = 'ProcSignalBarrier'),
  {snapshots}
  from pg_lock_status() l where not l.fastpath"""
EXPORTED = "(select count(*)::int4 from pg_ls_dir('pg_snapshots'))"
ROOM = """select current_setting('max_locks_per_transaction')::int8
  * (current_setting('max_connections')::int8
    + current_setting('max_prepared_transactions')::int8), r.rolsuper, r.oid::int8,
  pg_size_bytes(current_setting('shared_buffers'))
  from pg_roles r where r.rolname = current_user"""

# Each gives sessions: process, database, login, and how much of it they have.
LOCKS = """select l.pid, s.datid::int8, s.usesysid::int8, count(*)::int4 from pg_lock_status() l
  join pg_stat_get_activity(null) s on s.pid = l.pid
  where not l.fastpath group by 1, 2, 3 having count(*) > $1"""
TRANSACTIONS = """select s.pid, s.datid::int8, s.usesysid::int8, 1
  from pg_stat_get_activity(null) s where s.backend_type = 'client backend'
  and s.xact_start < clock_timestamp() - $1 * interval '1 second'"""
# A slot is made by a session of the kind 'walsender', and waits for what is open in all databases.
BLOCKING = """select distinct h.pid, h.datid::int8, h.usesysid::int8, 1
  from pg_lock_status() l
  join pg_stat_get_activity(null) w on w.pid = l.pid and w.backend_type <> 'walsender',
  unnest(pg_blocking_pids(l.pid)) b (pid)
  join pg_stat_get_activity(null) h on h.pid = b.pid
  where not l.granted and l.waitstart < clock_timestamp() - $1 * interval '1 second'
  and h.datid is distinct from w.datid and h.backend_type = 'client backend'"""
# DROP DATABASE waits until all sessions of the server have taken notice; one that waits for its
# client in the middle of a statement, or before it has logged in, takes none.
STALLING = """select s.pid, coalesce(s.datid::int8, 0), coalesce(s.usesysid::int8, 0), 1
  from pg_stat_get_activity(null) s where s.backend_type = 'client backend'
  and s.state in ('active', 'starting') and s.wait_event_type = 'Client'
  and coalesce(s.query_start, s.backend_start) < clock_timestamp() - $1 * interval '1 second'
  and exists (select from pg_stat_get_activity(null) b where b.wait_event = 'ProcSignalBarrier'
    and b.query_start < clock_timestamp() - $1 * interval '1 second')"""
# The names of the files begin with the session's number and that of its transaction.
EXPORTING = """select l.pid, s.datid::int8, s.usesysid::int8, f.files
  from (select split_part(name, '-', 1) as session, split_part(name, '-', 2) as transaction,
      count(*)::int4 as files from pg_ls_dir('pg_snapshots') name group by 1, 2) f
  join pg_lock_status() l on l.locktype = 'virtualxid' and l.granted
    and l.virtualxid = ('x' || f.session)::bit(32)::int4 || '/'
      || ('x' || f.transaction)::bit(32)::int8
  join pg_stat_get_activity(null) s on s.pid = l.pid where f.files > $1"""
# The count is the process that others work for in parallel.
SESSIONS = """select s.pid, s.datid::int8, s.usesysid::int8, coalesce(s.leader_pid, s.pid)
  from pg_stat_get_activity(null) s
  where s.backend_type in ('client backend', 'parallel worker') and s.datid > $1::oid"""


class Held(msgspec.Struct, frozen=True):
    """A session's part of what all share. database and login: their numbers, 0 before it has
    logged in."""

    pid: int
    database: int
    login: int
    count: int


class Strain:
    """Looks at one server, always by the same session."""

    def __init__(self) -> None:
        self._room: tuple[Any, ...] | None = None
        self._prepared = False

    async def look(self, admin: Connection) -> dict[str, list[Held]]:
        """Sessions that take too much, by what they take. Empty where nobody does."""
        if self._room is None:
            self._room = (await fetch(admin, ROOM))[0]
        room, superuser, own, _ = self._room
        if not self._prepared:
            look = LOOK.format(snapshots=EXPORTED if superuser else "0", held=HELD)
            await fetch(admin, f"prepare {NAME.decode()} as {look}")
            self._prepared = True
        locks, waiting, queue, barriers, snapshots = await _once(admin.pgconn)
        found: dict[str, list[Held]] = {}
        if locks > room * FULL:
            found["locks"] = await _ask(admin, LOCKS, FEW)
        if queue > QUEUE:
            found["notifications"] = await _ask(admin, TRANSACTIONS, LONG)
        if waiting:
            found["waits"] = await _ask(admin, BLOCKING, HELD)
        if barriers:
            found["silence"] = await _ask(admin, STALLING, STALLED)
        if snapshots > SNAPSHOTS:
            found["snapshots"] = await _ask(admin, EXPORTING, SNAPSHOTS // 4)
        return {
            what: kept for what, sessions in found.items()
            if (kept := [one for one in sessions if one.login != own])
        }  # fmt: skip

    async def most_memory(self, admin: Connection, much: float) -> list[Held]:
        """The session that takes the most of the project that takes the most; of the server's own
        machine. None where that is less than `much` bytes."""
        assert self._room is not None
        _, _, own, buffers = self._room
        sessions: dict[int, Held] = {}
        projects: dict[int, int] = {}
        for one in await _ask(admin, SESSIONS, 0):
            size = taken(one.pid, buffers)
            projects[one.database] = projects.get(one.database, 0) + size
            if one.login != own:
                before = sessions.get(one.count)
                size += before.count if before else 0
                sessions[one.count] = Held(one.count, one.database, one.login, size)
        found = [one for one in sessions.values() if one.count >= much]
        found.sort(key=lambda one: (projects[one.database], one.count))
        return found[-1:]

    def too_much(self, locks: int) -> bool:
        """Whether so many locks are more than what is to be taken of the table."""
        return self._room is not None and locks > self._room[0] * FULL


async def _once(pgconn: Any) -> list[float]:
    """The row of the prepared look, with a quarter of what a cursor would take."""
    pgconn.send_query_prepared(NAME, None)
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    pgconn.flush()
    loop.add_reader(pgconn.socket, _arrived, pgconn, ready)
    try:
        await ready
    finally:
        loop.remove_reader(pgconn.socket)
    row: list[float] = []
    failed = None
    while (result := pgconn.get_result()) is not None:  # to the end, or nothing can be sent again
        if result.status != ExecStatus.TUPLES_OK:
            failed = result
            continue
        row = [float(result.get_value(0, place)) for place in range(result.nfields)]
    if failed is not None:
        raise psycopg.errors.error_from_result(failed)
    return row


def _arrived(pgconn: Any, ready: asyncio.Future[None]) -> None:
    try:
        pgconn.consume_input()
        if not pgconn.is_busy() and not ready.done():
            ready.set_result(None)
    except psycopg.OperationalError as error:
        if not ready.done():
            ready.set_exception(error)


async def _ask(admin: Connection, query: str, bound: float) -> list[Held]:
    return [Held(*row) for row in await fetch(admin, query, (bound,))]
