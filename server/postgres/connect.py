"""Opening connections: psycopg does TLS and authentication, the executor takes over after it."""

from __future__ import annotations

import asyncio
import dataclasses

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ichicore.pg.errors import PgUnavailable
from ichicore.pg.executor import Executor, Shared, check_library
from server.postgres.spool import Spool

check_library(psycopg.pq.version())
if psycopg.pq.__impl__ != "c":
    raise RuntimeError("psycopg's C implementation is needed: install psycopg[c]")

FORMAT_SETTINGS = (
    "select current_setting('bytea_output') = 'hex' "
    "and current_setting('extra_float_digits')::int > 0"
)
ROOM_TRIES, ROOM_PAUSE = 20, 0.1  # seconds between them


@dataclasses.dataclass(slots=True, eq=False)
class Link:
    """An open connection. `connection` owns the libpq connection that `executor` drives."""

    connection: psycopg.AsyncConnection
    executor: Executor
    fileno: int
    cancelled: object = None  # the group a cancel request was sent for
    cancelled_at: float = 0.0
    cancel_pending: bool = False

    def close(self) -> None:
        self.executor.detach()
        self.connection.pgconn.finish()


def describe_failure(error: BaseException) -> str:
    """One line without secrets: libpq names hosts, users and reasons, never passwords."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


async def _connect(dsn: str) -> psycopg.AsyncConnection:
    """Waits a moment for room in the table of locks, which all databases of a server share: who
    fills it is about to be ended."""
    tries = ROOM_TRIES
    while True:
        try:
            return await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, prepare_threshold=None
            )
        except psycopg.OperationalError as error:
            tries -= 1
            if not tries or "out of shared memory" not in str(error):
                raise
        await asyncio.sleep(ROOM_PAUSE)


async def open_link(
    dsn: str, shared: Shared, *, connect_timeout: float, statements: int, application_name: str
) -> Link:
    """A connection in pipeline mode. PgUnavailable when there is none within the time."""
    options = conninfo_to_dict(dsn)
    options.setdefault("application_name", application_name)
    options["client_encoding"] = "UTF8"
    try:
        async with asyncio.timeout(connect_timeout):
            connection = await _connect(make_conninfo("", **options))
            try:
                row = await (await connection.execute(FORMAT_SETTINGS)).fetchone()
            except BaseException:
                connection.pgconn.finish()
                raise
    except TimeoutError:
        raise PgUnavailable(
            f"the database did not accept a connection within {connect_timeout:g} s"
        ) from None
    except (psycopg.Error, OSError) as error:
        raise PgUnavailable(f"no connection to the database: {describe_failure(error)}") from None
    executor = Executor(
        connection.pgconn.pgconn_ptr or 0,  # type: ignore[attr-defined]
        shared,
        Spool,
        limit=statements,
        plain_settings=bool(row and row[0]),
    )
    return Link(connection, executor, connection.pgconn.socket)
