"""Makes the backup of a project: its database, its documents, what the control database knows.

Files of a backup, in the folder <project id>/<backup id> of the store: `manifest.json` (sizes and
SHA-256 of the others, readable without a key), `postgres.dump` (pg_dump's custom format),
`documents.bson` (where the project has documents), `content.json` (rows and checksums of each
table and collection, taken from the same snapshot), `storage.json` (the files it knows of, whose
bytes stay where they are), `functions.bin` (where it has edge functions or secrets of theirs) and
`project.json` (keys and settings). With a key all but the manifest are sealed, and the manifest
carries a MAC. The manifest is written last: a folder without one is what an interrupted backup has
left.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import msgspec
from psycopg import sql

from server.backup import content, documents, files, functions, tools
from server.backup.content import Table
from server.backup.documents import Collection
from server.backup.seal import derive, new_salt, seal, unseal, whole_chunks
from server.backup.store import Store, StoreError
from server.control import records
from server.control.database import connect, fetch, run
from server.control.projects import Projects
from server.control.records import Record

FORMAT = 1
DUMP = "postgres.dump"
DOCUMENTS = "documents.bson"
CONTENT = "content.json"
STORAGE = "storage.json"
FUNCTIONS = "functions.bin"
PROJECT = "project.json"
MANIFEST = "manifest.json"
NAMES = frozenset({DUMP, DOCUMENTS, CONTENT, STORAGE, FUNCTIONS, PROJECT})

Progress = files.Progress  # bytes; 0 when the total is not known


class BackupError(RuntimeError):
    """A backup cannot be made or used; the text says why."""

    def __init__(self, text: str, code: str = "backup_damaged") -> None:
        super().__init__(text)
        self.code = code


class File(msgspec.Struct, frozen=True):
    """As it lies in the store."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """salt: of the key, None when nothing is encrypted. mac: over all other members."""

    format: int
    backup: str
    project_id: str
    project: str
    flavor: str
    tier: str
    created_at: str
    postgres: int
    files: dict[str, File]
    salt: str | None = None
    mac: str | None = None


class Content(msgspec.Struct, frozen=True):
    """database: name of the one that was dumped, of which the logins' names are made. sums: how
    the tables' checksums were made."""

    database: str
    tables: dict[str, Table]
    collections: dict[str, Collection] = {}
    sums: str = ""


class Kept(msgspec.Struct, frozen=True):
    """What the control database knew of the project."""

    slug: str
    flavor: str
    tier: str
    owner: str
    limits: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    anon_key: str
    service_key: str
    keys: tuple[dict[str, Any], ...]


