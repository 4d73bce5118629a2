"""Brings a backup back: into its project, into a new one, or into a scratch database to verify it.

A database is built beside the one in use and takes its place by renaming, in one transaction, once
its tables have been found to be those of the backup, and the collections of documents have been
made beside those in use. Until then the project goes on unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ichicore.errors import ApiError
from server.backup import content, documents, files, functions, listing, sessions, tools
from server.backup.archive import (
    CONTENT,
    DOCUMENTS,
    DUMP,
    FUNCTIONS,
    STORAGE,
    BackupError,
    Content,
    Progress,
    Reader,
)
from server.backup.documents import DocumentsError
from server.backup.files import Stored
from server.backup.listing import Entry
from server.backup.refill import Refill
from server.backup.refill import verify as verify_documents
from server.backup.rights import Rights, extensions
from server.backup.store import FULL
from server.base.migrations import MigrationError
from server.control import provision, records, secrets
from server.control.database import (
    Cluster,
    Connection,
    connect,
    drop_database,
    ensure_database,
    fetch,
    run,
)
from server.control.lifecycle import owe
from server.control.projects import Projects, locked, migrate
from server.control.provision import BEFORE, NEW
from server.control.records import Record
from server.mongo.provision import new_address

SCRATCH_ID = "scratch_"
SCRATCH = f"ichi_{SCRATCH_ID}"
SWAP_TRIES = 50
IGNORED = "errors ignored on restore"


class Outcome(msgspec.Struct):
    """files: that the database knows of. functions: those made again for a new project. sessions:
    of users, that the restore has ended. warnings:
    what could not be made again, of what holds no rows, and files and secrets that are gone."""

    tables: int
    rows: int
    documents: int
    warnings: list[str]
    files: int = 0
    functions: int = 0
    sessions: int = 0


class Target:
    """A database to be filled, and the logins that own what is in it. lent: password of the login
    that fills it in the owner's name."""

    lent = ""

    def __init__(self, cluster: Cluster, record: Record, database: str) -> None:
        self.cluster = cluster
        self.record = record
        self.database = database

    def dsn(self, kind: str) -> str:
        """Of a login of the project: owner or system."""
        if kind == "owner":
            dsn = self.record.dsn(provision.LOADER, self.lent)
            given = conninfo_to_dict(dsn).get("options") or ""
            options = f"{given} -c role={self.record.role(kind)}".lstrip()
            return make_conninfo(dsn, dbname=self.database, options=options)
        password = getattr(self.record, f"{kind}_password")
        return make_conninfo(self.record.dsn(kind, password), dbname=self.database)

    @property
    def admin_dsn(self) -> str:
        return self.cluster.dsn(self.database)


@asynccontextmanager
async def unpacked(reader: Reader, data_dir: Path, progress: Progress) -> AsyncIterator[Path]:
    """A folder with the plain files of a backup, all of them checked; removed afterwards."""
    folder = data_dir / "tmp" / f"restore-{reader.backup_id}"
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    try:
        total = sum(file.bytes for file in reader.manifest.files.values())
        done = 0
        try:
            folder.mkdir(mode=0o700, parents=True)
            for name in reader.manifest.files:
                path = folder / name
                with path.open("wb") as file:
                    path.chmod(0o600)
                    async for piece in reader.get(name):
                        file.write(piece)
                        done += len(piece)
                        await progress("reading", done, total)
        except OSError as error:
            code = "insufficient_storage" if error.errno in FULL else "internal"
            raise BackupError(f"cannot unpack the backup: {error.strerror}", code) from None
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def build(target: Target) -> None:
    """An empty database in place of what an earlier try has left."""
    record, name = target.record, sql.Identifier(target.database)
    async with await connect(target.cluster.admin_dsn) as admin:
        await drop_database(admin, target.database)
        await ensure_database(admin, target.database, record.role("owner"))
    roles = {kind: sql.Identifier(record.role(kind)) for kind in provision.LOGINS}
    async with await connect(target.admin_dsn) as database:
        await run(
            database,
            sql.SQL(
                "grant connect, temporary on database {database} to {owner}, {system}; "
                "grant create on database {database} to {system}; "
                "alter schema public owner to {owner}; grant usage on schema public to {system}; "
                # Before anything of the owner's runs, which could make one of that name.
                "create schema ichibase; revoke all on schema ichibase from public"
            ).format(database=name, **roles),
        )


async def load(target: Target, file: Path, before: Content, progress: Progress) -> list[str]:
    """Builds the database and fills it from the dump; gives what could not be made."""
    record, cluster = target.record, target.cluster
    await build(target)
    target.lent = await provision.lend(cluster, record, target.database)
    try:
        return await _load(target, file, before, progress)
    finally:
        await provision.withdraw(cluster, record.role(provision.LOADER), target.database)


