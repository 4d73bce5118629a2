"""Runs an owner's SQL: statements one after the other, answers as plain data."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import Buffer, Loader

from ichicore.errors import ApiError

TIMEOUT_MS = 60_000
MAX_ROWS = 10_000
NAME = re.compile(r"[\w.-]{1,200}\Z")
NUMBERS = ("int2", "int4", "int8", "float4", "float8", "oid")


class _Text(Loader):
    """Values as Postgres writes them, which JSON can carry whatever the type."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


async def _connect(dsn: str) -> AsyncConnection[Any]:
    try:
        connection = await AsyncConnection.connect(
            dsn, autocommit=True, connect_timeout=10, application_name="ichibase sql",
            options=f"-c statement_timeout={TIMEOUT_MS}",
        )  # fmt: skip
    except psycopg.OperationalError:
        raise ApiError(503, "unavailable", "The project's database does not answer.",
                       headers=(("retry-after", "2"),)) from None  # fmt: skip
    for info in connection.adapters.types:
        if info.name not in (*NUMBERS, "bool", "json", "jsonb"):
            connection.adapters.register_loader(info.oid, _Text)
    connection.adapters.register_loader(0, _Text)
    return connection


async def execute(dsn: str, text: str) -> list[dict[str, Any]]:
    """One result a statement: {command, row_count, columns: [{name, type}], rows: [[...]],
    truncated}. ApiError 400 sql_error, with SQLSTATE, hint and position in the details."""
    if "\x00" in text:
        raise ApiError(400, "bad_request", "SQL cannot contain a NUL character.")
    async with await _connect(dsn) as connection:
        try:
            cursor = await connection.execute(text.encode())
            results = []
            while True:
                results.append(await _result(cursor))
                if not cursor.nextset():
                    return results
        except psycopg.Error as error:
            raise sql_error(error, text) from None


async def _result(cursor: psycopg.AsyncCursor[Any]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "command": cursor.statusmessage or "", "row_count": cursor.rowcount,
        "columns": [], "rows": [], "truncated": False,
    }  # fmt: skip
    if cursor.description:
        types = cursor.connection.adapters.types
        for column in cursor.description:
            info = types.get(column.type_code)
            result["columns"].append(
                {"name": column.name, "type": info.name if info else str(column.type_code)}
            )
        rows = await cursor.fetchmany(MAX_ROWS + 1)
        result["truncated"] = len(rows) > MAX_ROWS
        result["rows"] = [[_plain(v) for v in row] for row in rows[:MAX_ROWS]]
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value


def sql_error(error: psycopg.Error, text: str) -> ApiError:
    """The database's refusal as a coded answer with the line it points at."""
    diagnostic = error.diag
    position = int(diagnostic.statement_position or 0)
    details = {
        "sqlstate": error.sqlstate,
        "detail": diagnostic.message_detail,
        "hint": diagnostic.message_hint,
        "position": position or None,
        "line": text.count("\n", 0, position - 1) + 1 if position else None,
    }
    message = diagnostic.message_primary or str(error).strip() or "The statement failed."
    status = 503 if isinstance(error, psycopg.errors.AdminShutdown) else 400
    return ApiError(status, "sql_error", message, details=details)


async def migrate(dsn: str, name: str, text: str) -> bool:
    """Applies one migration in a transaction and records it. False when it was applied before;
    ApiError 409 migration_changed when it was applied with another text."""
    if not NAME.match(name):
        raise ApiError(400, "invalid_name", "A migration's name is a plain file name.")
    if "\x00" in text:
        raise ApiError(400, "bad_request", "SQL cannot contain a NUL character.")
    checksum = hashlib.sha256(text.encode()).hexdigest()
    async with await _connect(dsn) as connection:
        try:
            async with connection.transaction():
                await connection.execute(
                    "select pg_advisory_xact_lock(hashtextextended('ichibase migrate', 0))"
                )
                rows = await (
                    await connection.execute(
                        "select checksum from ichibase.migrations where name = %s", (name,)
                    )
                ).fetchall()
                if rows:
                    if rows[0][0] != checksum:
                        raise ApiError(
                            409, "migration_changed",
                            f"{name} was applied before with another text; add a new migration",
                        )  # fmt: skip
                    return False
                await connection.execute(text.encode())
                await connection.execute(
                    "insert into ichibase.migrations (name, checksum) values (%s, %s)",
                    (name, checksum),
                )
        except psycopg.Error as error:
            raise sql_error(error, text) from None
    return True
