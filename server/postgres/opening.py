"""Opens the connections of a pool, after a failure not at once again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import monotonic

from ichicore.pg.errors import PgUnavailable
from server.postgres.budget import ConnectionBudget, Member
from server.postgres.connect import Link

MAX_BACKOFF = 1.0  # seconds

log = logging.getLogger("ichibase.postgres")


class Opener:
    """Of one pool, the `member` of the budget.

    connect: opens one connection, or raises PgUnavailable. opened: called with it. refused: called
    with the error, which tells in how many seconds the next attempt may be made.
    """

    def __init__(
        self,
        member: Member,
        budget: ConnectionBudget | None,
        connect: Callable[[], Awaitable[Link]],
        opened: Callable[[Link], None],
        refused: Callable[[PgUnavailable], None],
    ) -> None:
        self._member = member
        self._budget = budget
        self._connect = connect
        self._opened = opened
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._retry_at = 0.0
        self._last_failure = ""

    def __len__(self) -> int:
        """Connections that are being opened."""
        return len(self._tasks)

    def away(self) -> PgUnavailable | None:
        """What the last attempt failed with, while it is too early for another one."""
        pause = self._retry_at - monotonic()
        return PgUnavailable(self._last_failure, max(pause, 0.1)) if pause > 0 else None

    def open(self, count: int) -> None:
        """Begins to open connections, as many as the budget allows."""
        for _ in range(count):
            if self._budget is not None and not self._budget.take(self._member):
                return
            task = asyncio.get_running_loop().create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            link = await self._connect()
        except BaseException as error:
            self.closed()
            if not isinstance(error, PgUnavailable):
                raise
            self._failed(error)
            return
        self._failures = 0
        self._retry_at = 0.0
        self._opened(link)

    def _failed(self, error: PgUnavailable) -> None:
        """The next attempt waits longer after each failure; of attempts made together, the first
        one counts."""
        self._last_failure = str(error)
        if (early := self.away()) is not None:
            self._refused(early)
            return
        pause = min(0.1 * 2**self._failures, MAX_BACKOFF) * random.uniform(0.75, 1.25)  # noqa: S311
        self._failures = min(self._failures + 1, 10)
        self._retry_at = monotonic() + pause
        log.warning("%s; next attempt in %.1f s", error, pause)
        self._refused(PgUnavailable(str(error), pause))

    def closed(self) -> None:
        """A connection is no more."""
        if self._budget is not None:
            self._budget.release()

    async def stop(self) -> None:
        """Gives up what is being opened."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
