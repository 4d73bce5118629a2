"""/postgres of the projects: one REST engine for each, its catalog kept current.

A project's engine is made with its first request and dropped when it has been idle, with its
listening connection. NOTIFY pgrst in the project's database reloads the catalog; a request for
something that the catalog lacks reloads it too, at most once in RELOAD_PAUSE, so that a table is
there as soon as its creation is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import psycopg

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError
from server.base.context import WorkerContext
from server.base.http import Request, Response
from server.base.project import Project
from server.postgres import faults, introspect
from server.postgres.execute import search_path
from server.postgres.pool import Pool
from server.postgres.service import RestEngine, RestRequest
from server.postgres.settings import RestSettings

CHANNEL = "pgrst"
RELOAD_PAUSE = 0.2  # seconds between reloads that requests ask for
IDLE_SECONDS = 600.0
SWEEP_SECONDS = 30.0
RETRY_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
# What a request is told that the catalog has nothing for; it may be older than the database.
UNKNOWN = (b'"PGRST200"', b'"PGRST202"', b'"PGRST204"', b'"PGRST205"')


def rest_settings(project: Project, node_timeout_ms: int) -> RestSettings:
    """The engine's settings out of the project's section `postgres`."""
    given = {k: v for k, v in project.settings.get("postgres", {}).items() if v is not None}
    known = {field.name for field in msgspec.structs.fields(RestSettings)}
    values = {name: value for name, value in given.items() if name in known}
    values.setdefault("statement_timeout_ms", node_timeout_ms)
    made = msgspec.convert(
        {
            **values,
            "anon_role": "anon",
            "base_path": "/postgres",
            "concatenate_order": True,
            "profile_on_rpc_head": True,
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
        self._loaded_at = 0.0
        self._loading: asyncio.Task[None] | None = None
        self._stale = False
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def ready(self) -> None:
        """Waits for the first catalog. PgUnavailable and its fellows when the database is away."""
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listening.wait(), 2.0)
        await self.reload()

    async def reload(self) -> None:
        """Reads the catalog; those who ask meanwhile wait for the same reading, or for the next
        one when the schema has changed since it began."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        self._stale = False
        self._version += 1
        catalog = await introspect.load(self.pool.fetch, self.settings, self._version)
        self.pool.forget()
        # Settings of the roles are left alone here: the three roles belong to every project of
        # the cluster, and whoever may switch to one may change its settings (ALTER ROLE ... SET).
        self.engine.use(catalog, self.settings, {})
        self._loaded_at = time.monotonic()

    def _loaded(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        failed = not task.cancelled() and task.exception() is not None
        if self._stale and not failed and self._listener is not None:
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
                return faults.pool_error(error, minimal=False)
        identity = request.identity
        body = b""
        if request.method in {"POST", "PATCH", "PUT"}:
            body = await request.read_body()  # type: ignore[call-arg]
        asked = RestRequest(
            request.method,
            request.path,
            request.query.encode(),
            request.headers,
            body,
            role=identity.role,
            claims_json=identity.claims_json,
            is_anonymous=identity.role == "anon",
            base_url=request.base_url,
        )
        response = await self.engine.handle(asked)
        if response.status >= 400 and self._may_be_old(response):
            with contextlib.suppress(PgError, *faults.POOL_ERRORS):
                await self.reload()
                response = await self.engine.handle(asked)
        return response

    def _may_be_old(self, response: Response) -> bool:
        return (
            response.status in {400, 404}
            and any(code in response.body for code in UNKNOWN)
            and (self._loading is not None or time.monotonic() - self._loaded_at > RELOAD_PAUSE)
        )

    async def _listen(self) -> None:
        """Reloads on every NOTIFY; after a lost connection too, since some may have been missed."""
        failures = 0
        lost = False
        while True:
            try:
                connection: Any = await psycopg.AsyncConnection.connect(
                    self.project.authenticator_dsn or "", autocommit=True, connect_timeout=5,
                    application_name="ichibase schema", keepalives_idle=30,
                )  # fmt: skip
                async with connection:
                    await connection.execute(f"listen {CHANNEL}")
                    self._listening.set()
                    failures = 0
                    if lost:
                        self._changed()
                    async for notice in connection.notifies():
                        if notice.payload in {"", "reload schema"}:
                            self._changed()
            except (psycopg.Error, OSError):
                pass
            lost = True
            await asyncio.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
            failures += 1

    def _changed(self) -> None:
        self._stale = True
        if self._loading is None:
            asyncio.get_running_loop().create_task(self._reload_quietly())

    def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None


class PostgresService:
    """Mounted at /postgres."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.projects: dict[str, ProjectRest] = {}
        self._sweeper: asyncio.Task[None] | None = None
        context.directory.on_change(self._changed)

    async def handle(self, request: Request) -> Response:
        rest = self.projects.get(request.project.id)
        if rest is None or rest.project is not request.project:
            rest = self._made(request.project, rest)
        return await rest.answer(request)

    def _made(self, project: Project, before: ProjectRest | None) -> ProjectRest:
        if project.authenticator_dsn is None:
            raise ApiError(404, "postgres_not_enabled", "This project has no Postgres database.")
        if before is not None:
            before.close()
        settings = rest_settings(project, self.context.config.statement_timeout_ms)
        rest = ProjectRest(project, self.context.pools.data(project), settings)
        self.projects[project.id] = rest
        return rest

    def _changed(self, project: Project | None, slug: str) -> None:
        for id, rest in list(self.projects.items()):
            if rest.project.slug == slug and rest.project is not project:
                rest.close()
                del self.projects[id]

    async def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            oldest = time.monotonic() - IDLE_SECONDS
            for id, rest in list(self.projects.items()):
                if rest.used < oldest:
                    rest.close()
                    del self.projects[id]

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for rest in self.projects.values():
            rest.close()
        self.projects.clear()


async def create(context: WorkerContext) -> PostgresService:
    service = PostgresService(context)
    context.on_start.append(service.start)
    context.on_stop.append(service.stop)
    return service
