"""Versioned SQL migrations of one schema, each applied once and in order.

A service keeps its migrations in a folder of NNN_name.sql files inside its package. The table
`<schema>.schema_migrations` records number, name and checksum of what was applied; a session-level
advisory lock lets any number of workers start at the same moment. A file may hold several
statements; it runs in one transaction, so it must not contain what refuses one (CREATE INDEX
CONCURRENTLY, VACUUM).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from importlib import resources

import msgspec
import psycopg
from psycopg import sql

FILE_NAME = re.compile(r"([0-9]{3})_([a-z0-9_]+)\.sql")
CONNECT_TIMEOUT = 10  # seconds


class MigrationError(RuntimeError):
    """The schema cannot be brought to this program's version; the text says why."""


class Migration(msgspec.Struct, frozen=True):
    """One file: number from its name, text, and the SHA-256 of the text in hexadecimal."""

    number: int
    name: str
    text: str
    checksum: str


def load(package: str) -> tuple[Migration, ...]:
    """The migrations in the folder `migrations` of an importable package, in order."""
    found = []
    for entry in resources.files(package).joinpath("migrations").iterdir():
        match = FILE_NAME.fullmatch(entry.name)
        if match:
            text = entry.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(int(match[1]), match[2], text, digest))
    found.sort(key=lambda migration: migration.number)
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"the migrations of {package} are not numbered 001, 002, ...")
    return tuple(found)


def apply(dsn: str, *schemas: tuple[str, str]) -> list[str]:
    """Bring schemas, each named with the package of its migrations, to the newest version; gives
    the names applied now. Blocks the thread.

    dsn: a login that owns the schemas, or may create them. Raises MigrationError when a recorded
    file has changed since or the database is ahead of this program, psycopg.Error otherwise.
    """
    applied = []
    with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as connection:
        for package, schema in schemas:
            migrations = load(package)
            if _pending(connection, migrations, schema) == []:
                continue
            digest = hashlib.sha256(f"migrations:{schema}".encode()).digest()
            key = int.from_bytes(digest[:8], "big") - (1 << 63)
            connection.execute("select pg_advisory_lock(%s)", (key,))
            try:
                _prepare(connection, schema)
                pending = _pending(connection, migrations, schema)
                assert pending is not None
                for migration in pending:
                    _run(connection, migration, schema)
                    applied.append(migration.name)
            finally:
                with contextlib.suppress(psycopg.OperationalError):  # a lost connection holds none
                    connection.execute("select pg_advisory_unlock(%s)", (key,))
    return applied


async def apply_async(dsn: str, *schemas: tuple[str, str]) -> list[str]:
    """`apply` in a thread of its own, for a running event loop."""
    return await asyncio.to_thread(apply, dsn, *schemas)


def _table(schema: str) -> sql.Identifier:
    return sql.Identifier(schema, "schema_migrations")


def _pending(
    connection: psycopg.Connection, migrations: tuple[Migration, ...], schema: str
) -> list[Migration] | None:
    """What is still to be applied; None when nothing was ever recorded."""
    row = connection.execute(
        "select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = 'schema_migrations'",
        (schema,),
    ).fetchone()
    if row is None:
        return None
    query = sql.SQL("select number, name, checksum from {} order by number").format(_table(schema))
    applied = connection.execute(query).fetchall()
    if len(applied) > len(migrations):
        raise MigrationError(
            f"schema {schema} is at migration {len(applied)}, this program knows "
            f"{len(migrations)}: run the newer program or restore a backup"
        )
    for (number, name, checksum), migration in zip(applied, migrations, strict=False):
        if number != migration.number or checksum != migration.checksum:
            raise MigrationError(
                f"migration {number:03d}_{name} of schema {schema} is not the one of this program"
            )
    return list(migrations[len(applied) :])


def _prepare(connection: psycopg.Connection, schema: str) -> None:
    exists = connection.execute(
        "select 1 from pg_namespace where nspname = %s", (schema,)
    ).fetchone()
    if exists is None:  # "if not exists" would ask for the right to create even when it exists
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
    connection.execute(
        sql.SQL(
            "create table if not exists {} (number integer primary key, name text not null,"
            " checksum text not null, applied_at timestamptz not null default now())"
        ).format(_table(schema))
    )


def _run(connection: psycopg.Connection, migration: Migration, schema: str) -> None:
    with connection.transaction():
        # Without parameters psycopg uses the simple protocol, which takes several statements.
        connection.execute(migration.text.encode())
        connection.execute(
            sql.SQL("insert into {} (number, name, checksum) values (%s, %s, %s)").format(
                _table(schema)
            ),
            (migration.number, migration.name, migration.checksum),
        )
