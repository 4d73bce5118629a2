"""Closes the login of an owner whose project grows on although it is over its disk quota.

The owner of such a project may make room with SQL and takes its sessions out of read-only for that,
so nothing in Postgres keeps them from filling the disk. What stays is that it has grown.
"""

from __future__ import annotations

from psycopg import sql

from server.base.events import Events, Noted
from server.control.database import Connection, connect, fetch, run
from server.control.lifecycle import owe
from server.control.projects import Projects, audit
from server.control.records import Record
from server.control.usage import Quota

PART = 4  # of the quota, as a divisor, by which it may grow
LEAST = 16 << 20  # bytes by which it may grow anyhow: upkeep and making room take some

BEGAN = """select (detail ->> 'used')::int8 from audit
  where project = $1 and action = 'project.read_only' order by id desc limit 1"""
OPEN = "select rolcanlogin from pg_roles where rolname = $1"
END = "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1"


async def look(projects: Projects, events: Events, record: Record, disk: Quota) -> None:
    """For a project that is over its quota, after each measurement."""
    if not record.read_only or record.state not in ("active", "sleeping"):
        return
    async with projects.control() as control:
        rows = await fetch(control, BEGAN, (record.slug,))
        began = max(rows[0][0] or 0 if rows else 0, disk.limit)
        over = disk.used > began + max(disk.limit // PART, LEAST)
        async with await connect(projects.cluster(record).admin_dsn) as admin:
            found = await fetch(admin, OPEN, (record.role("owner"),))
            is_open = bool(found and found[0][0])
            if over:
                await _close(control, admin, record, disk, is_open)
                if is_open:
                    events.emit(Noted(
                        f"the owner's login of project {record.slug} is closed",
                        "it grows although it is over its disk quota",
                    ))  # fmt: skip
        if not over and not is_open:
            await owe(control, record.id)
            await projects.follow(control, record.id)


async def _close(
    control: Connection, admin: Connection, record: Record, disk: Quota, is_open: bool
) -> None:
    login = record.role("owner")
    if is_open:
        detail = {"used": disk.used, "limit": disk.limit}
        await audit(control, "maintenance", "project.login_closed", record.slug, detail)
        await run(admin, sql.SQL("alter role {} nologin").format(sql.Identifier(login)))
    await fetch(admin, END, (login,))
