"""Statements of the storage service against one project's database, under the system login.
Parameters and results travel as text."""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import VALUES, Group, Statement
from server.base.context import Pools
from server.base.project import Project

Value = str | bytes | int | float | bool | list[str] | None
Row = tuple[bytes | None, ...]
Rows = list[Row]

TIMEOUT = 10.0  # seconds; every statement here touches few rows
LONG = 60.0  # seconds; of what may touch a whole folder
# How a moment is shown to clients; the session's time zone plays no part.
ISO = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
AGAIN = (("retry-after", "2"),)


def statement(sql: str) -> Statement:
    """A statement whose rows come back as tuples of text."""
    return Statement(sql, result=VALUES, per_role=False)


class Database:
    """One project's database. Holds no connection: the pool may be closed and made again."""

    __slots__ = ("_pools", "_project")

    def __init__(self, pools: Pools, project: Project) -> None:
        self._pools = pools
        self._project = project

    async def rows(self, what: Statement, *params: Value, slow: bool = False) -> Rows:
        """Runs one statement in a transaction of its own. slow: it may touch many rows."""
        group = Group("")
        group.add(what, tuple([encode(value) for value in params]))
        pool = self._pools.system(self._project)
        results = await pool.run(group, slow=slow, timeout=LONG if slow else TIMEOUT)
        return results[0].values

    async def row(self, what: Statement, *params: Value, slow: bool = False) -> Row:
        """The same for a statement that always answers one row."""
        return (await self.rows(what, *params, slow=slow))[0]


def encode(value: Value) -> bytes | None:
    """A parameter in Postgres' text format."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, bytes):
        return b"\\x" + value.hex().encode()
    if isinstance(value, list):
        quoted = (item.replace("\\", "\\\\").replace('"', '\\"') for item in value)
        return ("{" + ",".join(f'"{item}"' for item in quoted) + "}").encode()
    return repr(value).encode()


def sure(value: bytes | None) -> str:
    """A column that is never null."""
    assert value is not None
    return value.decode()


def refusal(error: Exception) -> ApiError | None:
    """What a failure of the database means to the client; None when it is a fault of ours."""
    if isinstance(error, PgUnavailable | PoolTimeout):
        return ApiError(
            503, "unavailable", "The project's database does not answer.", headers=AGAIN
        )
    if isinstance(error, StatementTimeout):
        return ApiError(504, "timeout", "The project's database took too long.")
    if isinstance(error, PgError):
        state = error.sqlstate
        if state == "23503":
            return ApiError(409, "conflict", "Rows of the app still refer to this file.")
        if state.startswith(("22", "54")):
            return ApiError(400, "bad_request", "A value cannot be stored.")
        if state in ("40001", "40P01", "55P03") or state.startswith(("53", "57")):
            return ApiError(
                503, "unavailable", "The project's database takes no more work at this moment.",
                headers=AGAIN,
            )  # fmt: skip
    return None
