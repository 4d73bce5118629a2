"""/postgres of the projects: one REST engine for each, its catalog kept current.

A project's engine is made with its first request and dropped when it has been idle, with its
listening connection. NOTIFY pgrst in the project's database reloads the catalog. A request for
something that the catalog lacks looks whether the schema has changed, so that a table is there as
soon as its creation is committed; the look is cheap, because anybody can ask for what is not there.
Where no event trigger can announce changes, a look a second finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import msgspec

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError
from server.base import processor
from server.base.context import MAX_ENGINES, WorkerContext
from server.base.http import Request, Response
from server.base.listen import Listener
from server.base.project import Project, over_quota
from server.postgres import faults, introspect
from server.postgres.execute import search_path
from server.postgres.pool import Pool
from server.postgres.service import RestEngine, RestRequest
from server.postgres.settings import BUSY, RestSettings

CHANNEL = "pgrst"
POLL_SECONDS = 1.0
IDLE_SECONDS = 600.0
IDLE_POLL = 30.0  # seconds without a request after which nobody looks for changes
SWEEP_SECONDS = 30.0
CATALOG_SECONDS = 60.0  # that a statement about the schema may take, whatever others may
BODIES = frozenset({"POST", "PATCH", "PUT"})
MOST_PAUSE = 10.0  # seconds between two readings of a catalog
# What a request is told that the catalog has nothing for; it may be older than the database.
UNKNOWN = (b'"PGRST200"', b'"PGRST202"', b'"PGRST204"', b'"PGRST205"')

ANNOUNCED = "select 1 from pg_event_trigger where evtname = 'ichibase_ddl' and evtenabled <> 'D'"
# Changes with every relation, column, routine, type, constraint and schema that does.
FINGERPRINT = """
select md5(string_agg(x, ',' order by x)) from (
  select 'c' || oid || ':' || xmin from pg_class where oid > 16383
  union all select 'a' || attrelid || '.' || attnum || ':' || xmin
    from pg_attribute where attrelid > 16383 and attnum > 0
  union all select 'p' || oid || ':' || xmin from pg_proc where oid > 16383
  union all select 'k' || oid || ':' || xmin from pg_constraint where oid > 16383
  union all select 'n' || oid || ':' || xmin from pg_namespace where oid > 16383
  union all select 't' || oid || ':' || xmin from pg_type where oid > 16383
) changes(x)"""

log = logging.getLogger("ichibase.postgres")
# By server and its version: the same for all projects of a cluster.
TIMEZONES: dict[str, dict[int, frozenset[str]]] = {}


def server_of(project: Project) -> str:
    """Where the project's database is, without its name and login."""
    address = (project.authenticator_dsn or "").rpartition("@")[2]
    place, _, options = address.partition("?")
    return f"{place.partition('/')[0]}?{options}"


def statement_timeout(project: Project, node_timeout_ms: int) -> int:
    """Milliseconds: the project's own setting, else the node's; never more than its tier has."""
    own = project.settings.get("postgres", {}).get("statement_timeout_ms")
    wanted = own if isinstance(own, int) and own > 0 else node_timeout_ms
    return min(wanted, project.limits.statement_ms)


def rest_settings(project: Project, node_timeout_ms: int) -> RestSettings:
    """The engine's settings out of the project's section `postgres`."""
    given = {k: v for k, v in project.settings.get("postgres", {}).items() if v is not None}
    known = {field.name for field in msgspec.structs.fields(RestSettings)}
    values = {name: value for name, value in given.items() if name in known}
    values["statement_timeout_ms"] = statement_timeout(project, node_timeout_ms)
    made = msgspec.convert(
        {
            **values,
            "anon_role": "anon",
            "base_path": "/postgres",
            "concatenate_order": True,
            "profile_on_rpc_head": True,
            "writes": not project.read_only,
            "busy_status": BUSY,
        },
        RestSettings,
    )
    preset = (
        ("search_path", search_path(made.schemas[0], made.extra_search_path)),
        ("statement_timeout", str(made.statement_timeout_ms)),
    )
    return msgspec.structs.replace(made, preset=preset)


class ProjectRest:
    """The engine of one project in this worker."""

    def __init__(self, project: Project, pool: Pool, settings: RestSettings) -> None:
        self.project = project
        self.settings = settings
        self.engine = RestEngine(settings, pool)
        self.pool = pool
        self.used = time.monotonic()
        self._version = 0
        self._fingerprint: str | None = None
        self._loaded_version = 0
        self._looked_at = 0.0
        self._looking = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._stale = False
        self._load_after = 0.0  # when a catalog may be read again
        self._began = asyncio.Event()
        self._listener = Listener(
            project.authenticator_dsn or "",
            CHANNEL,
            "ichibase schema",
            self._told,
            self._listens,
            self._lost,
        )
        self._poller: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Waits for the first catalog. PgUnavailable and its fellows when the database is away."""
        if self._poller is None:
            self._listener.start()
            self._poller = asyncio.get_running_loop().create_task(self._poll())
            # The pool's first connection is made beside the one that listens.
            with contextlib.suppress(TimeoutError):
                await asyncio.gather(
                    asyncio.wait_for(self._began.wait(), 2.0), self.pool.fetch("select 1")
                )
        await self.reload()

    async def reload(self) -> None:
        """Reads the catalog; those who ask meanwhile wait for the same reading, or for the next
        one when the schema has changed since it began."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        await asyncio.shield(self._loading)

    async def _fetch(self, sql: str, params: tuple[object, ...] = ()) -> list[introspect.Row]:
        return await self.pool.fetch(sql, params, timeout=CATALOG_SECONDS)

    async def _load(self) -> None:
        """However often its schema changes, a project with less than a full weight has that part of
        the time for it: the worker serves others too."""
        if (pause := self._load_after - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        began = time.monotonic()
        await self._read()
        now = time.monotonic()
        times = processor.FULL / self.project.limits.cpu_weight - 1
        self._load_after = now + min(MOST_PAUSE, (now - began) * times)

    async def _read(self) -> None:
        self._stale = False
        self._version += 1
        ((fingerprint,),) = await self._fetch(FINGERPRINT)
        known = TIMEZONES.setdefault(server_of(self.project), {})
        catalog = await introspect.load(
            self._fetch, self.settings, self._version, known_timezones=known
        )
        self.pool.forget()
        # Settings of the roles are left alone here: the three roles belong to every project of
        # the cluster, and whoever may switch to one may change its settings (ALTER ROLE ... SET).
        self.engine.use(catalog, self.settings, {})
        self._fingerprint = fingerprint
        self._loaded_version = catalog.version

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        failed = not task.cancelled() and task.exception() is not None
        if self._stale and not failed and self._poller is not None:
            asyncio.get_running_loop().create_task(self._reload_quietly())

    async def _reload_quietly(self) -> None:
        """After a notification: the old catalog stays in use when the database is away."""
        with contextlib.suppress(PgError, *faults.POOL_ERRORS):
            await self.reload()

    async def answer(self, request: Request) -> Response:
        self.used = time.monotonic()
        if self.engine.catalog is None:
            try:
                await self.ready()
            except PgError as error:
                return faults.database_error(error, authenticated=True, minimal=False)
            except faults.POOL_ERRORS as error:
                return faults.pool_error(error, busy=BUSY)
        identity = request.identity
        method = request.method
        path = request.path
        body = b""
        if method in BODIES:
            body = await request.read_body()  # type: ignore[call-arg]
        asked = RestRequest(
            method,
            path,
            request.query.encode(),
            request.headers,
            body,
            role=identity.role,
            claims_json=identity.claims_json,
            is_anonymous=identity.role == "anon",
            base_url=request.base_url if path == "/" else "",
        )
        response = await self.engine.handle(asked)
        if response.status == 405 and self.project.read_only and b'"25006"' in response.body:
            raise over_quota()
        if response.status in {400, 404} and any(code in response.body for code in UNKNOWN):
            with contextlib.suppress(PgError, *faults.POOL_ERRORS):
                if await self.refreshed():
                    response = await self.engine.handle(asked)
        return response

    async def refreshed(self) -> bool:
        """Looks for changes of the schema; true when a newer catalog has been read. Those who ask
        while one looks share the next look."""
        arrived, version = time.monotonic(), self._loaded_version
        async with self._looking:
            if self._looked_at < arrived:
                if self._loading is not None:
                    await self.reload()
                self._looked_at = time.monotonic()
                ((found,),) = await self._fetch(FINGERPRINT)
                if found != self._fingerprint:
                    await self.reload()
        return self._loaded_version != version

    async def _poll(self) -> None:
        announced: bool | None = None
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - self.used > IDLE_POLL or self.engine.catalog is None:
                continue
            with contextlib.suppress(PgError, *faults.POOL_ERRORS):
                if announced is None:
                    announced = bool(await self._fetch(ANNOUNCED))
                if announced:
                    return
                await self.refreshed()

    def _told(self, payload: str) -> None:
        if payload in {"", "reload schema", "reload config"}:
            self._changed()

    def _listens(self) -> None:
        if self._began.is_set():
            self._changed()  # what was told during the break is lost
        self._began.set()

    def _lost(self, reason: str) -> None:
        log.warning("project %s: no notices of schema changes: %s", self.project.slug, reason)

    def _changed(self) -> None:
        self._stale = True
        if self._loading is None:
            asyncio.get_running_loop().create_task(self._reload_quietly())

    async def close(self) -> None:
        self._began.set()  # who waits for the first notice need not
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
            await self._listener.stop()


class PostgresService:
    """Mounted at /postgres."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.projects: dict[str, ProjectRest] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        context.directory.on_change(self._changed)

    async def handle(self, request: Request) -> Response:
        rest = self.projects.get(request.project.id)
        if rest is None or rest.project is not request.project:
            rest = self._made(request.project, rest)
        return await rest.answer(request)

    def _made(self, project: Project, before: ProjectRest | None) -> ProjectRest:
        if project.authenticator_dsn is None:
            raise ApiError(404, "postgres_not_enabled", "This project has no Postgres database.")
        if before is None and len(self.projects) >= MAX_ENGINES:
            before = min(self.projects.values(), key=lambda rest: rest.used)
        if before is not None:
            self._close(before)
        settings = rest_settings(project, self.context.config.statement_timeout_ms)
        rest = ProjectRest(project, self.context.pools.data(project), settings)
        self.projects[project.id] = rest
        return rest

    def _changed(self, project: Project | None, slug: str) -> None:
        for rest in list(self.projects.values()):
            if rest.project.slug == slug and rest.project is not project:
                self._close(rest)

    async def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = time.monotonic() - IDLE_SECONDS
            for rest in list(self.projects.values()):
                if rest.used < oldest:
                    self._close(rest)

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for rest in list(self.projects.values()):
            self._close(rest)
        if self._closing:
            await asyncio.wait(self._closing)

    def _close(self, rest: ProjectRest) -> None:
        self.projects.pop(rest.project.id, None)
        task = asyncio.get_running_loop().create_task(rest.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def create(context: WorkerContext) -> PostgresService:
    service = PostgresService(context)
    context.on_start.append(service.start)
    context.on_stop.append(service.stop)
    return service
