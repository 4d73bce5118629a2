"""Shares the embedded document server among projects: it does one thing at a time and cannot weigh
them itself.

A project whose tier gives it less than a full weight has few operations at once. While other
projects use the server too, it has one, and gets its weight's part of the time: what it has not
used adds up to BURST seconds, and when that is spent its operations wait. None of them begins while
one of another project is on its way, unless that takes long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ichicore.errors import ApiError
from server.base import processor
from server.base.project import Project

PLACES = 2  # operations of such a project at once
BURST = 0.01  # seconds of work
LOOK = 0.1  # seconds between looks whether the others are still there
AFTER = 0.02  # seconds that an operation waits for those of others, at most
MOMENT = 0.0005  # seconds between looks whether they are done
KEPT = 1024  # projects


class Share:
    """What a project may still use. left: seconds of work. single: of those beside others."""

    __slots__ = ("left", "places", "single", "then")

    def __init__(self, now: float) -> None:
        self.places = asyncio.Semaphore(PLACES)
        self.single = asyncio.Semaphore(1)
        self.left = BURST
        self.then = now

    def refill(self, now: float, rate: float) -> None:
        self.left = min(BURST, self.left + (now - self.then) * rate)
        self.then = now


class Turns:
    """others(project id): whether anybody else has used the server of late. working: whether an
    operation of anybody else is on its way."""

    def __init__(
        self,
        others: Callable[[str], bool],
        working: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.others = others
        self.working = working
        self.clock = clock
        self._shares: dict[str, Share] = {}

    @asynccontextmanager
    async def turn(self, project: Project, seconds: float) -> AsyncIterator[None]:
        """Around one operation. ApiError 503 when its turn does not come within `seconds`."""
        weight = project.limits.cpu_weight
        if weight >= processor.FULL:
            yield
            return
        share = self._share(project.id)
        rate = weight / processor.FULL
        places = share.single if self.others(project.id) else share.places
        try:
            async with asyncio.timeout(seconds):
                await places.acquire()
        except TimeoutError:
            raise busy() from None
        try:
            await self._wait(share, rate, project.id, self.clock() + seconds)
            began = self.clock()
            try:
                yield
            finally:
                now = self.clock()
                share.refill(now, rate)
                share.left -= now - began
        finally:
            places.release()

    async def _wait(self, share: Share, rate: float, project_id: str, deadline: float) -> None:
        while self.others(project_id):
            now = self.clock()
            share.refill(now, rate)
            if share.left > 0:
                until = now + AFTER
                while self.working(project_id) and self.clock() < until:
                    await asyncio.sleep(MOMENT)
                return
            if now >= deadline:
                raise busy()
            await asyncio.sleep(min(LOOK, -share.left / rate + 0.001))
        share.left = BURST

    def _share(self, project_id: str) -> Share:
        share = self._shares.pop(project_id, None)
        if share is None:
            share = Share(self.clock())
            while len(self._shares) >= KEPT:
                del self._shares[next(iter(self._shares))]
        self._shares[project_id] = share  # the last used one at the end
        return share


def busy() -> ApiError:
    return ApiError(
        503, "unavailable", "The project has more document operations than its plan allows.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip
