"""Makes and removes a project's part of a cluster: its roles and its database.

Every step may be repeated, so that an interrupted creation or removal is finished by running it
again. Roles anon, authenticated and service_role are shared by all projects of a cluster: what
keeps projects apart is that only a project's own logins may connect to its database. Nothing
cluster-wide is ever granted to the shared roles, because any member could drop such a grant.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psycopg
from psycopg import sql

from server.base.limits import PRO, Limits
from server.control import secrets
from server.control.database import (
    ITERATIONS,
    ONCE,
    Cluster,
    Connection,
    allow_ownership,
    allow_reserved,
    connect,
    drop_database,
    ensure_database,
    ensure_login,
    fetch,
    run,
)
from server.control.records import VERSION as VERSION
from server.control.records import Record

HERE = Path(__file__).parent
SHARED_ROLES = {"anon": "", "authenticated": "", "service_role": "bypassrls"}
LOGINS = ("owner", "authenticator", "system", "feed")
NEW, BEFORE = "_new", "_before"  # ends of the names of databases that a restore builds and replaces
MOST_KB = 2**31 - 1  # that PostgreSQL takes for the size of temporary files, or of log
PACED = "select 1 from pg_settings where name = 'ichibase.log_rate'"  # the embedded server
LOADER = "loader"  # a login that lasts as long as a restore
LOADER_CONNECTIONS = 3
LOCK_TIMEOUT = "3s"  # for what the owner's transactions may hold


async def ensure_shared_roles(admin: Connection) -> None:
    """The three roles that requests run in; none can log in.

    Members may change a role's own defaults (ALTER ROLE ... SET), so these are put back.
    """
    for role, attributes in SHARED_ROLES.items():
        name = sql.Identifier(role)
        found = await fetch(
            admin,
            "select rolcanlogin or rolsuper, rolbypassrls from pg_roles where rolname = $1",
            (role,),
        )
        if not found:
            make = sql.SQL("create role {} nologin noinherit " + attributes).format(name)
            try:
                await run(admin, make)
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                pass  # made by another node at this moment
        elif found[0][0]:
            await run(admin, sql.SQL("alter role {} nologin nosuperuser").format(name))
        if found and found[0][1] != (attributes == "bypassrls"):  # another program's role
            wanted = "bypassrls" if attributes == "bypassrls" else "nobypassrls"
            await run(admin, sql.SQL("alter role {} " + wanted).format(name))
        await run(admin, sql.SQL("alter role {} reset all").format(name))


async def provision(cluster: Cluster, record: Record, limits: Limits = PRO) -> None:
    """Make the project's roles and database, or complete what an earlier try has made."""
    async with await connect(cluster.admin_dsn) as admin:
        await run(admin, f"set lock_timeout = '{LOCK_TIMEOUT}'")
        await ensure_shared_roles(admin)
        await ensure_logins(admin, record)
        # No comment names the project: every login of the cluster may read the list of databases.
        await ensure_database(admin, record.database, record.role("owner"))
    await settle(cluster, record, limits)  # first: the administrator's own settings are among it
    await equip(cluster.dsn(record.database), record, record.database)
    if record.state == "creating":
        owner = sql.Identifier(record.role("owner"))
        async with await connect(cluster.dsn(record.database)) as database, database.transaction():
            await run(database, _template("open.sql").format(owner=owner))


async def ensure_logins(admin: Connection, record: Record) -> None:
    """The project's logins with their passwords, which may switch to the three shared roles."""
    passwords = (record.owner_password, record.authenticator_password, record.system_password)
    for kind, password in zip(LOGINS, passwords, strict=False):
        role = record.role(kind)
        inherit = "noinherit" if kind == "authenticator" else "inherit"
        iterations = ITERATIONS if kind == "owner" else ONCE  # programs of others may want many
        await ensure_login(admin, role, password, inherit, iterations)
        await allow_ownership(admin, role)
        await _grant_switching(admin, role, *SHARED_ROLES)
    await _ensure_feed(admin, record)
    for kind in ("authenticator", "system", "feed"):
        await allow_reserved(admin, record.role(kind))


async def equip(dsn: str, record: Record, database: str) -> None:
    """Make, or make again, what every project's database has. dsn: of the administrator, to the
    database of that name, which need not be the one that the project uses."""
    names: dict[str, sql.Composable] = {kind: sql.Identifier(record.role(kind)) for kind in LOGINS}
    names["system_name"] = sql.Literal(record.role("system"))
    names["owner_name"] = sql.Literal(record.role("owner"))
    names["database"] = sql.Identifier(database)
    async with await connect(dsn) as connection, connection.transaction():
        await run(connection, f"set local lock_timeout = '{LOCK_TIMEOUT}'")
        await run(connection, _template("project.sql").format(**names))
        await run(connection, _template("feed.sql").format(**names))
        superuser = "select rolsuper from pg_roles where rolname = current_user"
        if (await fetch(connection, superuser))[0][0]:
            await run(connection, _template("watch.sql").format(**names))
            await run(connection, (HERE / "hide.sql").read_text())


async def lend(cluster: Cluster, record: Record, database: str) -> str:
    """A login that is the owner in all it does, to fill a database: the owner's own sessions may
    have used up the connections that owners may have. Its password."""
    role, password = record.role(LOADER), secrets.new_password()
    async with await connect(cluster.admin_dsn) as admin:
        attributes = f"noinherit connection limit {LOADER_CONNECTIONS}"
        await ensure_login(admin, role, password, attributes, ONCE)
        await allow_ownership(admin, role)
        await _grant_switching(admin, role, record.role("owner"))
        await allow_reserved(admin, role)
        await run(
            admin, sql.SQL("grant connect on database {} to {}").format(
                sql.Identifier(database), sql.Identifier(role)
            ),
        )  # fmt: skip
    return password


async def withdraw(cluster: Cluster, role: str, database: str | None = None) -> None:
    """Ends that, given the login's name. What has been made in the database by code that gave up
    being the owner becomes the owner's. May be repeated."""
    name, owner = sql.Identifier(role), sql.Identifier(f"{role.removesuffix(LOADER)}owner")
    async with await connect(cluster.admin_dsn) as admin:
        if not await fetch(admin, "select 1 from pg_roles where rolname = $1", (role,)):
            return
        await run(admin, sql.SQL("alter role {} nologin").format(name))
        await fetch(
            admin, "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where usename = $1", (role,),
        )  # fmt: skip
        if database is not None:
            await _run_in(
                cluster, database, sql.SQL("reassign owned by {} to {}").format(name, owner)
            )
        await _drop_login(cluster, admin, role)


async def settle(cluster: Cluster, record: Record, limits: Limits) -> None:
    """Bring the project's logins in line with its state and its limits. May be repeated.

    The owner's login is closed while the project is suspended or deleted. What the owner may set
    differently for a session is a default; the number of connections and the size of temporary
    files are not the owner's to change. Whoever has a lock in the project's database that stands in
    the way, as on a password that is being changed, loses the session.
    """
    try:
        await _settle(cluster, record, limits)
    except psycopg.errors.LockNotAvailable:
        await end_sessions(cluster, record.database)
        await _settle(cluster, record, limits)


async def _settle(cluster: Cluster, record: Record, limits: Limits) -> None:
    open_to_owner = record.state not in ("suspended", "deleting", "removing")
    owner = sql.Identifier(record.role("owner"))
    async with await connect(cluster.admin_dsn) as admin:
        await run(admin, f"set lock_timeout = '{LOCK_TIMEOUT}'")
        await run(
            admin,
            sql.SQL("alter role {} {} connection limit {}").format(
                owner, sql.SQL("login" if open_to_owner else "nologin"),
                sql.Literal(limits.connections),
            ),
        )  # fmt: skip
        # The maintenance may have closed it, to one whose requests took what all share.
        await run(
            admin,
            sql.SQL("alter role {} login").format(sql.Identifier(record.role("authenticator"))),
        )
        # The database is its owner's, who may have closed it to the project's other logins.
        await run(
            admin,
            sql.SQL("alter database {} with connection limit -1 is_template false").format(
                sql.Identifier(record.database)
            ),
        )
        roles: dict[str, sql.Composable] = {
            kind: sql.Identifier(record.role(kind)) for kind in LOGINS
        }
        roles["admin"] = sql.SQL("current_user")
        version = admin.info.server_version
        paced = bool(await fetch(admin, PACED))
        for kind, role in roles.items():
            for name, value in _role_settings(record, limits, kind, version, paced).items():
                with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                    await run(
                        admin,
                        sql.SQL("alter role {} in database {} set {} = {}").format(
                            role, sql.Identifier(record.database), sql.Identifier(name),
                            sql.Literal(value),
                        ),
                    )  # fmt: skip
        if record.state != "active" or record.read_only:
            # Those who serve requests end the sessions of a project that sleeps themselves, between
            # two requests.
            kinds = ("owner",) if record.state in ("active", "sleeping") else LOGINS
            logins = [record.role(kind) for kind in kinds]
            await fetch(
                admin,
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = any($1)",
                (logins,),
            )