async def _load(target: Target, file: Path, before: Content, progress: Progress) -> list[str]:
    """Fills a built database from the dump; gives what could not be made."""
    folder = file.parent
    every, own = [
        listing.entries((await tool.run()).decode("utf-8", "replace"))
        for tool in (
            tools.contents(target.cluster, file),
            tools.contents(target.cluster, file, f"--schema={listing.OWN}"),
        )
    ]
    found = listing.sort(every, own, before.database)
    warnings: list[str] = []

    async def restore(
        dsn: str, what: list[Entry], name: str, *options: str, strict: bool = True
    ) -> None:
        if not what:
            return
        listed = folder / f"{name}.list"
        listed.write_text("".join(f"{entry.line}\n" for entry in what))
        tool = tools.restore(target.cluster, dsn, file, listed, *options, strict=strict)
        try:
            await tool.run()
        except tools.ToolError as error:
            if strict or IGNORED not in str(error):
                raise BackupError(f"restoring {name} failed: {error}", "database_failed") from None
            warnings.extend(_errors(str(error)))

    rights = Rights(target.cluster, file, before.database, target.record.database, warnings)

    async def policies(dsn: str, what: list[Entry], name: str) -> None:
        if await rights.names(what):
            await rights.policies(dsn, what)
        else:
            await restore(dsn, what, name, strict=False)

    owner, system = target.dsn("owner"), target.dsn("system")
    await progress("system tables", 0, 0)
    await restore(system, found.system, "system")
    await policies(system, found.system_policies, "system-policies")
    await rights.make(system, found.system_acls)
    await progress("tables", 0, 0)
    schemas = [entry for entry in found.owner if entry.is_a("SCHEMA")]
    await restore(owner, schemas, "schemas", strict=False)
    await _extensions(target, file, found.extensions, warnings)
    rest = [entry for entry in found.owner if not entry.is_a("SCHEMA")]
    await restore(owner, rest, "owner", strict=False)
    await policies(owner, found.owner_policies, "owner-policies")
    await rights.make(owner, found.owner_acls)
    await restore(system, found.triggers, "triggers", strict=False)
    await provision.equip(target.admin_dsn, target.record, target.database)
    await restore(target.admin_dsn, found.own, "own", "--data-only")
    return warnings


async def _extensions(target: Target, file: Path, what: list[Entry], warnings: list[str]) -> None:
    """By the owner where the owner may, so that the owner may drop them; else by the
    administrator."""
    if not what:
        return
    listed = file.parent / "extensions.list"
    listed.write_text("".join(f"{entry.line}\n" for entry in what))
    written = (await tools.script(target.cluster, file, listed).run()).decode()
    make = sql.SQL("create extension if not exists {} with schema {}")
    for names in extensions(written):
        statement = make.format(*map(sql.Identifier, names))
        try:
            async with await connect(target.dsn("owner")) as connection:
                await run(connection, statement)
            continue
        except psycopg.errors.InsufficientPrivilege:
            pass
        except psycopg.Error as error:
            warnings.append(str(error).splitlines()[0])
            continue
        try:
            async with await connect(target.admin_dsn) as connection:
                await run(connection, statement)
        except psycopg.Error as error:
            warnings.append(str(error).splitlines()[0])


def _errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if "error:" in line.lower()][:50]


async def check(target: Target, before: Content, progress: Progress) -> Outcome:
    """BackupError when the tables are not those of the backup."""
    await progress("checksums", 0, 0)
    async with await connect(target.admin_dsn) as connection:
        await content.prepare(connection)
        found = await content.tables(connection)
    same = before.sums == content.SUMS
    wrong = content.differences(before.tables, found, values=same)
    if wrong:
        raise BackupError("the restored tables differ from the backup: " + "; ".join(wrong[:10]))
    return Outcome(len(found), sum(table.rows for table in found.values()), 0, [])


