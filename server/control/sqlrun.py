"""Runs an owner's SQL: statements one after the other, answers as plain data.

A text goes to the server as one simple query, so its statements are one transaction unless the
text says otherwise. Rows are read one at a time: what goes beyond the limits is dropped, not kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any

import orjson
import psycopg
from psycopg import AsyncConnection, generators
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from ichicore.errors import ApiError

TIMEOUT_MS = 60_000
LONGEST_TIMEOUT_MS = 3_600_000
MIGRATION_TIMEOUT_MS = 600_000
MAX_ROWS = 10_000  # of one result
MAX_BYTES = 32 << 20  # of all values of one request
NAME = re.compile(r"[\w.-]{1,200}\Z")
BOOL, JSON, JSONB = 16, 114, 3802
INTEGERS = frozenset({20, 21, 23, 26})
FLOATS = frozenset({700, 701})
CANCEL_SECONDS = 5.0

Connection = AsyncConnection[Any]


async def _connect(dsn: str, timeout_ms: int) -> Connection:
    try:
        return await AsyncConnection.connect(
            dsn, autocommit=True, connect_timeout=10, application_name="ichibase sql",
            options=f"-c statement_timeout={timeout_ms} -c client_encoding=UTF8",
        )  # fmt: skip
    except psycopg.OperationalError:
        raise _away() from None


async def execute(dsn: str, text: str, timeout_ms: int = TIMEOUT_MS) -> list[dict[str, Any]]:
    """One result a statement: {command, row_count, columns: [{name, type}], rows: [[...]],
    truncated}. timeout_ms: for the whole text. ApiError 400 sql_error, with SQLSTATE, hint and
    place in the details; 408 statement_timeout; 503 when the database is away."""
    raw = _bytes(text)
    async with await _connect(dsn, timeout_ms) as connection:
        results = await _within(connection, timeout_ms, _run(connection, raw, text))
        await _within(connection, TIMEOUT_MS, _name_types(connection, results))
    return results


async def migrate(dsn: str, name: str, text: str) -> bool:
    """Applies one migration in a transaction and records it. False when it was applied before;
    ApiError 409 migration_changed when it was applied with another text."""
    if not NAME.match(name):
        raise ApiError(400, "invalid_name", "A migration's name is a plain file name.")
    raw = _bytes(text)
    checksum = hashlib.sha256(raw).hexdigest()
    async with await _connect(dsn, MIGRATION_TIMEOUT_MS) as connection:
        return await _within(
            connection, MIGRATION_TIMEOUT_MS, _apply(connection, name, raw, text, checksum)
        )


async def applied(dsn: str) -> list[dict[str, Any]]:
    """The recorded migrations, in the order in which they were applied."""
    query = """select name, checksum, to_json(applied_at) #>> '{}' from ichibase.migrations
      order by applied_at, name"""
    async with await _connect(dsn, TIMEOUT_MS) as connection:
        rows = await (await connection.execute(query)).fetchall()
    return [{"name": n, "checksum": c, "applied_at": at} for n, c, at in rows]


def _bytes(text: str) -> bytes:
    if "\x00" in text:
        raise ApiError(400, "bad_request", "SQL cannot contain a NUL character.")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "bad_request", "SQL cannot contain a lone surrogate.") from None


async def _within(connection: Connection, timeout_ms: int, work: Any) -> Any:
    """The text may change statement_timeout, so the time is also kept here."""
    try:
        async with asyncio.timeout(timeout_ms / 1000 + 1):
            return await work
    except TimeoutError:
        try:
            await connection.cancel_safe(timeout=CANCEL_SECONDS)
        except psycopg.Error:
            pass  # closing the connection ends the statement where cancelling does not
        await connection.close()
        raise _timed_out() from None
    except psycopg.OperationalError:
        raise _away() from None


async def _apply(connection: Connection, name: str, raw: bytes, text: str, checksum: str) -> bool:
    await connection.execute("begin")
    # Under a lock, so that two deployments at once apply each file once.
    await connection.execute(
        "select pg_advisory_xact_lock(hashtextextended('ichibase migrate', 0))"
    )
    known = "select checksum from ichibase.migrations where name = %s"
    row = await (await connection.execute(known, (name,))).fetchone()
    if row is not None:
        if row[0] == checksum:
            return False
        raise ApiError(
            409, "migration_changed",
            f"{name} was applied before with another text; add a new migration instead.",
        )  # fmt: skip
    await _run(connection, raw, text)
    if connection.info.transaction_status != TransactionStatus.INTRANS:
        raise ApiError(
            400, "transaction_control",
            f"{name} ends its transaction itself (COMMIT or ROLLBACK): what it did before that "
            "may have stayed, and it was not recorded. A migration is one transaction.",
        )  # fmt: skip
    try:
        # The text may have changed the role, the search path or the encoding.
        await _run(connection, b"reset role; reset all", "")
        insert = "insert into ichibase.migrations (name, checksum) values (%s, %s)"
        await connection.execute(insert, (name, checksum))
        await connection.execute("commit")
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:  # deferred constraints speak up here
        message = error.diag.message_primary or "The transaction could not be committed."
        raise ApiError(400, "sql_error", message, details={"sqlstate": error.sqlstate}) from None
    return True


async def _run(connection: Connection, raw: bytes, text: str) -> list[dict[str, Any]]:
    session = connection.pgconn
    session.send_query(raw)
    session.set_single_row_mode()
    await connection.wait(generators.send(session))
    results: list[dict[str, Any]] = []
    current: dict[str, Any] | None = None
    room = MAX_BYTES
    while (found := await connection.wait(generators.fetch(session))) is not None:
        if found.status == ExecStatus.FATAL_ERROR:
            refusal = _refusal(found, text)
            severity = found.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
            if (severity, found.error_field(DiagnosticField.SQLSTATE)) == (b"FATAL", b"57P01"):
                raise _ended()
            if session.status != 0:  # the connection broke with it
                raise _away()
            await _drain(connection)
            raise refusal
        if found.status in (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH):
            session.finish()
            raise ApiError(
                400, "copy_not_supported",
                "COPY from standard input and to standard output is not supported here; use a "
                "database client with the project's database_url.",
            )  # fmt: skip
        if found.status == ExecStatus.EMPTY_QUERY:
            continue
        if current is None:
            current = {"command": "", "row_count": 0, "columns": _columns(found), "rows": [],
                       "truncated": False}  # fmt: skip
            results.append(current)
        if found.status == ExecStatus.SINGLE_TUPLE:
            current["row_count"] += 1
            values = [found.get_value(0, i) for i in range(found.nfields)]
            size = sum(len(value) for value in values if value is not None)
            if len(current["rows"]) >= MAX_ROWS or size > room:
                current["truncated"] = True
                continue
            room -= size
            types = (column["type"] for column in current["columns"])
            current["rows"].append([_plain(t, v) for t, v in zip(types, values, strict=True)])
            continue
        current["command"] = (found.command_status or b"").decode()
        if found.command_tuples is not None and not current["columns"]:
            current["row_count"] = found.command_tuples
        current = None
    return results


async def _drain(connection: Connection) -> None:
    while await connection.wait(generators.fetch(connection.pgconn)) is not None:
        pass


def _columns(found: PGresult) -> list[dict[str, Any]]:
    return [
        {"name": (found.fname(i) or b"").decode("utf-8", "replace"), "type": found.ftype(i)}
        for i in range(found.nfields)
    ]


def _plain(type_oid: int, value: bytes | None) -> Any:
    """A value as JSON can carry it: what has no exact counterpart stays Postgres' own text."""
    if value is None:
        return None
    if type_oid == BOOL:
        return value == b"t"
    if type_oid in INTEGERS:
        number = int(value)
        return number if abs(number) <= 2**53 else str(number)
    if type_oid in FLOATS:
        return value.decode() if value[-1:] in b"Ny" else float(value)  # NaN, Infinity
    if type_oid in (JSON, JSONB):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:  # nested or numerous beyond what the parser takes
            return value.decode("utf-8", "replace")
    return value.decode("utf-8", "replace")