def _role_settings(
    record: Record, limits: Limits, kind: str, version: int, paced: bool
) -> dict[str, str]:
    """Defaults of a login's sessions, which come before those that the owner gives the database.
    The settings of requests come with each request. kind: of LOGINS, or the administrator. paced:
    the server holds its databases to their bytes of log."""
    settings: dict[str, str] = {}
    if kind in ("system", "feed", "admin") and version >= 170000:
        settings["transaction_timeout"] = "0"  # guarded() could not say it to older servers
    if kind in ("feed", "admin"):
        return settings
    # Neither errors nor RAISE of a project go into the server's log: they could fill the disk, and
    # may show values of its rows.
    settings |= {"log_min_messages": "fatal", "log_min_error_statement": "panic"}
    settings["temp_file_limit"] = f"{min(max(1, limits.temp_bytes // 1024), MOST_KB)}kB"
    if kind == "system":
        return settings
    if paced:
        settings["ichibase.log_rate"] = f"{min(-(-limits.log_bytes // 1024), MOST_KB)}kB"
    settings["work_mem"] = f"{limits.work_memory // 1024}kB"
    settings["max_parallel_workers_per_gather"] = str(min(limits.parallel_workers, 1024))
    settings["idle_in_transaction_session_timeout"] = f"{limits.idle_transaction_ms}ms"
    if kind == "owner":
        settings["lock_timeout"] = f"{limits.lock_ms}ms"
        settings["statement_timeout"] = f"{limits.owner_statement_ms}ms"
        settings["default_transaction_read_only"] = "on" if record.read_only else "off"
    return settings


def _template(name: str) -> sql.SQL:
    return sql.SQL((HERE / name).read_text())


async def _grant_switching(admin: Connection, login: str, *roles: str) -> None:
    """Let a login SET ROLE to these roles without holding their rights meanwhile."""
    version = admin.info.server_version
    options = "with inherit false, set true" if version >= 160000 else ""
    name = sql.Identifier(login)
    if version < 160000:  # there, only a NOINHERIT role holds no rights before SET ROLE
        await run(admin, sql.SQL("alter role {} noinherit").format(name))
    granted = sql.SQL(", ").join(map(sql.Identifier, roles))
    await run(admin, sql.SQL("grant {} to {} " + options).format(granted, name))


async def _ensure_feed(admin: Connection, record: Record) -> None:
    """The login that reads the change stream. It switches to no other role and connects to no
    other database, but replication shows all of a cluster's log, so its password never leaves the
    node. On a server whose administrator may not grant replication there is no feed."""
    role = record.role("feed")
    await ensure_login(admin, role, record.feed_password, "noinherit connection limit 32", ONCE)
    await allow_ownership(admin, role)
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        await run(admin, sql.SQL("alter role {} replication").format(sql.Identifier(role)))


async def end_sessions(cluster: Cluster, database: str) -> None:
    """End all sessions of a database."""
    async with await connect(cluster.admin_dsn) as admin:
        await fetch(
            admin,
            "select pg_terminate_backend(pid, 1000) from pg_stat_activity where datname = $1",
            (database,),
        )


async def end_replication(admin: Connection, database: str) -> None:
    """A database cannot be dropped while its log is being read."""
    for _ in range(50):
        ended = await fetch(
            admin,
            """select pg_terminate_backend(active_pid) from pg_replication_slots
            where database = $1 and active""",
            (database,),
        )
        if not ended:
            return
        await asyncio.sleep(0.1)


async def remove(cluster: Cluster, record: Record) -> None:
    """Drop the project's database, ending its sessions, with what a restore builds meanwhile, and
    its roles. May be repeated."""
    async with await connect(cluster.admin_dsn) as admin:
        feed = record.role("feed")
        if await fetch(admin, "select 1 from pg_roles where rolname = $1", (feed,)):
            # A reader that is ended comes back at once.
            await run(admin, sql.SQL("alter role {} nologin").format(sql.Identifier(feed)))
        await end_replication(admin, record.database)
        for end in ("", NEW, BEFORE):
            await drop_database(admin, record.database + end)
        for kind in (*LOGINS, LOADER):
            await _drop_login(cluster, admin, record.role(kind))


NAMED = """select distinct d.datname from pg_shdepend s join pg_database d on d.oid = s.dbid
  where s.refclassid = 'pg_authid'::regclass and s.refobjid = to_regrole(quote_ident($1))"""


async def _drop_login(cluster: Cluster, admin: Connection, role: str) -> None:
    """Drop a login, with the rights that others gave it: the owner of any database may grant
    something in it, or of it, to any role, which would keep it from being dropped."""
    drop = sql.SQL("drop role if exists {}").format(sql.Identifier(role))
    try:
        await run(admin, drop)
    except psycopg.errors.DependentObjectsStillExist:
        rights = sql.SQL("drop owned by {}").format(sql.Identifier(role))
        await run(admin, rights)  # those of databases, wherever it is said
        for (name,) in await fetch(admin, NAMED, (role,)):
            try:
                await _run_in(cluster, name, rights)
            except psycopg.errors.LockNotAvailable:
                await end_sessions(cluster, name)
                await _run_in(cluster, name, rights)
        await run(admin, drop)


async def _run_in(cluster: Cluster, database: str, statement: sql.Composable) -> None:
    async with await connect(cluster.dsn(database)) as connection:
        await run(connection, f"set lock_timeout = '{LOCK_TIMEOUT}'")
        await run(connection, statement)
