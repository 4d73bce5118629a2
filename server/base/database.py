"""Statements of a service against one project's database, under the system login, and what their
failures mean to a client. Parameters and results travel as text."""

from __future__ import annotations

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import VALUES, Group, Statement
from server.base.context import Pools
from server.base.project import Project

Value = str | bytes | int | float | bool | list[str] | list[float] | None
Row = tuple[bytes | None, ...]
Rows = list[Row]

TIMEOUT = 10.0  # seconds; of a statement that touches few rows
# How a moment is shown to clients; the session's time zone plays no part.
ISO = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
AGAIN = (("retry-after", "2"),)


def statement(sql: str) -> Statement:
    """A statement whose rows come back as tuples of text."""
    return Statement(sql, result=VALUES, per_role=False)


class ServiceDatabase:
    """One project's database. Holds no connection: the pool may be closed and made again."""

    __slots__ = ("_pools", "_project")

    def __init__(self, pools: Pools, project: Project) -> None:
        self._pools = pools
        self._project = project

    async def together(
        self,
        *steps: tuple[Statement, tuple[Value, ...]],
        slow: bool = False,
        timeout: float = TIMEOUT,
    ) -> list[Rows]:
        """Runs statements in one round trip and one transaction. slow: nothing quick is sent
        behind them on the same connection."""
        group = Group("")
        for what, params in steps:
            group.add(what, tuple([encode(value) for value in params]))
        pool = self._pools.system(self._project)
        results = await pool.run(group, slow=slow, timeout=timeout)
        return [result.values for result in results]


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
        return ("{" + ",".join(_element(item) for item in value) + "}").encode()
    return repr(value).encode()


def _element(value: str | float) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def sure(value: bytes | None) -> str:
    """A column that is never null."""
    assert value is not None
    return value.decode()


def refusal(error: Exception, referred: str) -> ApiError | None:
    """What a failure of the database means to the client; None when it is a fault of ours.
    referred: what the app's own rows may refer to."""
    if isinstance(error, PgUnavailable | PoolTimeout):
        return ApiError(
            503, "unavailable", "The project's database does not answer.", headers=AGAIN
        )
    if isinstance(error, StatementTimeout):
        return ApiError(504, "timeout", "The project's database took too long.")
    if isinstance(error, PgError):
        state = error.sqlstate
        if state == "23503":
            return ApiError(409, "conflict", f"Rows of the app still refer to {referred}.")
        if state.startswith(("22", "54")):
            return ApiError(400, "bad_request", "A value cannot be stored.")
        if state == "53100":
            return ApiError(507, "insufficient_storage", "The disk of the database server is full.")
        if state in ("40001", "40P01", "55P03") or state.startswith(("53", "57")):
            return ApiError(
                503, "unavailable", "The project's database takes no more work at this moment.",
                headers=AGAIN,
            )  # fmt: skip
    return None
