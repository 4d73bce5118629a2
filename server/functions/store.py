"""What is deployed, in the control database's schema `functions`."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from typing import Any

import msgspec
import orjson
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor

from ichicore.errors import ApiError
from server.base import migrations
from server.functions.vault import Vault

KEEP_VERSIONS = 10
MAX_SECRETS = 100
MAX_SECRET = 48 << 10  # bytes of one value
RESERVED = ("ICHIBASE_", "DENO_", "NODE_OPTIONS")
OWN_REDIS = "ICHIBASE_REDIS_URL"  # of a server of the owner's: the node has none to name

Connection = AsyncConnection[tuple[Any, ...]]


class Version(msgspec.Struct, frozen=True):
    """A version as it is served. outbound: None for all public addresses."""

    project_id: str
    name: str
    version: int
    auth: str
    outbound: tuple[str, ...] | None
    digest: str


class Built(msgspec.Struct, frozen=True):
    """What a build gives: the module's text, its dependencies' lock, the sources' names."""

    code: bytes
    lock: str | None
    files: list[str]
    entrypoint: str


class Scheduled(msgspec.Struct, frozen=True):
    """A function that runs by itself. slug: of its project."""

    project_id: str
    slug: str
    name: str
    version: int
    schedule: tuple[str, ...]


