"""The admin REST API: projects, settings, SQL. An own port, one bearer token."""

from __future__ import annotations

import asyncio
import hmac
import importlib
import importlib.util
import itertools
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.base.project import Flavor, Project
from server.control import records, sections, sqlrun, tenancy
from server.control.database import Cluster
from server.control.lifecycle import Lifecycle, shown_state
from server.control.owners import LOCAL_OWNER
from server.control.projects import Projects, away, no_documents, no_room
from server.control.records import Record
from server.control.routes import BODY_LIMIT, AdminRequest, AdminResponse, Router, openapi
from server.mongo.address import read_server
from server.mongo.provision import Documents

CATCH_UP_PAUSES = (1.0, 5.0, 30.0, 120.0, 600.0)  # seconds; the last one repeats
READY_SECONDS = 5.0  # that the control database has to answer
ROOMS = ("auth", "mongo", "storage", "realtime", "functions", "backup")


class CreateProject(msgspec.Struct, forbid_unknown_fields=True):
    """owner: made when it is not known."""

    name: str
    flavor: str = "postgres"
    tier: str = "pro"
    owner: str = LOCAL_OWNER


class RunSql(msgspec.Struct, forbid_unknown_fields=True):
    """timeout_ms: for all of the statements."""

    sql: str
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=sqlrun.LONGEST_TIMEOUT_MS)] = sqlrun.TIMEOUT_MS


