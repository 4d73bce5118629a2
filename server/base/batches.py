"""Bodies of requests, taken in batches of many pieces at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol


class Batches(Protocol):
    """A body that is read once, by one task. over: its last byte has been taken."""

    @property
    def over(self) -> bool: ...

    async def take(self, size: int, seconds: float, *, ahead: bool = False) -> list[bytes]:
        """The next pieces, together of `size` bytes or a piece more; less at the end of the body,
        or what has come after so many seconds. ahead: as much again may be gathered for the next
        call meanwhile. ApiError for a body that ends early or is too long."""
        ...

    async def rest(self) -> float:
        """Waits until the next batch may be taken: its project may send so much a second. Gives
        the seconds, in which the client could not send."""
        ...

    def close(self) -> None:
        """No more of it is wanted."""
        ...


class StreamBatches:
    """Of a stream of pieces that raises what is wrong with it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.over = False
        self._pieces = pieces
        self._next: asyncio.Task[bytes] | None = None

    async def take(self, size: int, seconds: float, *, ahead: bool = False) -> list[bytes]:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        parts: list[bytes] = []
        held = 0
        while held < size and not self.over:
            if self._next is None:
                self._next = loop.create_task(self._piece())
            done, _ = await asyncio.wait([self._next], timeout=max(0.0, until - loop.time()))
            if not done:
                break
            task, self._next = self._next, None
            try:
                piece = task.result()
            except StopAsyncIteration:
                self.over = True
                break
            parts.append(piece)
            held += len(piece)
        return parts

    async def rest(self) -> float:
        return 0.0

    async def _piece(self) -> bytes:
        return await anext(self._pieces)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next.add_done_callback(_seen)


def _seen(task: asyncio.Task[bytes]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
