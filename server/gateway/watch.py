"""Clients that leave before they are answered: their requests are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

WATCH_AFTER = 0.2  # seconds after which a request's client is watched
SWEEP = 0.1  # seconds between looks at the requests in flight


class Watch:
    """The requests of one worker that are in flight.

    in_flight: number to (started, what to cancel, the HTTP server's protocol object), in order of
    arrival. A request that was cancelled because its client left is in `gone` until it is over.
    """

    def __init__(self) -> None:
        self.in_flight: dict[int, tuple[float, Any, Any]] = {}
        self.watchers: dict[int, asyncio.Task[None]] = {}
        self.gone: set[int] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, in the running loop."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="sweep")

    async def stop(self) -> None:
        tasks = [*self.watchers.values(), *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def over(self, number: int) -> None:
        """A request has ended."""
        watcher = self.watchers.pop(number, None)
        if watcher is not None:
            watcher.cancel()
            self.gone.discard(number)

    async def _sweep(self) -> None:
        """Watches the clients of requests that take long. Watching each from its start would cost
        more than most requests do."""
        while True:
            await asyncio.sleep(SWEEP)
            if not self.in_flight:
                continue
            limit = perf_counter() - WATCH_AFTER
            for number, (started, task, protocol) in list(self.in_flight.items()):
                if started > limit:
                    break  # in order of arrival: the rest are younger
                left = getattr(protocol, "client_disconnect", None)
                if number not in self.watchers and left is not None:
                    self.watchers[number] = asyncio.ensure_future(
                        self._until_gone(number, left, task)
                    )

    async def _until_gone(
        self, number: int, left: Callable[[], Awaitable[None]], task: Any
    ) -> None:
        await left()
        if number in self.in_flight:
            self.gone.add(number)
            task.cancel()