class Migration(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    sql: str


class ShownProject(msgspec.Struct):
    """A project with its secrets. database_url: the owner's login. jwt_secret: None unless the
    tokens are signed with a shared secret. state: active, read-only, sleeping, suspended or
    deleting. reason: why it is suspended, or was before it was deleted. delete_at: when a deleted
    one is removed for good.
    limits: numbers that replace its tier's."""

    name: str
    flavor: Flavor
    tier: str
    url: str
    anon_key: str
    service_key: str
    jwt_secret: str | None
    database_url: str | None
    mongo_url: str | None
    created_at: str
    owner: str
    state: str
    reason: str | None
    delete_at: str | None
    limits: dict[str, Any]


class Column(msgspec.Struct):
    name: str
    type: str


class SqlResult(msgspec.Struct):
    """Of one statement. truncated: rows were dropped that row_count still counts."""

    command: str
    row_count: int
    columns: list[Column]
    rows: list[list[Any]]
    truncated: bool


class SqlResults(msgspec.Struct):
    results: list[SqlResult]


class Migrated(msgspec.Struct):
    """applied: False when it had been applied before."""

    name: str
    applied: bool


class Applied(msgspec.Struct):
    name: str
    checksum: str
    applied_at: str


class Deleted(msgspec.Struct, omit_defaults=True):
    """kept_until: until then the project can be brought back; absent when it is gone."""

    deleted: bool
    kept_until: str | None = None


def shown(record: Record, project: Project) -> ShownProject:
    key = next((key for key in record.keys if key.current), None)
    return ShownProject(
        name=record.slug,
        flavor=record.flavor,
        tier=record.tier,
        url=project.url,
        anon_key=record.anon_key,
        service_key=record.service_key,
        jwt_secret=key.secret if key and key.algorithm == "HS256" else None,
        database_url=project.owner_dsn,
        mongo_url=project.mongo_url,
        created_at=record.created_at,
        owner=record.owner,
        state=shown_state(record),
        reason=record.reason,
        delete_at=record.delete_at,
        limits=record.limits,
    )


class AdminApi:
    """Handlers over the control database. Other rooms add theirs by `register(router, api)` in
    server/<room>/admin.py."""

    def __init__(self, projects: Projects) -> None:
        self.projects = projects
        self.lifecycle = Lifecycle(projects)
        self.router = Router()
        add = self.router.add
        add("GET", "/healthz", self.health, "Whether the process runs", public=True)
        add("GET", "/readyz", self.ready, "Whether the control database answers", public=True)
        add("GET", "/metrics", self.metrics, "Prometheus metrics of all workers")
        add("GET", "/admin/v1/openapi.json", self.document, "This document")
        every, project = "/admin/v1/projects", "/admin/v1/projects/{project}"
        add("GET", every, self.list, "All projects", result=list[ShownProject])
        add("POST", every, self.create, "Create a project",
            body=CreateProject, result=ShownProject)  # fmt: skip
        add("GET", project, self.get, "One project", result=ShownProject)
        add(
            "DELETE",
            project,
            self.delete,
            "Delete a project; it is kept for a week unless ?now=true",
            result=Deleted,
        )
        section, values = (
            project + "/settings/{section}",
            tuple(map(sections.shape, sections.SECTIONS)),
        )
        add("GET", section, self.get_settings, "A section of the settings", result=values)
        add("PUT", section, self.put_settings, "Replace a section of the settings",
            body=values, result=values)  # fmt: skip
        add("POST", project + "/sql", self.sql, "Run SQL as the owner",
            body=RunSql, result=SqlResults)  # fmt: skip
        add("POST", project + "/migrations", self.migrate, "Apply a migration once",
            body=Migration, result=Migrated)  # fmt: skip
        add("GET", project + "/migrations", self.migrations, "Migrations applied so far",
            result=list[Applied])  # fmt: skip
        tenancy.register(self.router, self)
        for room in ROOMS:
            name = f"server.{room}.admin"
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name).register(self.router, self)

    async def record(self, request: AdminRequest) -> tuple[Record, Project]:
        """The project that the path names; ApiError 404."""
        record = await self.projects.find(request.params["project"])
        return record, records.to_project(record, self.projects.config)

    async def health(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value={"status": "ok"})

    async def ready(self, request: AdminRequest) -> AdminResponse:
        try:
            async with asyncio.timeout(READY_SECONDS), self.projects.control() as control:
                await control.execute("select 1")
        except (ApiError, psycopg.OperationalError, TimeoutError):
            value = {"code": "unavailable", "detail": "Not ready: database.",
                     "not_ready": ["database"]}  # fmt: skip
            return AdminResponse(503, value)
        return AdminResponse(value={"status": "ready"})

    async def metrics(self, request: AdminRequest) -> AdminResponse:
        from server.base.metrics import render

        text = render(self.projects.config.metrics_dir)
        return AdminResponse(text=text, content_type="text/plain; version=0.0.4; charset=utf-8")

    async def document(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=openapi(self.router, self.projects.config.admin_url))

    async def list(self, request: AdminRequest) -> AdminResponse:
        found = await self.projects.all(deleted=request.query.get("deleted") == "true")
        config = self.projects.config
        return AdminResponse(value=[shown(r, records.to_project(r, config)) for r in found])

    async def create(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(CreateProject)
        if wanted.flavor in {"mongo", "both"} and self.projects.documents is None:
            raise no_documents()
        record = await self.projects.create(
            wanted.name, wanted.flavor, wanted.tier, actor="admin", owner=wanted.owner
        )
        project = records.to_project(record, self.projects.config)
        return AdminResponse(201, shown(record, project))

    async def get(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=shown(*await self.record(request)))

    async def delete(self, request: AdminRequest) -> AdminResponse:
        name = request.params["project"]
        if name == self.projects.config.default_project:
            raise ApiError(409, "default_project", "The default project cannot be deleted.")
        if request.query.get("now") == "true":
            await self.projects.delete(name, actor="admin")
            return AdminResponse(value=Deleted(True))
        record = await self.lifecycle.step(name, "delete", "admin")
        return AdminResponse(value=Deleted(True, record.delete_at))

    async def get_settings(self, request: AdminRequest) -> AdminResponse:
        record, _ = await self.record(request)
        section = request.params["section"]
        shape, stored = sections.shape(section), record.settings.get(section, {})
        try:
            return AdminResponse(value=msgspec.convert(stored, shape))
        except msgspec.ValidationError:  # kept by another version of this program
            return AdminResponse(value=stored)

    async def put_settings(self, request: AdminRequest) -> AdminResponse:
        section = request.params["section"]
        value = sections.check(section, request.body)
        await self.projects.put_settings(request.params["project"], section, value, actor="admin")
        return AdminResponse(value=value)

    async def sql(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(RunSql)
        owner = await self._owner(request)
        results = await sqlrun.execute(owner, wanted.sql, wanted.timeout_ms)
        return AdminResponse(value={"results": results})

    async def migrations(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=await sqlrun.applied(await self._owner(request)))

    async def migrate(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Migration)
        applied = await sqlrun.migrate(await self._owner(request), wanted.name, wanted.sql)
        return AdminResponse(value={"name": wanted.name, "applied": applied})

    async def _owner(self, request: AdminRequest) -> str:
        _, project = await self.record(request)
        if project.owner_dsn is None:
            raise ApiError(404, "postgres_not_enabled", "The project has no Postgres database.")
        return project.owner_dsn


async def _catch_up(projects: Projects) -> None:
    """What had to wait for the document server, which starts after all others."""
    for pause in itertools.chain(CATCH_UP_PAUSES, itertools.repeat(CATCH_UP_PAUSES[-1])):
        try:
            await projects.ensure_documents()
            return
        except Exception as error:
            print(f"documents are not ready: {error}", file=sys.stderr, flush=True)
            await asyncio.sleep(pause)


class Application:
    """The RSGI side: token, body, errors."""

    def __init__(self) -> None:
        self.api: AdminApi | None = None
        self.token = b""
        self.catching_up: asyncio.Task[None] | None = None

    def __rsgi_init__(self, loop: Any) -> None:
        from server.node.gateway_main import read_listener

        config = read_listener().config
        clusters = msgspec.json.decode(
            (config.data_dir / "run" / "clusters.json").read_bytes(), type=dict[str, Cluster]
        )
        server = read_server(config.data_dir)
        documents = None if server is None else Documents(server)
        projects = Projects(config.control_dsn, clusters, config, documents)
        self.api = AdminApi(projects)
        self.catching_up = loop.create_task(_catch_up(projects))
        self.token = Path(config.data_dir, "secrets", "admin_token").read_bytes().strip()

    def __rsgi_del__(self, loop: Any) -> None:
        self.api = None
        if self.catching_up is not None:
            self.catching_up.cancel()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        try:
            response = await self._answer(scope, protocol)
            headers = [("content-type", response.content_type), ("cache-control", "no-store")]
            protocol.response_bytes(response.status, headers, response.body())
        except ApiError as error:
            self._refuse(protocol, error)
        except psycopg.DataError as error:
            text = str(error).strip().splitlines()
            detail = text[0] if text else "The database cannot hold one of the values."
            self._refuse(protocol, ApiError(400, "bad_request", detail))
        except psycopg.OperationalError as error:
            print(str(error).strip(), file=sys.stderr, flush=True)
            full = isinstance(error, psycopg.errors.DiskFull)
            self._refuse(protocol, no_room() if full else away())
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._refuse(protocol, ApiError(500, "internal", "The server failed; see its log."))

    @staticmethod
    def _refuse(protocol: Any, error: ApiError) -> None:
        body: dict[str, Any] = {"code": error.code, "detail": error.message}
        if error.details is not None:
            body["details"] = error.details
        headers = [("content-type", "application/json"), *error.headers]
        protocol.response_bytes(error.status, headers, msgspec.json.encode(body))

    async def _answer(self, scope: Any, protocol: Any) -> AdminResponse:
        if scope.proto != "http":
            raise ApiError(400, "bad_request", "There are no sockets here.")
        if self.api is None:
            raise ApiError(503, "unavailable", "The server is starting.")
        route, params = self.api.router.find(scope.method, scope.path)
        if not route.public:
            self._authorize(scope.headers.get("authorization", ""))
        length = scope.headers.get("content-length", "0")
        if not length.isdecimal():
            raise ApiError(400, "bad_request", "The Content-Length is not a number.")
        if int(length) > BODY_LIMIT:
            raise ApiError(413, "payload_too_large", f"A body has at most {BODY_LIMIT} bytes.")
        parts, size = [], 0
        async for chunk in protocol:
            size += len(chunk)
            if size > BODY_LIMIT:
                raise ApiError(413, "payload_too_large", f"A body has at most {BODY_LIMIT} bytes.")
            parts.append(chunk)
        query = dict(parse_qsl(scope.query_string, keep_blank_values=True))
        return await route.handler(
            AdminRequest(scope.method, scope.path, params, query, b"".join(parts))
        )

    def _authorize(self, header: str) -> None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), self.token
        ):
            raise ApiError(
                401, "invalid_token", "The admin token is missing or wrong.",
                headers=(("www-authenticate", "Bearer"),),
            )  # fmt: skip


application = Application()
