"""The further processes of busy functions, within the calls at once of their project's tier."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from ichicore.errors import ApiError
from server.functions.confine import ConfineError
from server.functions.journal import say
from server.functions.running import Running

CALLS_EACH = 25  # calls at once of a project, for each of which a function may have a process
FULL, SLACK = 0.85, 0.35  # of a processor: processes that use more are short of it, or less not
SOON, LATER = 1.0, 10.0  # seconds of either until there is one more, or one less

Place = tuple[str, str]  # project id, function


class Crowd:
    """The processes of one busy function besides its first."""

    def __init__(self) -> None:
        self.others: list[Running] = []
        self.starting = False
        self._since: dict[bool, float] = {}  # full or slack: since when

    def look(self, rates: Sequence[float], most: int, now: float) -> int:
        """1 when there should be one more, -1 for one less, else 0. rates: of all of them."""
        full = min(rates) > FULL and len(rates) < most
        slack = sum(rates) < SLACK * len(rates) and len(rates) > 1
        for kind, held, seconds in ((True, full, SOON), (False, slack, LATER)):
            if not held:
                self._since.pop(kind, None)
            elif now - self._since.setdefault(kind, now) >= seconds:
                self._since.clear()
                return 1 if kind else -1
        return 0


class Crowds:
    """Of one node. firsts: each function's first process, which this replaces when it leaves.
    another(first): loads one more of its kind. joined(first, made): it serves now."""

    def __init__(
        self, firsts: dict[Place, Running], another: Callable[[Running], Awaitable[Running]],
        retire: Callable[[Running], None], joined: Callable[[Running, Running], None],
    ) -> None:  # fmt: skip
        self.firsts = firsts
        self.another = another
        self.retire = retire
        self.joined = joined
        self.by_place: dict[Place, Crowd] = {}
        self._growing: set[asyncio.Task[None]] = set()

    def beside(self, project_id: str, name: str) -> list[Running]:
        """The further processes of a function."""
        crowd = self.by_place.get((project_id, name))
        return list(crowd.others) if crowd is not None else []

    def look(self, now: float) -> None:
        """Gives each function as many processes as it is short of, or has too many."""
        for place, first in list(self.firsts.items()):
            most = most_processes(first.project.concurrency)
            if most < 2 or first.cell.state != "ready":
                continue
            crowd = self.by_place.setdefault(place, Crowd())
            rates = [first.rate, *(other.rate for other in crowd.others)]
            wanted = crowd.look(rates, most, now)
            if wanted > 0 and not crowd.starting:
                crowd.starting = True
                task = asyncio.ensure_future(self._grow(place, first, crowd))
                self._growing.add(task)
                task.add_done_callback(self._growing.discard)
            elif wanted < 0:
                self.retire(crowd.others[-1])

    async def _grow(self, place: Place, first: Running, crowd: Crowd) -> None:
        try:
            made = await self.another(first)
        except (ApiError, ConfineError, OSError) as error:
            say(f"{first.version.name} of {first.project.slug} gets no further process: {error}")
            return
        finally:
            crowd.starting = False
        if self.firsts.get(place) is not first or self.by_place.get(place) is not crowd:
            made.cell.kill("replaced")
            return
        crowd.others.append(made)
        self.joined(first, made)

    def leave(self, running: Running) -> None:
        """It is none of its function's processes any more; when it was the first, another is."""
        place = (running.project.id, running.version.name)
        crowd = self.by_place.get(place)
        if crowd is not None and running in crowd.others:
            crowd.others.remove(running)
        if self.firsts.get(place) is running:
            del self.firsts[place]
            if crowd is not None and crowd.others:
                self.firsts[place] = crowd.others.pop(0)
            elif crowd is not None:
                del self.by_place[place]

    def disband(self, place: Place) -> None:
        """Another first process has taken the place of them all."""
        crowd = self.by_place.pop(place, None)
        for other in crowd.others if crowd is not None else ():
            self.retire(other)


def most_processes(concurrency: int) -> int:
    """How many processes a function may have, by the calls at once of its project's tier."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(concurrency // CALLS_EACH, cores or 1))
