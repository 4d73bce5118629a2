"""The admin port's routes of storage: buckets, what is stored, and its check against the store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor

from ichicore.errors import ApiError
from server.base import migrations
from server.base.project import Project
from server.base.usage import Usage
from server.control.api import AdminApi
from server.control.projects import audit
from server.control.routes import AdminRequest, AdminResponse, Router
from server.storage import inputs, paths
from server.storage.control import DAY
from server.storage.reconcile import Report, reconcile
from server.storage.rotation import rotate
from server.storage.stores import Store, StoreError, open_store

BUCKETS = """select b.id, b.size_limit, b.allowed_types, b.cache_seconds,
  count(o.id), coalesce(sum(o.size), 0)::bigint
from storage.buckets b left join storage.objects o on o.bucket = b.id
where $1::text is null or b.id = $1 group by b.id order by b.id"""
PUT = """insert into storage.buckets (id, size_limit, allowed_types, cache_seconds)
values ($1, $2, $3, $4) on conflict (id) do update set size_limit = excluded.size_limit,
  allowed_types = excluded.allowed_types, cache_seconds = excluded.cache_seconds,
  updated_at = now()"""
DELETE = "delete from storage.buckets where id = $1"
USED = "select bytes, reserved, objects from storage.usage"


class BucketRules(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """size_limit: bytes of one file. allowed_types: media types of files, `image/*` for all of a
    kind; None takes any. cache_seconds: how long others may keep files of the public bucket."""

    size_limit: Annotated[int, msgspec.Meta(ge=1, le=inputs.LARGEST)] | None = None
    allowed_types: Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)] | None = None
    cache_seconds: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] | None = None


class Bucket(msgspec.Struct, kw_only=True):
    """public: read by anyone. files, bytes: what is in it."""

    name: str
    public: bool
    size_limit: int | None
    allowed_types: list[str] | None
    cache_seconds: int | None
    files: int
    bytes: int


class Stored(msgspec.Struct, kw_only=True):
    """reserved: bytes of upload URLs that are open. quota: bytes the project may store."""

    bytes: int
    reserved: int
    files: int
    quota: int
    buckets: list[Bucket]


class Check(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """mend: puts right what is found. force: even when much seems to be missing."""

    mend: bool = False
    force: bool = False


class Rotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """overlap_seconds: for which tokens signed before are accepted; by default as long as any of
    them lasts. 0 ends them all at once."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=DAY)] = DAY


class Rotated(msgspec.Struct, kw_only=True):
    """accepted_until: epoch seconds at which tokens signed before end."""

    accepted_until: int


def register(router: Router, api: AdminApi) -> None:
    """Adds the routes below to the admin server."""
    routes = _Routes(api)
    base = "/admin/v1/projects/{project}/storage"
    one = f"{base}/buckets/{{bucket}}"
    router.add("GET", base, routes.stored, "What is stored", result=Stored)
    router.add("GET", one, routes.bucket, "One bucket", result=Bucket)
    router.add("PUT", one, routes.put_bucket, "Make a bucket or replace its rules",
               body=BucketRules, result=Bucket)  # fmt: skip
    router.add("DELETE", one, routes.delete_bucket, "Delete an empty bucket")
    router.add("POST", f"{base}/reconcile", routes.reconcile,
               "Compare the database with the store", body=Check, result=Report)  # fmt: skip
    router.add("POST", f"{base}/rotate-secret", routes.rotate_secret,
               "Sign storage tokens with a new secret", body=Rotation, result=Rotated)  # fmt: skip


