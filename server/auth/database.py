"""Statements of the auth service against one project's database, under the system login.

Every function of this package that needs the database states its SQL beside its code as a
`statement`; parameters and results travel as text.
"""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import VALUES, Group, Statement
from server.base.context import Pools
from server.base.project import Project

Value = str | bytes | int | float | bool | None | list[str] | list[float]
Row = tuple[bytes | None, ...]
Rows = list[Row]

TIMEOUT = 10.0  # seconds; every statement here touches few rows
# How a moment is shown to clients; the session's time zone plays no part.
ISO = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"


def statement(sql: str) -> Statement:
    """A statement whose rows come back as tuples of text."""
    return Statement(sql, result=VALUES, per_role=False)


class Database:
    """One project's database. Holds no connection: the pool may be closed and made again."""

    __slots__ = ("_pools", "_project")

    def __init__(self, pools: Pools, project: Project) -> None:
        self._pools = pools
        self._project = project

    async def rows(self, what: Statement, *params: Value, durable: bool = False) -> Rows:
        """Runs one statement in a transaction of its own. durable: its commit waits for the disk,
        so nothing quick is sent behind it on the same connection."""
        group = Group("")
        group.add(what, tuple([None if value is None else encode(value) for value in params]))
        pool = self._pools.system(self._project)
        results = await pool.run(group, slow=durable, timeout=TIMEOUT)
        return results[0].values

    async def together(self, *steps: tuple[Statement, tuple[Value, ...]]) -> list[Rows]:
        """Runs several statements in one round trip and one transaction."""
        group = Group("")
        for what, params in steps:
            group.add(what, tuple([None if value is None else encode(value) for value in params]))
        results = await self._pools.system(self._project).run(group, timeout=TIMEOUT)
        return [result.values for result in results]


def encode(value: Value) -> bytes | None:
    """A parameter in Postgres' text format."""
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, bytes):
        return b"\\x" + value.hex().encode()
    if isinstance(value, list):
        return ("{" + ",".join(_element(item) for item in value) + "}").encode()
    return repr(value).encode()


def _element(value: str | float) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def sure(value: bytes | None) -> str:
    """A column that is never null."""
    assert value is not None
    return value.decode()


def octets(value: bytes | None) -> bytes:
    """A bytea column that is not null."""
    assert value is not None
    return bytes.fromhex(value[2:].decode())


def refusal(error: Exception) -> ApiError | None:
    """What a failure of the database means to the client; None when it is a fault of ours."""
    if isinstance(error, PgUnavailable | PoolTimeout):
        return ApiError(
            503,
            "unavailable",
            "The project's database does not answer.",
            headers=(("retry-after", "2"),),
        )
    if isinstance(error, StatementTimeout):
        return ApiError(504, "timeout", "The project's database took too long.")
    if isinstance(error, PgError):
        state = error.sqlstate
        if state.startswith(("22", "54")):
            return ApiError(400, "bad_request", "A value cannot be stored.")
        if state == "23503":
            return ApiError(409, "conflict", "Rows of the app still refer to this user.")
        if state in ("40001", "40P01"):
            return ApiError(503, "unavailable", "Try again.", headers=(("retry-after", "1"),))
        if state.startswith(("53", "57")):
            return ApiError(
                503,
                "unavailable",
                "The project's database takes no more work at this moment.",
                headers=(("retry-after", "2"),),
            )
    return None
