"""Puts projects to sleep that nobody uses, and ends sessions that hold others up."""

from __future__ import annotations

from ichicore.errors import ApiError
from server.base.apart import Apart
from server.base.events import Events, Noted
from server.base.limits import Limits
from server.control.database import Cluster, connect, fetch
from server.control.lifecycle import CHANGED, Lifecycle
from server.control.projects import Projects, audit
from server.control.provision import NEW
from server.control.records import Record

DAY = 86_400.0
GRACE = 2.0  # times its limit after which a session is ended that has changed its own settings
OLDEST = 10.0  # seconds; younger sessions are not looked at

# Seconds since a project was last used: counted, woken or made.
IDLE = """select p.id, extract(epoch from now() - greatest(p.state_at, p.created_at,
    coalesce((select max(u.changed_at) from usage u where u.project_id = p.id
      and u.day >= now() - $1 * interval '1 day'), p.created_at)))::float8
  from projects p where p.state = 'active'"""
# Logins that did something of late, or are at it.
USED = """select usename::text,
    extract(epoch from now()
      - max(case when state = 'idle' then state_change else now() end))::float8
  from pg_stat_activity where usename = any($1) group by 1"""
HELD_UP = """select pid, usename::text, state,
    extract(epoch from now() - state_change)::float8,
    extract(epoch from now() - query_start)::float8
  from pg_stat_activity where usename like 'ichi\\_%' and backend_type = 'client backend'
    and right(datname, length($2)) <> $2  -- a restore takes as long as it takes
    and state <> 'idle' and least(state_change, query_start) < now() - $1 * interval '1 second'"""


async def put_to_sleep(projects: Projects, events: Events) -> list[str]:
    """The projects that are put to sleep, by name."""
    found = []
    records = {r.id: r for r in await projects.all() if r.state == "active"}
    limits = {id: projects.limits(record).sleep_days for id, record in records.items()}
    if not any(limits.values()):
        return []
    async with projects.control() as control:
        idle = dict(await fetch(control, IDLE, (max(limits.values()) + 2,)))
    due = [
        records[id] for id, days in limits.items()
        if days and idle.get(id, 0.0) > days * DAY
        and records[id].slug != projects.config.default_project
    ]  # fmt: skip
    apart = Apart()
    for cluster_id, cluster in projects.clusters.items():
        here = [record for record in due if record.cluster_id == cluster_id]
        used: dict[str, float] | None = None
        with apart:
            used = await _used(cluster, here)
        if used is None:
            continue
        for record in here:
            seconds = used.get(record.role("owner"))
            if seconds is not None and seconds < limits[record.id] * DAY:
                continue  # its developer is connected
            with apart:
                try:
                    await Lifecycle(projects).step(record.slug, "sleep", "maintenance")
                except ApiError as error:
                    if error.code not in CHANGED:
                        raise
                else:
                    found.append(record.slug)
    if found:
        events.emit(Noted("projects went to sleep", ", ".join(found)))
    apart.end()
    return found


async def _used(cluster: Cluster, records: list[Record]) -> dict[str, float]:
    """Seconds since the owners' logins that are connected did something, by login."""
    if not records:
        return {}
    async with await connect(cluster.admin_dsn) as admin:
        return dict(await fetch(admin, USED, ([r.role("owner") for r in records],)))


async def end_what_holds_up(projects: Projects, events: Events) -> int:
    """Ends sessions of projects that stay in a transaction, and statements of owners that run, far
    beyond what their tier allows; their own settings could only set defaults. Gives how many."""
    ended = 0
    records = {}
    for record in await projects.all():
        limits = projects.limits(record)
        for kind in ("owner", "authenticator", "system"):
            records[record.role(kind)] = record, limits
    apart = Apart()
    for cluster in projects.clusters.values():
        with apart:
            ended += await _end(projects, events, cluster, records)
    apart.end()
    return ended


async def _end(
    projects: Projects, events: Events, cluster: Cluster, records: dict[str, tuple[Record, Limits]]
) -> int:
    ended = 0
    async with await connect(cluster.admin_dsn) as admin:
        for pid, login, state, idle, running in await fetch(admin, HELD_UP, (OLDEST, NEW)):
            if login not in records:
                continue
            record, limits = records[login]
            over = running * 1000 > GRACE * limits.owner_statement_ms
            if state.startswith("idle in transaction"):
                over = idle * 1000 > GRACE * limits.idle_transaction_ms
            if over:
                await fetch(admin, "select pg_terminate_backend($1)", (pid,))
                ended += 1
                detail = {"reason": "time", "state": state, "sessions": 1}
                async with projects.control() as control:
                    await audit(
                        control, "maintenance", "project.sessions_ended", record.slug, detail
                    )
                events.emit(Noted(f"ended a session of project {record.slug}", state))
    return ended