async def into_project(
    projects: Projects,
    record: Record,
    reader: Reader,
    progress: Progress,
    *,
    made: bool = False,
    keep_sessions: bool = False,
) -> Outcome:
    """Replaces a project's data by that of the backup. Its keys, logins, settings, functions and
    their secrets stay. made: the project is new; it gets the functions of the backup as well.
    Its users are signed out, unless keep_sessions lets those sessions live on that nobody has
    ended since the backup."""
    cluster = projects.cluster(record)
    target = Target(cluster, record, record.database + NEW)
    await _check_login(cluster, record)
    async with unpacked(reader, projects.config.data_dir, progress) as folder:
        before = msgspec.json.decode((folder / CONTENT).read_bytes(), type=Content)
        refill = _refill(projects, record) if (folder / DOCUMENTS).exists() else None
        swapped = False
        try:
            warnings = await load(target, folder / DUMP, before, progress)
            outcome = await check(target, before, progress)
            outcome.warnings = warnings
            if refill is not None:
                await progress("documents", 0, 0)
                await refill.load(_pieces(folder / DOCUMENTS), before.collections)
            async with projects.control() as control, locked(control, record.id):
                kept = None
                if keep_sessions:
                    present = target if made else Target(cluster, record, record.database)
                    async with await connect(present.dsn("system")) as connection:
                        kept = await sessions.live(connection)
                outcome.sessions = await sessions.settle(target.dsn("system"), kept)
                # Settings of the logins are a database's own; the project's state and limits may
                # have changed since the restore began.
                await owe(control, record.id)
                await swap(cluster, record)
                swapped = True
                if refill is not None:
                    outcome.warnings += await refill.replace()
                    outcome.documents = sum(one.documents for one in before.collections.values())
                await told(control, record)
                await _recount(control, cluster, record)
                await projects.settle(control, record.id)
            try:  # the backup may be of an older program
                await migrate(records.to_project(record, projects.config))
            except MigrationError as error:
                outcome.warnings.append(str(error))
        except BaseException:
            if refill is not None and not swapped:
                with contextlib.suppress(DocumentsError, ApiError):
                    await refill.clear()
            raise
        finally:
            await _drop(cluster, target.database)
        if (folder / STORAGE).exists():
            stored = msgspec.json.decode((folder / STORAGE).read_bytes(), type=list[Stored])
            outcome.files = len(stored)
            try:
                outcome.warnings += await files.settle(
                    projects.config, reader.manifest.project_id, record.id, stored, progress
                )
            except files.FilesError as error:
                if made:
                    raise
                # The rest is in its place, and so are the files, for all that is known.
                outcome.warnings.append(str(error))
        if made and (folder / FUNCTIONS).exists():
            await progress("functions", 0, 0)
            ids = (reader.manifest.project_id, record.id)
            async with projects.control() as control:
                outcome.functions, missing = await functions.write(
                    control, projects.config, ids, _pieces(folder / FUNCTIONS)
                )
            outcome.warnings += missing
    return outcome


async def _check_login(cluster: Cluster, record: Record) -> None:
    """BackupError while nothing can be made by the owner's login."""
    open_ = "select rolcanlogin from pg_roles where rolname = $1"
    async with await connect(cluster.admin_dsn) as admin:
        if await fetch(admin, open_, (record.role("owner"),)) == [(False,)]:
            raise BackupError(
                f'the owner\'s login of "{record.slug}" is closed: the project is suspended, or '
                "has just been cut off. Restore into a new project, or once it is open again",
                "owner_login_closed",
            )


async def told(control: Connection, record: Record) -> None:
    """Has every worker drop what it knows of the project's database."""
    await control.execute("update projects set changed_at = now() where id = $1", (record.id,))


LEVEL = """insert into usage (project_id, day, counter, value) values ($1, '-infinity', $2, $3)
  on conflict (project_id, day, counter)
  do update set value = excluded.value, changed_at = clock_timestamp()"""


async def _recount(control: Connection, cluster: Cluster, record: Record) -> None:
    """The quota of files goes by what the restored database knows of."""
    present = Target(cluster, record, record.database)
    async with await connect(present.dsn("system")) as connection:
        used = await files.used(connection)
    if used is not None:
        for counter, value in zip(("storage_bytes", "storage_objects"), used, strict=True):
            await control.execute(LEVEL, (record.id, counter, value))


async def swap(cluster: Cluster, record: Record) -> None:
    """Puts the new database in the place of the one in use, which is then dropped."""
    name = sql.Identifier(record.database)
    new, before = (sql.Identifier(record.database + end) for end in (NEW, BEFORE))
    async with await connect(cluster.admin_dsn) as admin:
        await drop_database(admin, record.database + BEFORE)
        await run(admin, sql.SQL("alter database {} with allow_connections false").format(name))
        try:
            for attempt in range(SWAP_TRIES):
                await _end_sessions(admin, record.database, record.database + NEW)
                try:
                    async with admin.transaction():
                        await run(
                            admin, sql.SQL("alter database {} rename to {}").format(name, before)
                        )
                        await run(
                            admin, sql.SQL("alter database {} rename to {}").format(new, name)
                        )
                    break
                except psycopg.errors.ObjectInUse:
                    if attempt == SWAP_TRIES - 1:
                        raise
                    await asyncio.sleep(0.1)
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                await run(
                    admin, sql.SQL("alter database {} with allow_connections true").format(name)
                )
            raise
        await provision.end_replication(admin, record.database + BEFORE)
        await drop_database(admin, record.database + BEFORE)


async def _end_sessions(admin: Connection, *databases: str) -> None:
    await fetch(
        admin,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = any($1) "
        "and pid <> pg_backend_pid()",
        (list(databases),),
    )


