"""How many bytes a second the bodies of one project's requests and answers may be: each of them
takes time of the worker and its disk, which others need too.

Who sends too fast is read later, and who asks for too much gets it later. Answers of the databases
count as so many requests more instead: they are there already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic

from ichicore.http.express import Tally
from server.base.batches import Batches

LEAST = 16 << 10  # bytes of a body that counts
BURST = 0.25  # seconds' worth that may come at once
MOST = 30.0  # seconds that anything waits


class Traffic:
    """Of one project in one worker. tally: of its requests."""

    def __init__(self, tally: Tally, clock: Callable[[], float] = monotonic) -> None:
        self.tally = tally
        self.rate = 0.0  # bytes a second, 0 for any number
        self._clock = clock
        self._turn = 0.0  # when the next byte may pass

    def delay(self, size: int) -> float:
        """Seconds until a piece may pass, which is counted."""
        if not self.rate or size <= 0:
            return 0.0
        now = self._clock()
        start = max(self._turn, now - BURST)
        self._turn = min(start + size / self.rate, now + MOST)
        return max(0.0, start - now)

    async def wait(self, size: int) -> None:
        """Returns when a piece may pass, which is counted."""
        delay = self.delay(size)
        if delay:
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:  # it is not going to pass
                self._turn -= size / self.rate if self.rate else 0.0
                raise


async def slowed(pieces: AsyncIterator[bytes], traffic: Traffic) -> AsyncIterator[bytes]:
    """The pieces, each when it may pass."""
    async for piece in pieces:
        await traffic.wait(len(piece))
        yield piece


class SlowedBatches:
    """Batches, each of which counts."""

    def __init__(self, batches: Batches, traffic: Traffic) -> None:
        self._batches = batches
        self._traffic = traffic
        self._until = 0.0

    @property
    def over(self) -> bool:
        return self._batches.over

    async def take(self, size: int, seconds: float, *, ahead: bool = False) -> list[bytes]:
        parts = await self._batches.take(size, seconds, ahead=ahead)
        delay = self._traffic.delay(sum(map(len, parts)))
        self._until = asyncio.get_running_loop().time() + delay
        return parts

    async def rest(self) -> float:
        pause = self._until - asyncio.get_running_loop().time()
        if pause <= 0 or self.over:
            return 0.0
        await asyncio.sleep(pause)
        return pause

    def close(self) -> None:
        self._batches.close()