class Store:
    def __init__(self, dsn: str, vault: Vault) -> None:
        self.dsn = dsn
        self.vault = vault
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._migrated = False

    async def run(self, statement: str, params: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of one statement; ApiError 503 when the control database is away."""
        async with self._lock:
            for attempt in (1, 2):
                try:
                    connection = await self._connect()
                    cursor = await connection.execute(statement, params)
                    return await cursor.fetchall() if cursor.description else []
                except (psycopg.OperationalError, OSError):
                    if self._connection is not None:
                        await self._connection.close()
                        self._connection = None
                    if attempt == 2:
                        raise _away() from None
        raise AssertionError

    async def _connect(self) -> Connection:
        if not self._migrated:
            await migrations.apply_async(self.dsn, ("server.functions", "functions"))
            self._migrated = True
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self.dsn, autocommit=True, cursor_factory=AsyncRawCursor,
                application_name="ichibase functions", connect_timeout=5,
            )  # fmt: skip
        return self._connection

    async def any(self) -> bool:
        """Whether anything is deployed on this node."""
        return bool(await self.run("select 1 from functions.functions limit 1"))

    async def has_project(self, project_id: str) -> bool:
        return bool(await self.run("select 1 from public.projects where id = $1", (project_id,)))

    async def find(self, project_id: str, name: str) -> Version | None:
        """The version that is served now."""
        rows = await self.run(
            """select v.version, v.auth, v.outbound, v.digest
            from functions.functions f join functions.versions v using (project_id, name, version)
            where f.project_id = $1 and f.name = $2""",
            (project_id, name),
        )
        if not rows:
            return None
        version, auth, outbound, digest = rows[0]
        return Version(
            project_id, name, version, auth, None if outbound is None else tuple(outbound), digest
        )

    async def code(self, version: Version) -> bytes:
        rows = await self.run(
            """select code from functions.versions
            where project_id = $1 and name = $2 and version = $3""",
            (version.project_id, version.name, version.version),
        )
        if not rows:
            raise not_found(version.name)
        return bytes(rows[0][0])

    async def functions(self, project_id: str) -> list[dict[str, Any]]:
        rows = await self.run(
            """select f.name, f.version, v.auth, v.outbound, octet_length(v.code), v.entrypoint,
              to_json(f.created_at) #>> '{}', to_json(v.created_at) #>> '{}',
              (select count(*) from functions.versions k
               where k.project_id = f.project_id and k.name = f.name),
              v.schedule, to_json(r.due) #>> '{}', r.status
            from functions.functions f join functions.versions v using (project_id, name, version)
            left join functions.runs r using (project_id, name)
            where f.project_id = $1 order by f.name""",
            (project_id,),
        )
        return [
            {
                "name": name, "version": version, "auth": auth, "outbound": outbound,
                "bytes": size, "entrypoint": entrypoint, "created_at": created,
                "deployed_at": deployed, "versions": versions, "schedule": schedule,
                "last_run": last_run, "last_status": last_status,
            }
            for name, version, auth, outbound, size, entrypoint, created, deployed, versions,
            schedule, last_run, last_status in rows
        ]  # fmt: skip

    async def versions(self, project_id: str, name: str) -> list[dict[str, Any]]:
        """Those that are kept, newest first."""
        rows = await self.run(
            """select v.version, v.auth, v.outbound, octet_length(v.code), v.digest, v.files,
              to_json(v.created_at) #>> '{}', v.version = f.version
            from functions.versions v join functions.functions f using (project_id, name)
            where v.project_id = $1 and v.name = $2 order by v.version desc""",
            (project_id, name),
        )
        if not rows:
            raise not_found(name)
        return [
            {
                "version": version, "auth": auth, "outbound": outbound, "bytes": size,
                "digest": digest, "files": files, "deployed_at": deployed, "active": active,
            }
            for version, auth, outbound, size, digest, files, deployed, active in rows
        ]  # fmt: skip

    async def lock(self, project_id: str, name: str) -> str | None:
        """The dependencies that the served version has."""
        rows = await self.run(
            """select v.lock from functions.functions f
            join functions.versions v using (project_id, name, version)
            where f.project_id = $1 and f.name = $2""",
            (project_id, name),
        )
        return rows[0][0] if rows else None

    async def deploy(
        self, project_id: str, name: str, built: Built, auth: str,
        outbound: list[str] | None, most: int, schedule: list[str] | None = None,
    ) -> int:  # fmt: skip
        """Keeps a new version and serves it from now on; gives its number. most: functions that
        the project may have. schedule: when it runs by itself."""
        digest = hashlib.sha256(built.code).hexdigest()
        rows = await self.run(
            """with fits as materialized (
              select (select count(*) from functions.functions where project_id = $1) < $11
                or exists (select from functions.functions where project_id = $1 and name = $2)
                as ok
            ), next as (
              select coalesce(max(version), 0) + 1 as version from functions.versions
              where project_id = $1 and name = $2
            ), made as (
              insert into functions.functions (project_id, name, version)
              select $1, $2, next.version from next, fits where fits.ok
              on conflict (project_id, name)
              do update set version = excluded.version, changed_at = now()
              returning version
            ), kept as (
              insert into functions.versions
                (project_id, name, version, auth, outbound, code, digest, entrypoint, files, lock,
                 schedule)
              select $1, $2, made.version, $3, $4::text[], $5, $6, $7, $8::jsonb, $9, $12::text[]
              from made
              returning version
            ), dropped as (
              delete from functions.versions where project_id = $1 and name = $2
              and version <= (select version from next) - $10
            )
            select version from kept""",
            (
                project_id, name, auth, outbound, built.code, digest, built.entrypoint,
                orjson.dumps(built.files).decode(), built.lock, KEEP_VERSIONS, most, schedule,
            ),
        )  # fmt: skip
        if not rows:
            raise ApiError(
                409, "quota_exceeded", f"The project may have {most} functions; delete one first."
            )
        version: int = rows[0][0]
        return version

    async def activate(self, project_id: str, name: str, version: int | None) -> int:
        """Serves a kept version again, by default the one before; gives its number."""
        rows = await self.run(
            """update functions.functions f set version = v.version, changed_at = now()
            from functions.versions v
            where f.project_id = $1 and f.name = $2 and v.project_id = $1 and v.name = $2
              and v.version = coalesce($3, (select max(k.version) from functions.versions k
                where k.project_id = $1 and k.name = $2 and k.version < f.version))
            returning f.version""",
            (project_id, name, version),
        )
        if rows:
            found: int = rows[0][0]
            return found
        await self.versions(project_id, name)  # 404 for a function that is not there
        what = f"version {version}" if version is not None else "earlier version"
        raise ApiError(404, "version_not_found", f"There is no {what} of {name}.")

    async def delete(self, project_id: str, name: str) -> None:
        rows = await self.run(
            "delete from functions.functions where project_id = $1 and name = $2 returning 1",
            (project_id, name),
        )
        if not rows:
            raise not_found(name)

    # Schedules

    async def scheduled(self, project_id: str | None = None) -> list[Scheduled]:
        """The functions of all projects, or of one, that run by themselves."""
        rows = await self.run(
            """select f.project_id, p.slug, f.name, f.version, v.schedule
            from functions.functions f join functions.versions v using (project_id, name, version)
            join public.projects p on p.id = f.project_id
            where v.schedule is not null and ($1::text is null or f.project_id = $1)
            order by f.project_id, f.name""",
            (project_id,),
        )
        return [
            Scheduled(project, slug, name, version, tuple(schedule))
            for project, slug, name, version, schedule in rows
        ]

    async def claim(self, function: Scheduled, due: datetime) -> bool:
        """Whether this node makes the run: another one may have been first."""
        rows = await self.run(
            """insert into functions.runs as r (project_id, name, due)
            select project_id, name, $3 from functions.functions
            where project_id = $1 and name = $2
            on conflict (project_id, name) do update set due = excluded.due, status = null
            where r.due < excluded.due returning 1""",
            (function.project_id, function.name, due),
        )
        return bool(rows)

    async def ran(self, function: Scheduled, due: datetime, status: int) -> None:
        await self.run(
            """update functions.runs set status = $4
            where project_id = $1 and name = $2 and due = $3""",
            (function.project_id, function.name, due, status),
        )

    # Secrets

    async def secret_names(self, project_id: str) -> list[dict[str, Any]]:
        rows = await self.run(
            """select name, to_json(changed_at) #>> '{}' from functions.secrets
            where project_id = $1 order by name""",
            (project_id,),
        )
        return [{"name": name, "changed_at": at} for name, at in rows]

    async def secrets(self, project_id: str) -> dict[str, str]:
        rows = await self.run(
            "select name, value from functions.secrets where project_id = $1", (project_id,)
        )
        return {name: self.vault.open(project_id, name, bytes(value)) for name, value in rows}

    async def set_secrets(self, project_id: str, values: dict[str, str]) -> None:
        for name, value in values.items():
            check_secret(name, value)
        known = {row["name"] for row in await self.secret_names(project_id)}
        if len(known | values.keys()) > MAX_SECRETS:
            raise ApiError(409, "quota_exceeded", f"A project has at most {MAX_SECRETS} secrets.")
        sealed = [self.vault.seal(project_id, name, value) for name, value in values.items()]
        await self.run(
            """insert into functions.secrets (project_id, name, value)
            select $1, name, value from unnest($2::text[], $3::bytea[]) as t (name, value)
            on conflict (project_id, name)
            do update set value = excluded.value, changed_at = now()""",
            (project_id, list(values), sealed),
        )

    async def unset_secrets(self, project_id: str, names: list[str]) -> int:
        rows = await self.run(
            """delete from functions.secrets where project_id = $1 and name = any($2::text[])
            returning 1""",
            (project_id, names),
        )
        return len(rows)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def check_secret(name: str, value: str) -> None:
    """ApiError 400 for what cannot be an environment variable of a function."""
    problem = None
    if not (name.isascii() and name.isidentifier() and len(name) <= 128):
        problem = "a secret's name has letters, digits and underscores"
    elif name == OWN_REDIS and not value.startswith(("redis://", "rediss://")):
        problem = f"{name} begins with redis:// or rediss://"
    elif name.startswith(RESERVED) and name != OWN_REDIS:
        problem = f"{name} is reserved"
    elif "\x00" in value or len(value.encode("utf-8", "surrogatepass")) > MAX_SECRET:
        problem = f"{name}: a value has at most {MAX_SECRET} bytes and no NUL"
    else:
        try:
            value.encode()
        except UnicodeEncodeError:
            problem = f"{name}: the value is not valid UTF-8 text"
    if problem is not None:
        raise ApiError(400, "invalid_secret", f"{problem}.")


def not_found(name: str) -> ApiError:
    return ApiError(404, "function_not_found", f"There is no function {name[:63]}.")


def _away() -> ApiError:
    return ApiError(
        503, "unavailable", "The control database does not answer.",
        headers=(("retry-after", "2"),),
    )  # fmt: skip
