"""Keeps one project from having all of the workers that vacuum and analyze a server's tables.

Postgres has few of them for all databases, and lets each go on for as long as it takes: it
evaluates the owner's functions in indexes and statistics, and sleeps between two pages as long as
the owner has said of the table. So while none is free, those end that have computed for long, and
some of a project that has more than half. Postgres comes back to their tables later.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import psycopg

from server.base.apart import Apart
from server.base.events import Events, Noted
from server.control.database import Cluster, Connection, connect, fetch
from server.control.projects import Projects, audit

COMPUTING = 30.0  # seconds of one table's columns
LONG = 60.0  # seconds with one table

WORKERS = """select a.pid, a.datname::text,
    extract(epoch from clock_timestamp() - a.xact_start)::float8,
    coalesce(p.phase like 'computing%', false), a.query like '%(to prevent wraparound)'
  from pg_stat_activity a left join pg_stat_progress_analyze p on p.pid = a.pid
  where a.backend_type = 'autovacuum worker' and a.xact_start is not null order by 3 desc"""
MOST = "select current_setting('autovacuum_max_workers')::int"


class Worker(msgspec.Struct, frozen=True):
    """seconds: with its table. computes: it has that table's rows and computes. needed: it keeps
    transaction numbers from running out."""

    pid: int
    database: str
    seconds: float
    computes: bool
    needed: bool


def in_the_way(workers: list[Worker], most: int) -> list[Worker]:
    """Those of `workers`, the longest at work first, that are to end so that others get a turn.
    most: how many the server has."""
    if len(workers) < most:
        return []
    left = Counter(one.database for one in workers)
    found = []
    for one in workers:
        many = left[one.database] > max(1, most // 2)
        if (many and one.seconds > LONG and not one.needed) or (
            one.computes and one.seconds > COMPUTING
        ):
            left[one.database] -= 1
            found.append(one)
    return found


async def give_turns(projects: Projects, events: Events) -> int:
    """Looks at all clusters; gives how many workers were ended."""
    ended, apart = 0, Apart()
    names = {record.database: record.slug for record in await projects.all(deleted=True)}
    for cluster in projects.clusters.values():
        with apart:
            ended += await _look(projects, events, cluster, names)
    apart.end()
    return ended


async def _look(projects: Projects, events: Events, cluster: Cluster, names: dict[str, str]) -> int:
    ended = 0
    async with await connect(cluster.admin_dsn) as admin:
        most = (await fetch(admin, MOST))[0][0]
        workers = [Worker(*row) for row in await fetch(admin, WORKERS)]
        for one in in_the_way(workers, most):
            slug = names.get(one.database)
            if slug is None or not await _end(admin, one.pid):
                continue
            ended += 1
            detail = {"reason": "vacuum", "sessions": 1}
            async with projects.control() as control:
                await audit(control, "maintenance", "project.sessions_ended", slug, detail)
            events.emit(Noted(f"ended a vacuum of project {slug}"))
    return ended


async def _end(admin: Connection, pid: int) -> bool:
    """False where the administrator may not."""
    try:
        return bool((await fetch(admin, "select pg_terminate_backend($1)", (pid,)))[0][0])
    except psycopg.errors.InsufficientPrivilege:
        return False