class _Routes:
    def __init__(self, api: AdminApi) -> None:
        self.api = api
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = open_store(self.api.projects.config)
        return self._store

    async def stored(self, request: AdminRequest) -> AdminResponse:
        async with self._database(request) as (project, connection):
            used = (await _fetch(connection, USED))[0]
            buckets = await _fetch(connection, BUCKETS, (None,))
        value = Stored(
            bytes=used[0], reserved=used[1], files=used[2], quota=project.limits.storage_bytes,
            buckets=[_bucket(row) for row in buckets],
        )  # fmt: skip
        return AdminResponse(value=value)

    async def bucket(self, request: AdminRequest) -> AdminResponse:
        async with self._database(request) as (_, connection):
            return AdminResponse(value=await _one(connection, request.params["bucket"]))

    async def put_bucket(self, request: AdminRequest) -> AdminResponse:
        rules = request.decode(BucketRules)
        name = _name(request)
        types = None
        if rules.allowed_types is not None:
            types = [_allowed(text) for text in rules.allowed_types]
        async with self._database(request) as (project, connection):
            await connection.execute(PUT, (name, rules.size_limit, types, rules.cache_seconds))
            found = await _one(connection, name)
        await self._audit("storage.bucket.put", project, name)
        return AdminResponse(value=found)

    async def delete_bucket(self, request: AdminRequest) -> AdminResponse:
        name = _name(request)
        async with self._database(request) as (project, connection):
            try:
                done = await connection.execute(DELETE, (name,))
            except psycopg.errors.ForeignKeyViolation:
                raise ApiError(409, "bucket_not_empty", "The bucket holds files.") from None
        if done.rowcount == 0:
            raise _no_bucket()
        await self._audit("storage.bucket.delete", project, name)
        return AdminResponse(value={"deleted": True})

    async def reconcile(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Check)
        async with self._database(request) as (project, connection):
            try:
                report = await reconcile(
                    connection, self.store, project.id, mend=wanted.mend, force=wanted.force
                )
            except (StoreError, OSError) as error:
                raise ApiError(503, "unavailable", f"The file store failed: {error}") from None
        if wanted.mend:
            usage = Usage(self.api.projects.config.control_dsn)
            await usage.set_level(project.id, "storage_bytes", report.counted["bytes"])
            await usage.set_level(project.id, "storage_objects", report.counted["objects"])
            await usage.stop()
            await self._audit("storage.reconcile", project, "mend")
        return AdminResponse(value=report)

    async def rotate_secret(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Rotation)
        _, project = await self.api.record(request)
        async with self.api.projects.control() as control:
            until = await rotate(control, project.id, wanted.overlap_seconds)
            detail = {"accepted_until": until}
            await audit(control, "admin", "storage.rotate-secret", project.slug, detail)
        return AdminResponse(value=Rotated(accepted_until=until))

    async def _audit(self, action: str, project: Project, detail: str) -> None:
        async with self.api.projects.control() as control:
            await audit(control, "admin", action, project.slug, {"what": detail})

    @asynccontextmanager
    async def _database(self, request: AdminRequest) -> Any:
        """(project, its database under the system login, with its schema up to date)."""
        _, project = await self.api.record(request)
        if project.system_dsn is None:
            raise ApiError(404, "storage_not_enabled", "The project has no database for its files.")
        try:
            await migrations.apply_async(project.system_dsn, ("server.storage", "storage"))
            connection = await AsyncConnection.connect(
                project.system_dsn, autocommit=True, cursor_factory=AsyncRawCursor,
                connect_timeout=10,
            )  # fmt: skip
        except psycopg.OperationalError:
            raise ApiError(
                503, "unavailable", "The project's database does not answer.",
                headers=(("retry-after", "2"),),
            ) from None  # fmt: skip
        async with connection:
            yield project, connection


def _name(request: AdminRequest) -> str:
    try:
        return paths.bucket(request.params["bucket"])
    except paths.PathError as error:
        raise ApiError(400, "invalid_name", f"The bucket's name {error}.") from None


def _allowed(text: str) -> str:
    kind = text.strip().lower()
    if inputs.content_type(kind.replace("/*", "/any")) is None or ";" in kind:
        raise ApiError(400, "invalid_body", f"{text[:100]!r} is not a media type or kind/*.")
    return kind


async def _one(connection: Any, name: str) -> Bucket:
    rows = await _fetch(connection, BUCKETS, (name,))
    if not rows:
        raise _no_bucket()
    return _bucket(rows[0])


def _no_bucket() -> ApiError:
    return ApiError(404, "bucket_not_found", "There is no such bucket.")


def _bucket(row: Any) -> Bucket:
    name, size_limit, types, cache_seconds, files, size = row
    return Bucket(
        name=name, public=name == paths.PUBLIC, size_limit=size_limit, allowed_types=types,
        cache_seconds=cache_seconds, files=files, bytes=size,
    )  # fmt: skip


async def _fetch(connection: Any, statement: str, params: tuple[Any, ...] = ()) -> list[Any]:
    found: list[Any] = await (await connection.execute(statement, params)).fetchall()
    return found
