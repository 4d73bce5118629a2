"""The control database: making it, migrating it, and connecting to clusters.

Everything here speaks psycopg with $1 placeholders. `Cluster` says how the node reaches a cluster
as its administrator; a project knows only the cluster's id.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.base.guarded import guarded
from server.base.listen import ALIVE

CONTROL_ROLE = "ichibase_control"
DROP_TRIES = 10
MIGRATIONS = Path(__file__).with_name("migrations")
LOCAL_CLUSTER = "local"
ITERATIONS = 4096  # of the hash of a password, as PostgreSQL has it
# For random passwords that only we use: more would protect nothing, and hold up a
# worker for milliseconds at each new connection.
ONCE = 1

Connection = AsyncConnection[tuple[Any, ...]]


class ControlError(RuntimeError):
    """The control database cannot be made or used; the text says why and what to do."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """One PostgreSQL cluster as its administrator sees it.

    admin_dsn: login that may create databases and roles. database: name of the control database.
    host, port, socket_dir, options: how the projects' logins reach it (options: TLS parameters).
    """

    id: str = LOCAL_CLUSTER
    kind: str
    admin_dsn: str
    host: str
    port: int
    socket_dir: str | None = None
    options: dict[str, str] = {}
    database: str = "ichibase"

    def dsn(self, database: str) -> str:
        """The administrator's connection string to one of the cluster's databases. Its sessions
        trust nothing of what the database's owner has made there."""
        return guarded(make_conninfo(self.admin_dsn, dbname=database))


async def connect(dsn: str) -> Connection:
    """An autocommit connection whose cursors take $1 placeholders, and which notices a dead peer
    within a minute."""
    return await AsyncConnection.connect(
        dsn,
        autocommit=True,
        cursor_factory=AsyncRawCursor,
        application_name="ichibase",
        connect_timeout=10,
        **ALIVE,
    )


async def fetch(
    connection: Connection, statement: str, params: tuple[Any, ...] = ()
) -> list[tuple[Any, ...]]:
    """All rows of one statement."""
    cursor = await connection.execute(statement, params)
    return await cursor.fetchall() if cursor.description else []


async def run(connection: Connection, statement: sql.Composable | str) -> None:
    """A statement without parameters (or several), with quoted names already in place."""
    text = statement.as_bytes(connection) if isinstance(statement, sql.Composable) else statement
    await connection.execute(text)


def external_cluster(dsn: str) -> Cluster:
    """The cluster that a DATABASE_URL names. Its user must be able to create databases."""
    try:
        parts = {k: str(v) for k, v in conninfo_to_dict(dsn).items() if v is not None}
        port = int(parts.get("port", "5432"))
    except (psycopg.ProgrammingError, ValueError):  # whose text may have the password
        raise ControlError(
            "the database URL is not valid: write postgresql://user:password@host:port/database, "
            "with one host and one port"
        ) from None
    host = parts.get("host", "127.0.0.1")
    socket_dir = host if host.startswith("/") else None
    options = {k: v for k, v in parts.items() if k.startswith("ssl") or k == "channel_binding"}
    return Cluster(
        id="external",
        kind="external",
        admin_dsn=dsn,
        host="127.0.0.1" if socket_dir else host,
        port=port,
        socket_dir=socket_dir,
        options=options,
    )


def scram(password: str, iterations: int = ITERATIONS) -> str:
    """The stored form of a password of ASCII, made here so that no clear text reaches a server's
    log. The client of each new connection has to hash so many times. RFC 5803."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client, server = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    parts = (base64.b64encode(part).decode()
             for part in (salt, hashlib.sha256(client).digest(), server))  # fmt: skip
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


async def ensure_role(connection: Connection, role: str) -> None:
    """Make a role unless there is one."""
    if await fetch(connection, "select 1 from pg_roles where rolname = $1", (role,)):
        return
    try:
        await run(connection, sql.SQL("create role {} login").format(sql.Identifier(role)))
    except psycopg.errors.DuplicateObject:
        pass  # another process was quicker


async def ensure_login(
    connection: Connection, role: str, password: str, attributes: str, iterations: int = ITERATIONS
) -> None:
    """Make a login role, or give an existing one this password and these attributes."""
    stored = scram(password, iterations)
    await ensure_role(connection, role)
    change = sql.SQL("alter role {} login " + attributes + " password {}")
    await run(connection, change.format(sql.Identifier(role), sql.Literal(stored)))


async def ensure_database(connection: Connection, name: str, owner: str) -> bool:
    """Make an empty UTF-8 database closed to other logins. True when it was not there before."""
    found = await fetch(
        connection, "select datconnlimit = -2 from pg_database where datname = $1", (name,)
    )
    target = sql.Identifier(name)
    if found and found[0][0]:  # what is left of an interrupted DROP DATABASE
        await run(connection, sql.SQL("drop database {}").format(target))
        found = []
    if not found:
        make = sql.SQL("create database {} owner {} template template0 encoding 'UTF8'")
        try:
            await run(connection, make.format(target, sql.Identifier(owner)))
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            found = [(False,)]
    await run(connection, sql.SQL("revoke connect on database {} from public").format(target))
    return not found


async def drop_database(connection: Connection, name: str) -> None:
    """Drop a database if there is one, ending its sessions. Its owner may have called it a
    template, which cannot be dropped, and a session of the owner's may do so again until it has
    ended."""
    for attempt in range(DROP_TRIES):
        found = await fetch(
            connection, "select datistemplate from pg_database where datname = $1", (name,)
        )  # fmt: skip
        if not found:
            return
        target = sql.Identifier(name)
        if found[0][0]:
            change = sql.SQL("alter database {} with is_template false allow_connections false")
            await run(connection, change.format(target))
        try:
            await run(connection, sql.SQL("drop database if exists {} with (force)").format(target))
        except psycopg.errors.WrongObjectType:
            if attempt == DROP_TRIES - 1:
                raise
            await fetch(
                connection, "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = $1", (name,),
            )  # fmt: skip


async def prepare(cluster: Cluster, control_password: str) -> str:
    """Make and migrate the control database; gives the DSN of the role that workers use.

    That role owns the control database and nothing else. control_password: what its password
    becomes when no other node has chosen one.
    """
    try:
        admin = await connect(cluster.admin_dsn)
    except psycopg.OperationalError as error:
        raise ControlError(f"cannot log in to the database server: {str(error).strip()}") from None
    async with admin:
        await _check_administrator(admin)
        # One node prepares at a time, also when several share an external server.
        await fetch(admin, "select pg_advisory_lock(hashtextextended('ichibase prepare', 0))")
        await ensure_role(admin, CONTROL_ROLE)
        await allow_ownership(admin, CONTROL_ROLE)
        await ensure_database(admin, cluster.database, CONTROL_ROLE)
        control_password = await _agreed(cluster, control_password)
        await ensure_login(
            admin, CONTROL_ROLE, control_password, "inherit connection limit 200", ONCE
        )
        await allow_reserved(admin, CONTROL_ROLE)
        if cluster.kind == "embedded":
            await run(admin, "revoke connect on database postgres, template1 from public")
        parts: dict[str, Any] = {"dbname": cluster.database, "user": CONTROL_ROLE}
        dsn = make_conninfo(cluster.admin_dsn, **parts, password=control_password)
        async with await connect(dsn) as control:
            await migrate(control)
            await _register(control, cluster)
    return dsn


async def _agreed(cluster: Cluster, proposed: str) -> str:
    """The control role's password, the same for all nodes that share the database server: the
    first one's. Kept in the control database, which is that role's and the administrator's."""
    async with await connect(make_conninfo(cluster.admin_dsn, dbname=cluster.database)) as admin:
        await run(admin, sql.SQL("set role {}").format(sql.Identifier(CONTROL_ROLE)))
        await run(
            admin,
            "create table if not exists node_secrets (name text primary key, value text not null)",
        )
        await fetch(
            admin,
            "insert into node_secrets values ('control_password', $1) on conflict do nothing",
            (proposed,),
        )
        rows = await fetch(admin, "select value from node_secrets where name = 'control_password'")
        return str(rows[0][0])


