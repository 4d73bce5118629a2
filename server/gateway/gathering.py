"""The body of a request in batches, gathered in the thread in which the HTTP server hands it over.

The server gives a body in pieces, each of which would wake the loop, which would ask for the next
one. Here the thread that brings a piece asks for the next one, until a batch is full: the loop is
woken once a batch.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from server.gateway.limits import cut_short


class Gathered:
    """Of a request that declares its length. At most what was last asked for, and one piece more,
    waits to be taken."""

    def __init__(self, protocol: Any, length: int) -> None:
        self.over = length == 0
        self._length = length
        self._received = 0
        self._wanted = 0
        self._held = 0
        self._parts: list[bytes] = []
        self._broken = False
        self._asking = False
        self._closed = False
        self._given: Any = None  # what the server will call back for
        self._next = aiter(protocol).__anext__
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # Of the fields up to here but the last four. A piece that is there already is brought while
        # it is asked for.
        self._lock = threading.RLock()

    async def take(self, size: int, seconds: float, *, ahead: bool = False) -> list[bytes]:
        with self._lock:
            self._wanted = size
            ready = self._held >= size or self._ended
            ask = not ready and not self._asking
            if ask:
                self._asking = True
            if not ready:
                self._waiter = self._loop.create_future()
        if ask:
            self._ask()
        if self._waiter is not None:
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        with self._lock:
            parts, self._parts = self._parts, []
            self._held = 0
            self._wanted = size if ahead else 0
            self.over = self._received >= self._length
            broken = self._broken and not self.over
            ask = ahead and not self._ended and not self._asking
            if ask:
                self._asking = True
        if broken:
            raise cut_short()
        if ask:
            self._ask()
        return parts

    async def rest(self) -> float:
        return 0.0

    def close(self) -> None:
        """Whoever comes next may ask the server for the rest: nothing is asked for any more."""
        with self._lock:
            self._closed = True
            if self._asking and self._given is not None:
                self._given.cancel()

    @property
    def _ended(self) -> bool:
        return self._broken or self._received >= self._length

    def __call__(self, given: Any) -> None:
        """A piece is there. In whatever thread."""
        try:
            piece = given.result()
        except BaseException:  # the client is gone, or close was called
            piece = b""
        with self._lock:
            if piece:
                self._parts.append(piece)
                self._held += len(piece)
                self._received += len(piece)
            else:
                self._broken = True
            more = self._held < self._wanted and not self._ended and not self._closed
            self._asking = more
        if more:
            self._ask()
        elif not self._closed:
            self._loop.call_soon_threadsafe(self._wake)

    def _ask(self) -> None:
        """Asks the server for the next piece: it calls back as soon as that is there."""
        with self._lock:
            if self._closed:
                self._asking = False
                return
            try:
                self._given = given = self._next()
                given.add_done_callback(self)
                return
            except BaseException:  # it has no more, though the length says so
                self._broken = True
                self._asking = False
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