async def _name_types(connection: Connection, results: list[dict[str, Any]]) -> None:
    """Puts names in place of the columns' type numbers. A transaction that the text has left open
    is rolled back, whatever it answered."""
    if connection.info.transaction_status != TransactionStatus.IDLE:
        await _run(connection, b"rollback", "")
    columns = [column for result in results for column in result["columns"]]
    if not columns:
        return
    await _run(connection, b"reset all", "")  # the driver does not know every encoding
    query = """select oid, typname::text from pg_catalog.pg_type
      where oid = any(%s::oid[])"""
    wanted = sorted({column["type"] for column in columns})
    rows = await (await connection.execute(query, (wanted,))).fetchall()
    names = dict(rows)
    for column in columns:
        column["type"] = names.get(column["type"], str(column["type"]))


def _refusal(found: PGresult, text: str) -> ApiError:
    """The database's refusal as a coded answer with the place it points at."""

    def field(code: DiagnosticField) -> str | None:
        value = found.error_field(code)
        return value.decode("utf-8", "replace") if value is not None else None

    sqlstate = field(DiagnosticField.SQLSTATE)
    if sqlstate == "57014" and "statement timeout" in (
        field(DiagnosticField.MESSAGE_PRIMARY) or ""
    ):
        return _timed_out()
    position = int(field(DiagnosticField.STATEMENT_POSITION) or 0)
    before = text[: max(0, position - 1)]
    details = {
        "sqlstate": sqlstate,
        "detail": field(DiagnosticField.MESSAGE_DETAIL),
        "hint": field(DiagnosticField.MESSAGE_HINT),
        "position": position or None,
        "line": before.count("\n") + 1 if position else None,
        "column": len(before) - (before.rfind("\n") + 1) + 1 if position else None,
    }
    message = field(DiagnosticField.MESSAGE_PRIMARY) or "The statement failed."
    return ApiError(400, "sql_error", message, details=details)


def _timed_out() -> ApiError:
    return ApiError(408, "statement_timeout", "The SQL took longer than it may; nothing was kept.")


def _ended() -> ApiError:
    return ApiError(
        503, "session_ended",
        "The server ended the session, as it does with those that hold others up or when it stops; "
        "what was not committed is gone. The project's audit says why.",
        headers=(("retry-after", "2"),),
    )  # fmt: skip


def _away() -> ApiError:
    return ApiError(
        503, "unavailable", "The project's database does not answer.",
        headers=(("retry-after", "2"),),
    )  # fmt: skip