async def _check_administrator(admin: Connection) -> None:
    query = """select rolsuper, rolcreatedb and rolcreaterole and rolbypassrls, rolname,
      current_setting('server_version_num')::int from pg_roles where rolname = current_user"""
    superuser, enough, name, version = (await fetch(admin, query))[0]
    if version < 140000:
        raise ControlError("the database server is too old: PostgreSQL 14 or newer is needed")
    if not superuser and not enough:
        raise ControlError(
            f'role "{name}" cannot manage projects: log in as a superuser, or as a role with '
            "CREATEDB, CREATEROLE and BYPASSRLS"
        )


async def allow_ownership(admin: Connection, role: str) -> None:
    """A creator of roles that is no superuser must make itself a member to act for one; since
    PostgreSQL 16 it is one of those it has made, but without SET."""
    right = "set" if admin.info.server_version >= 160000 else "member"
    query = """select rolsuper or pg_has_role(current_user, $1, $2) from pg_roles
      where rolname = current_user"""
    if not (await fetch(admin, query, (role, right)))[0][0]:
        await run(admin, sql.SQL("grant {} to current_user").format(sql.Identifier(role)))


async def allow_reserved(admin: Connection, role: str) -> None:
    """Let a login of the node's have the connections that no project's owner can take, where the
    server keeps any (reserved_connections, from PostgreSQL 16 on)."""
    if admin.info.server_version < 160000:
        return
    grant = "grant pg_use_reserved_connections to {} with inherit true, set false"
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        await run(admin, sql.SQL(grant).format(sql.Identifier(role)))


async def migrate(control: Connection) -> int:
    """Bring the control database's tables to the newest version; gives how many steps ran."""
    await run(
        control,
        """create table if not exists migrations (version int primary key, name text not null,
        checksum text not null, applied_at timestamptz not null default now())""",
    )
    done = dict(await fetch(control, "select version, checksum from migrations"))
    files = sorted(MIGRATIONS.glob("[0-9]*.sql"))
    known = {int(path.name.split("_")[0]) for path in files}
    if newer := set(done) - known:
        raise ControlError(
            f"the control database is at version {max(newer)}, newer than this program "
            f"({max(known)}): run the newer ichibase again, or restore a backup"
        )
    steps = 0
    for path in files:
        version = int(path.name.split("_")[0])
        text = path.read_text()
        checksum = hashlib.sha256(text.encode()).hexdigest()
        if version in done:
            if done[version] != checksum:
                raise ControlError(f"migration {path.name} differs from the one applied before")
            continue
        async with control.transaction():
            await run(control, text)
            await control.execute(
                "insert into migrations (version, name, checksum) values ($1, $2, $3)",
                (version, path.stem, checksum),
            )
        steps += 1
    return steps


async def _register(control: Connection, cluster: Cluster) -> None:
    options = msgspec.json.encode(cluster.options).decode()
    values = (cluster.id, cluster.kind, cluster.host, cluster.port, cluster.socket_dir, options)
    await control.execute(
        """insert into clusters (id, kind, host, port, socket_dir, options)
        values ($1, $2, $3, $4, $5, $6::jsonb)
        on conflict (id) do update set kind = excluded.kind, host = excluded.host,
          port = excluded.port, socket_dir = excluded.socket_dir, options = excluded.options,
          changed_at = now()
        where (clusters.kind, clusters.host, clusters.port, clusters.socket_dir, clusters.options)
          is distinct from (excluded.kind, excluded.host, excluded.port, excluded.socket_dir,
            excluded.options)""",
        values,
    )
