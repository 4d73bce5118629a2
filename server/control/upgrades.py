"""Brings what a project has on its cluster up to the version of this program.

A project that an older program made is `outdated` to whoever serves requests, and waits to be
brought up to date (server/maintenance/upgrades.py). Every step may be repeated, and the version is
noted last: an upgrade that is killed is done again as a whole. One that fails is noted, so that the
project is refused at once and others are not kept waiting.
"""

from __future__ import annotations

from typing import Any

import psycopg

from ichicore.errors import ApiError
from server.base.migrations import MigrationError
from server.control import provision, records
from server.control.database import Connection, connect, fetch
from server.control.projects import Projects, audit, locked, migrate
from server.control.records import VERSION, Record

TRIES = 3

# Those that are in use come first, the last used of them before the others.
OUTDATED = """select p.id, p.slug from projects p
  where p.provisioned < $1 and p.state in ('active', 'sleeping', 'suspended')
  order by p.slug <> $2, p.state <> 'active', (
    select max(u.changed_at) from usage u where u.project_id = p.id) desc nulls last, p.slug"""
FEED_LOGIN = """update projects set feed_password = encode(sha256(uuid_send(gen_random_uuid())
    || uuid_send(gen_random_uuid())), 'hex') where id = $1 and feed_password = ''"""
FAILED = """update projects set upgrade_fault = $2 where id = $1
  and upgrade_fault is distinct from $2"""


async def outdated(projects: Projects) -> list[tuple[str, str]]:
    """(id, name) of the projects that lack something, in the order in which to take them."""
    async with projects.control() as control:
        wanted = (VERSION, projects.config.default_project)
        rows = await fetch(control, OUTDATED, wanted)
    return [(id, slug) for id, slug in rows]


async def upgrade(projects: Projects, project_id: str) -> str | None:
    """Bring one project up to date. Gives what stands in the way, None where nothing does;
    psycopg.OperationalError or ApiError when a database server is away."""
    async with projects.control() as control, locked(control, project_id):
        record = await _read(control, project_id)
        if record is None or record.provisioned >= VERSION:
            return None
        cluster = projects.cluster(record)
        if not record.feed_password:
            await control.execute(FEED_LOGIN, (project_id,))
            record = await _read(control, project_id)
            assert record is not None
        for attempt in range(TRIES):
            try:
                await provision.provision(cluster, record, projects.limits(record))
                await migrate(records.to_project(record, projects.config))
                break
            except (psycopg.Error, MigrationError) as error:
                if attempt + 1 < TRIES and _passes(error):
                    await provision.end_sessions(cluster, record.database)
                    continue
                async with await connect(cluster.admin_dsn):
                    pass  # raises when the server is away, which is nothing about the project
                fault = str(error).strip() or type(error).__name__
                await _failed(control, record, fault)
                return fault
        async with control.transaction():
            await control.execute(
                "update projects set provisioned = $2, upgrade_fault = null where id = $1",
                (project_id, VERSION),
            )
            detail = {"from": record.provisioned, "to": VERSION}
            await audit(control, "node", "project.upgrade", record.slug, detail)
    return None


async def _read(control: Connection, project_id: str) -> Record | None:
    rows = await fetch(control, records.SELECT_BY_ID, (project_id,))
    record = records.read(rows[0][0]) if rows else None
    return None if record is None or record.state in ("creating", "removing") else record


async def _failed(control: Connection, record: Record, fault: str) -> None:
    async with control.transaction():
        done = await control.execute(FAILED, (record.id, fault[:2000]))
        if done.rowcount:
            detail: dict[str, Any] = {"to": VERSION, "error": fault[:500]}
            await audit(control, "node", "project.upgrade_failed", record.slug, detail)


def _passes(error: Exception) -> bool:
    """Whether it comes from what others do in the database at this moment."""
    if isinstance(error, psycopg.errors.InternalError_):
        return "concurrently" in str(error)
    return isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected)


def failed(fault: str) -> ApiError:
    """The answer to an administrator whose upgrade of a project failed."""
    return ApiError(409, "upgrade_failed", f"The project was not brought up to date: {fault}")