def new_id(slug: str) -> str:
    """Sorts by time for one project."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{slug}-{stamp}-{os.urandom(2).hex()}"


def folder(project_id: str, backup_id: str) -> str:
    return f"{project_id}/{backup_id}"


def kept(record: Record) -> Kept:
    keys = tuple(msgspec.to_builtins(key) for key in record.keys)
    return Kept(record.slug, record.flavor, record.tier, record.owner, record.limits,
                record.settings, record.anon_key, record.service_key, keys)  # fmt: skip


def mac(manifest: Manifest, key: bytes) -> str:
    bare = msgspec.structs.replace(manifest, mac=None)
    text = msgspec.json.encode(msgspec.to_builtins(bare), order="sorted")
    return hmac.new(key, b"manifest" + text, hashlib.sha256).hexdigest()


class Writer:
    """Puts the files of one backup into the store and keeps their sums."""

    def __init__(self, store: Store, project_id: str, backup_id: str, key: bytes | None) -> None:
        self.store = store
        self.where = folder(project_id, backup_id)
        self.backup_id = backup_id
        self.key = key
        self.files: dict[str, File] = {}

    async def put(self, name: str, source: AsyncIterator[bytes]) -> None:
        if self.key is not None:
            source = seal(source, self.key, f"{self.backup_id}/{name}")
        digest, size = hashlib.sha256(), 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in source:
                digest.update(piece)
                size += len(piece)
                yield piece

        await self.store.put(f"{self.where}/{name}", counted())
        self.files[name] = File(size, digest.hexdigest())

    async def put_text(self, name: str, value: Any) -> None:
        await self.put(name, _once(msgspec.json.encode(value)))


async def _once(text: bytes) -> AsyncIterator[bytes]:
    yield text


async def create(
    projects: Projects,
    record: Record,
    store: Store,
    passphrase: str | None,
    backup_id: str,
    progress: Progress,
) -> Manifest:
    """Makes the backup; what an error leaves in the store is removed, where the store lets it.
    BackupError, StoreError, ToolError, DocumentsError or psycopg.Error."""
    salt = new_salt() if passphrase else None
    key = derive(passphrase, salt) if passphrase and salt else None
    writer = Writer(store, record.id, backup_id, key)
    try:
        return await _create(projects, record, store, writer, salt, progress)
    except BaseException:
        with contextlib.suppress(StoreError):  # then it goes with its row of the listing
            await store.remove(writer.where)
        raise


async def _create(
    projects: Projects,
    record: Record,
    store: Store,
    writer: Writer,
    salt: bytes | None,
    progress: Progress,
) -> Manifest:
    cluster = projects.cluster(record)
    dsn = cluster.dsn(record.database)
    async with await connect(dsn) as connection:
        await content.prepare(connection)
        await connection.execute("begin transaction isolation level repeatable read read only")
        snapshot = (await fetch(connection, "select pg_catalog.pg_export_snapshot()"))[0][0]
        size = (await fetch(connection, "select pg_catalog.pg_database_size($1::name)",
                            (record.database,)))[0][0]  # fmt: skip
        postgres = connection.info.server_version
        async with aclosing(tools.dump(cluster, dsn, snapshot).output()) as output:
            await writer.put(DUMP, _told(output, "database", size, progress))
        await progress("checksums", 0, 0)
        tables = await content.tables(connection)
        stored = await _stored(record, snapshot)
        await connection.execute("rollback")
    collections: dict[str, Collection] = {}
    url = records.to_project(record, projects.config).mongo_url
    if url is not None:
        await progress("documents", 0, 0)
        server = projects.documents
        moving = server is None or server.server.kind == "external"
        if server is not None and not moving and record.mongo_url is not None:
            await server.ensure([record.mongo_url])  # on a node that has just started
        await writer.put(DOCUMENTS, documents.read(url, collections, moving=moving))
    found = Content(record.database, tables, collections, content.SUMS)
    await writer.put_text(CONTENT, found)
    await writer.put_text(STORAGE, stored)
    async with projects.control() as control:
        if await functions.any_of(control, record.id):
            await progress("functions", 0, 0)
            opened = writer.key is not None
            data_dir = projects.config.data_dir
            stream = functions.read(control, data_dir, record.id, opened=opened)
            await writer.put(FUNCTIONS, whole_chunks(stream, documents.PIECE))
    await writer.put_text(PROJECT, kept(record))
    manifest = Manifest(
        FORMAT, writer.backup_id, record.id, record.slug, record.flavor, record.tier,
        datetime.now(UTC).isoformat(timespec="seconds"), postgres, writer.files,
        base64.b64encode(salt).decode() if salt else None,
    )  # fmt: skip
    if writer.key is not None:
        manifest = msgspec.structs.replace(manifest, mac=mac(manifest, writer.key))
    await store.put(f"{writer.where}/{MANIFEST}", _once(msgspec.json.encode(manifest)))
    return manifest


async def _stored(record: Record, snapshot: str) -> list[files.Stored]:
    """The files that the snapshot knows of, read with no more rights than those of their tables'
    owner."""
    dsn = record.dsn("system", record.system_password)
    async with await connect(dsn) as connection:
        await connection.execute("begin transaction isolation level repeatable read read only")
        await run(connection, sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
        return await files.listed(connection)


async def _told(
    source: AsyncIterator[bytes], step: str, total: int, progress: Progress
) -> AsyncIterator[bytes]:
    done = 0
    async for piece in source:
        yield piece
        done += len(piece)
        await progress(step, done, total)


class Reader:
    """Reads one backup out of the store; everything it gives has been checked."""

    def __init__(
        self, store: Store, project_id: str, backup_id: str, passphrase: str | None
    ) -> None:
        self.store = store
        self.where = folder(project_id, backup_id)
        self.backup_id = backup_id
        self.passphrase = passphrase
        self.manifest: Manifest
        self.key: bytes | None = None

    async def open(self) -> Manifest:
        """Reads the manifest. BackupError when it is none of ours, is changed, or needs another
        key."""
        text = b"".join([piece async for piece in self.store.get(f"{self.where}/{MANIFEST}")])
        damaged = BackupError(f"the manifest of {self.backup_id} is damaged")
        try:
            manifest = msgspec.json.decode(text, type=Manifest)
            salt = base64.b64decode(manifest.salt or "", validate=True)
        except (msgspec.MsgspecError, ValueError):
            raise damaged from None
        if manifest.format > FORMAT:
            raise BackupError(
                f"{self.backup_id} was made by a newer version of this program", "backup_too_new"
            )
        if not manifest.files.keys() <= NAMES:  # they become names of files here
            raise damaged
        if manifest.backup != self.backup_id:
            raise BackupError(f"the manifest of {self.backup_id} belongs to {manifest.backup}")
        if manifest.salt is not None:
            if self.passphrase is None:
                raise BackupError(
                    f"{self.backup_id} is encrypted: set backup_key_file to its key",
                    "backup_key_missing",
                )
            self.key = derive(self.passphrase, salt)
            if not hmac.compare_digest(mac(manifest, self.key), manifest.mac or ""):
                raise BackupError(
                    f"the manifest of {self.backup_id} has been changed, or the key in "
                    "backup_key_file is another one",
                    "backup_key_mismatch",
                )
        self.manifest = manifest
        return manifest

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """A file's plain bytes. Use none of them before the end: only then is the sum known.
        BackupError or SealError."""
        expected = self.manifest.files.get(name)
        if expected is None:
            raise BackupError(f"{self.backup_id} has no {name}")
        digest, size = hashlib.sha256(), 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in self.store.get(f"{self.where}/{name}"):
                digest.update(piece)
                size += len(piece)
                yield piece

        source = counted()
        if self.key is not None:
            source = unseal(source, self.key, f"{self.backup_id}/{name}")
        async for piece in source:
            yield piece
        if size != expected.bytes or digest.hexdigest() != expected.sha256:
            raise BackupError(f"{name} of {self.backup_id} is damaged: its checksum differs")

    async def text(self, name: str, shape: type[Any]) -> Any:
        """A JSON file as a struct."""
        raw = b"".join([piece async for piece in self.get(name)])
        try:
            return msgspec.json.decode(raw, type=shape)
        except msgspec.MsgspecError:
            raise BackupError(f"{name} of {self.backup_id} is damaged") from None
