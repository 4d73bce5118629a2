"""Measures what the projects' databases take, warns, and stops what would make them larger.

A database is measured while anybody is connected to it, and once after it has done something:
Postgres counts that anyway, but some seconds late. Documents are asked for with the same pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from ichicore.errors import ApiError
from server.base.apart import Apart
from server.base.events import Events, Noted
from server.base.limits import Limits
from server.base.metrics import LIVE, Labels
from server.base.usage import Usage
from server.control.database import Cluster, connect, fetch
from server.control.lifecycle import Lifecycle, shown_state
from server.control.projects import Projects, audit
from server.control.records import Record
from server.control.usage import Quota, quota
from server.maintenance import growth

STAGES = (100, 80)  # percent at which a warning is given, the highest first
SLACK = 5  # percent that use must fall below a stage before it may be told again
WRITABLE = 98  # percent below which a read-only project takes writes again

ACTIVITY = """select datname,
    xact_commit + xact_rollback + tup_inserted + tup_updated + tup_deleted, numbackends
  from pg_stat_database where datname = any($1)"""
SIZES = "select datname, pg_database_size(oid) from pg_database where datname = any($1)"
LEVELS = """select project_id, counter, value from usage where day = '-infinity'
  and counter in ('document_bytes', 'storage_bytes', 'database_bytes')"""
REQUESTS = """select p.slug, coalesce(sum(u.value), 0)::bigint from projects p
  left join usage u on u.project_id = p.id and u.counter = 'requests' group by 1"""
TELL = """insert into quota_notices as n (project_id, quota, stage) values ($1, $2, $3)
  on conflict (project_id, quota) do update set stage = excluded.stage, at = now()
    where n.stage < excluded.stage returning 1"""
NOTICES = "select project_id, quota, stage from quota_notices where stage > 0"
UNTELL = "update quota_notices set stage = $3 where project_id = $1 and quota = $2 and stage > $3"


def stage_of(percent: int) -> int:
    """The warning that a use calls for; 0 for none."""
    return next((stage for stage in STAGES if percent >= stage), 0)


class Quotas:
    """Keeps between passes what was measured. documents_bytes(record) asks the document server."""

    def __init__(self, projects: Projects, usage: Usage, events: Events) -> None:
        self.projects = projects
        self.lifecycle = Lifecycle(projects)
        self.usage = usage
        self.events = events
        self.use: dict[str, tuple[Record, dict[str, Quota]]] = {}  # by project id
        self.requests: list[tuple[str, int]] = []
        self.sessions: list[tuple[str, int]] = []
        self._activity: dict[str, int] = {}  # by database
        self._levels: dict[tuple[str, str], int] = {}
        self._told: dict[tuple[str, str], int] = {}  # stages, by project id and quota

    async def measure(self) -> None:
        """One pass over all projects. What fails of one, or of one server, keeps no other from
        being measured; it is raised at the end."""
        records = await self.projects.all()
        sessions: list[tuple[str, int]] = []
        async with self.projects.control() as control:
            rows = await fetch(control, LEVELS)
            self.requests = [(r[0], r[1]) for r in await fetch(control, REQUESTS)]
            self._told = {(r[0], r[1]): r[2] for r in await fetch(control, NOTICES)}
        self._levels = {(id, counter): value for id, counter, value in rows}
        apart = Apart()
        for cluster_id, cluster in self.projects.clusters.items():
            with apart:
                here = [r for r in records if r.cluster_id == cluster_id]
                sessions += await self._databases(cluster, here)
        present = {record.database for record in records}
        self._activity = {name: n for name, n in self._activity.items() if name in present}
        with apart:
            await self._documents([r for r in records if r.flavor != "postgres"])
        use: dict[str, tuple[Record, dict[str, Quota]]] = {}
        for record in records:
            limits = self.projects.limits(record)
            use[record.id] = record, self.of(record, limits)
            with apart:
                await self._act(record, use[record.id][1])
        self.use = use
        self.sessions = sessions
        apart.end()

    async def _databases(self, cluster: Cluster, records: list[Record]) -> list[tuple[str, int]]:
        """Measures those of a cluster; gives how many sessions each project has there."""
        async with await connect(cluster.admin_dsn) as admin:
            rows = await fetch(admin, ACTIVITY, ([record.database for record in records],))
            active = {name: count for name, count, _ in rows}
            connected = {name: sessions for name, _, sessions in rows if sessions}
            fresh = [
                r for r in records
                if r.database in connected
                or active.get(r.database) != self._activity.get(r.database)
                or (r.id, "database_bytes") not in self._levels
            ]  # fmt: skip
            sizes = dict(await fetch(admin, SIZES, ([r.database for r in fresh],)))
        for record in fresh:
            if record.database in sizes:
                await self._set(record, "database_bytes", int(sizes[record.database]))
        self._activity.update(active)
        return [(r.slug, connected[r.database]) for r in records if r.database in connected]

    def of(self, record: Record, limits: Limits) -> dict[str, Quota]:
        """What the project uses of its quotas."""
        level = self._levels.get
        databases = level((record.id, "database_bytes"), 0) + level(
            (record.id, "document_bytes"), 0
        )
        return {
            "database_bytes": quota(databases, limits.database_bytes),
            "storage_bytes": quota(level((record.id, "storage_bytes"), 0), limits.storage_bytes),
        }

    async def _set(self, record: Record, counter: str, value: int) -> None:
        if self._levels.get((record.id, counter)) != value:
            self._levels[record.id, counter] = value
            await self.usage.set_level(record.id, counter, value)

    async def _documents(self, records: list[Record]) -> None:
        documents = self.projects.documents
        wanted = [r for r in records if r.mongo_url and r.state == "active"]
        if documents is None or not wanted:
            return
        from pymongo.errors import PyMongoError

        by_address = {r.mongo_url: r for r in wanted}
        try:
            async for kept, size in documents.measure([r.mongo_url or "" for r in wanted]):
                await self._set(by_address[kept], "document_bytes", size)
        except (ApiError, PyMongoError) as error:
            self.events.emit(Noted("documents were not measured", str(error)[:200]))

    async def _act(self, record: Record, use: dict[str, Quota]) -> None:
        for name, found in use.items():
            await self._tell(record, name, found)
        disk = use["database_bytes"]
        detail = {"used": disk.used, "limit": disk.limit}
        if disk.percent >= 100 and not record.read_only:
            if await self.lifecycle.read_only(record.id, True, detail):
                self.events.emit(Noted(f"project {record.slug} is read-only: over its disk quota"))
        elif disk.percent < WRITABLE and record.read_only:
            if await self.lifecycle.read_only(record.id, False, detail):
                self.events.emit(Noted(f"project {record.slug} takes writes again"))
        else:
            await growth.look(self.projects, self.events, record, disk)

    async def _tell(self, record: Record, name: str, found: Quota) -> None:
        """A warning at each stage, once on the way up."""
        stage, told = stage_of(found.percent), self._told.get((record.id, name), 0)
        lower = stage_of(found.percent + SLACK)
        if stage <= told and (lower >= told or found.percent >= 100):
            return
        async with self.projects.control() as control:
            if stage <= told:
                await fetch(control, UNTELL, (record.id, name, lower))
            elif await fetch(control, TELL, (record.id, name, stage)):
                detail = {"quota": name, "percent": stage, "used": found.used, "limit": found.limit}
                await audit(control, "node", "quota.warning", record.slug, detail)
                self.events.emit(Noted(f"project {record.slug} uses {found.percent} % of {name}"))

    def gauges(self) -> Iterable[tuple[str, Labels, float]]:
        """For Prometheus."""
        states: dict[str, int] = {}
        for record, use in self.use.values():
            state = shown_state(record)
            states[state] = states.get(state, 0) + 1
            for kind in ("database_bytes", "document_bytes", "storage_bytes"):
                value = self._levels.get((record.id, kind))
                if value is not None:
                    labels = (("project", record.slug), ("kind", kind.removesuffix("_bytes")))
                    yield "ichibase_project_bytes", labels, value
            for name, found in use.items():
                if found.limit:
                    labels = (("project", record.slug), ("quota", name))
                    yield "ichibase_project_quota_ratio", labels, found.used / found.limit
        for slug, count in self.requests:
            yield "ichibase_project_requests_total", (("project", slug),), count
        for slug, count in self.sessions:
            yield LIVE, (("project", slug), ("kind", "database_sessions")), count
        for state, number in states.items():
            yield "ichibase_projects", (("state", state),), number