async def _drop(cluster: Cluster, database: str) -> None:
    async with await connect(cluster.admin_dsn) as admin:
        await drop_database(admin, database)


async def clear(cluster: Cluster) -> None:
    """Removes what interrupted restores and verifications have left. A database that was renamed
    away has been replaced already; one whose connections were stopped takes them again."""
    async with await connect(cluster.admin_dsn) as admin:
        rows = await fetch(
            admin, "select datname, datallowconn from pg_database where datname like 'ichi\\_%'"
        )
        for name, open_ in rows:
            target = sql.Identifier(name)
            if name.startswith(SCRATCH) or name.endswith((NEW, BEFORE)):
                await provision.end_replication(admin, name)
                await drop_database(admin, name)
            elif not open_:
                await run(
                    admin, sql.SQL("alter database {} with allow_connections true").format(target)
                )
        lent = "select rolname from pg_roles where rolname like 'ichi\\_%\\_loader'"
        for (role,) in await fetch(admin, lent):
            await provision.withdraw(cluster, role)
        roles = await fetch(
            admin, "select rolname from pg_roles where rolname like 'ichi\\_scratch\\_%'"
        )
        for (role,) in roles:
            await run(admin, sql.SQL("drop role if exists {}").format(sql.Identifier(role)))


def scratch(cluster: Cluster, flavor: str, tier: str) -> Record:
    """A project that no row knows, for a database that is dropped again."""
    return Record(
        id="scratch", slug="scratch", state="active", flavor=flavor, tier=tier,  # type: ignore[arg-type]
        cluster_id=cluster.id, created_at="", database=SCRATCH + secrets.new_id(),
        owner_password=secrets.new_password(), authenticator_password=secrets.new_password(),
        system_password=secrets.new_password(), feed_password=secrets.new_password(),
        storage_secret="", anon_key="", service_key="",
        mongo_url=None, revision=1, host=cluster.host, port=cluster.port,
        socket_dir=cluster.socket_dir, options=cluster.options, keys=(), settings={},
    )  # fmt: skip


async def verify(projects: Projects, reader: Reader, progress: Progress) -> Outcome:
    """Restores a backup into a scratch database, compares it and drops it; looks for the files that
    it refers to. BackupError."""
    cluster = next(iter(projects.clusters.values()))
    record = scratch(cluster, reader.manifest.flavor, reader.manifest.tier)
    target = Target(cluster, record, record.database)
    async with unpacked(reader, projects.config.data_dir, progress) as folder:
        before = msgspec.json.decode((folder / CONTENT).read_bytes(), type=Content)
        try:
            async with await connect(cluster.admin_dsn) as admin:
                await provision.ensure_shared_roles(admin)
                await provision.ensure_logins(admin, record)
            warnings = await load(target, folder / DUMP, before, progress)
            outcome = await check(target, before, progress)
            outcome.warnings = warnings
        finally:
            await provision.remove(cluster, record)
        if (folder / DOCUMENTS).exists():
            await progress("documents", 0, 0)
            outcome.documents, said = await _verify_documents(projects, reader, folder, before)
            outcome.warnings += said
        if (folder / STORAGE).exists():
            stored = msgspec.json.decode((folder / STORAGE).read_bytes(), type=list[Stored])
            outcome.files = len(stored)
            id = reader.manifest.project_id
            try:
                outcome.warnings += await files.settle(projects.config, id, id, stored, progress)
            except files.FilesError as error:
                outcome.warnings.append(str(error))
    return outcome


def _refill(projects: Projects, record: Record) -> Refill | None:
    """None for a project that has no documents."""
    url = records.to_project(record, projects.config).mongo_url
    if url is None or record.mongo_url is None:
        return None
    return Refill(projects.documents, record.mongo_url, url)


async def _verify_documents(
    projects: Projects, reader: Reader, folder: Path, before: Content
) -> tuple[int, list[str]]:
    """A node without a document server only reads the backup."""
    server, address = projects.documents, projects.config.mongo_address
    source = _pieces(folder / DOCUMENTS)
    if server is None or address is None:
        return documents.same(before.collections, await documents.sums(source)), []
    kept = new_address(SCRATCH_ID + reader.manifest.project_id, secrets.new_password())
    return await verify_documents(server, kept, address, source, before.collections)


async def abandon(projects: Projects, record: Record) -> None:
    """Removes the documents that an interrupted restore has made beside those in use.
    DocumentsError or ApiError."""
    refill = _refill(projects, record)
    if refill is not None:
        await refill.clear()


async def clear_documents(projects: Projects, project_id: str) -> None:
    """Removes the scratch database of a verification that was interrupted. ApiError."""
    if projects.documents is not None:
        await projects.documents.remove(new_address(SCRATCH_ID + project_id, ""))


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(documents.PIECE):
            yield piece
            await asyncio.sleep(0)
