"""How fast one project's sockets may open and send, in the realtime process and through a worker,
both of which serve others too.

Who is too fast waits, and what he sends stays with him meanwhile. What a project may send in all is
counted in the realtime process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.base.limits import Limits

MOST_SECONDS = 10.0  # that a socket waits to be opened
OPENINGS = 10.0  # seconds in which a project may open as many sockets as it may have
AHEAD = 4.0  # of them may open at once: one in so many
FRAMES = 2.0  # times the messages that a project may send: pings and such are frames too
DELIVERIES = 50.0  # times the same; who gets more than a worker passes on is a slow consumer
KEPT = 1024  # projects


class Pace:
    """So many a second, and so many more at once."""

    def __init__(self) -> None:
        self.next = 0.0

    def delay(
        self, now: float, rate: float, burst: float, most: float = float("inf"), count: int = 1
    ) -> float:
        """Seconds until it is the caller's turn, which is taken unless it is later than `most`."""
        turn = max(self.next, now)
        delay = max(0.0, turn - now - burst / rate)
        if delay <= most:
            self.next = turn + count / rate
        return delay


class Paces:
    """Of the projects of one worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._paces: dict[tuple[str, str], Pace] = {}

    def opening(self, project_id: str, limits: Limits) -> float | None:
        """Seconds until a socket may be opened; None when that would take too long."""
        most = max(1, limits.realtime_connections)
        delay = self._pace("openings", project_id).delay(
            self.clock(), max(1.0, most / OPENINGS), max(1.0, most / AHEAD), MOST_SECONDS
        )
        return delay if delay <= MOST_SECONDS else None

    def frame(self, project_id: str, limits: Limits) -> float:
        """Seconds until a frame may be passed on, or until the one after it may be read."""
        rate = max(1.0, FRAMES * limits.realtime_messages)
        return self._pace("frames", project_id).delay(self.clock(), rate, rate)

    def deliveries(self, project_id: str, limits: Limits, count: int) -> float:
        """Seconds until so many frames may be passed to clients, or until more may follow them."""
        rate = max(1.0, DELIVERIES * limits.realtime_messages)
        pace = self._pace("deliveries", project_id)
        return pace.delay(self.clock(), rate, rate / 50, count=count)

    def _pace(self, kind: str, project_id: str) -> Pace:
        pace = self._paces.get((kind, project_id))
        if pace is None:
            now = self.clock()
            if len(self._paces) >= KEPT:
                self._paces = {key: one for key, one in self._paces.items() if one.next > now}
            pace = self._paces[kind, project_id] = Pace()
        return pace
