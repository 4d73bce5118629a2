"""One LISTEN connection that is made again whenever it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

RETRY = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between attempts; the last one repeats
BEAT_SECONDS = 3.0  # between questions to a server from which nothing comes
SILENT_SECONDS = 5.0  # without an answer until it counts as away
# For a connection that is kept: of a machine that is gone without a word it would wait for hours.
ALIVE: dict[str, Any] = {
    "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip


async def connect(dsn: str, name: str) -> psycopg.AsyncConnection[Any]:
    """A connection in autocommit mode that notices a dead peer within a minute."""
    return await psycopg.AsyncConnection.connect(
        dsn,
        autocommit=True,
        application_name=name,
        connect_timeout=5,
        **ALIVE,
    )


def reason_of(error: BaseException) -> str:
    """One line that names no secret."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


async def ask(connection: psycopg.AsyncConnection[Any], seconds: float) -> None:
    """psycopg.OperationalError when the server does not answer in time. A cancellation would ask it
    to stop the statement, and wait for that in turn."""
    asked = asyncio.ensure_future(connection.execute("select 1"))
    await asyncio.wait([asked], timeout=seconds)
    if not asked.done():
        connection.pgconn.finish()
        asked.cancel()
        await asyncio.wait([asked])
        raise psycopg.OperationalError(f"the server was silent for {seconds:.0f} s")
    await asked


class Listener:
    """Calls `told` with each notice's payload, `began` each time the connection is up (what was
    told before is lost: read again what is kept) and `lost` once when it breaks."""

    def __init__(
        self,
        dsn: str,
        channel: str,
        name: str,
        told: Callable[[str], None],
        began: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self.dsn = dsn
        self.channel = channel
        self.name = name
        self.told = told
        self.began = began
        self.lost = lost
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to listen, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = 0
        while True:
            reason = "the server ended the connection"
            try:
                connection = await connect(self.dsn, self.name)
                async with connection:
                    await connection.execute(
                        sql.SQL("listen {}").format(sql.Identifier(self.channel))
                    )
                    failures = 0
                    self.began()
                    while True:
                        async for notice in connection.notifies(timeout=BEAT_SECONDS):
                            self.told(notice.payload)
                        await ask(connection, SILENT_SECONDS)
            except (psycopg.Error, OSError) as error:
                reason = reason_of(error)
            if failures == 0:
                self.lost(reason)
            await asyncio.sleep(RETRY[min(failures, len(RETRY) - 1)])
            failures += 1
