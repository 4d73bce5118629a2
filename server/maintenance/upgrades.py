"""Brings the projects that an older program made up to date, a few at once, while the node serves.

Every node does so for itself, whoever leads the maintenance: the leader may be of an older program.
Two that meet at a project take turns at its lock, and the second finds nothing to do. A request to
a project that is not up to date puts it first, and waits (server/base/directory.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from typing import Any

import psycopg

from ichicore.errors import ApiError
from server.base.bus import RECONNECTED, PgBus
from server.base.directory import UPGRADE
from server.base.events import Events, Failed, Lost, Noted
from server.control import upgrades
from server.control.projects import Busy, Projects

AT_ONCE = 4
TELL_SECONDS = 5.0  # between lines of progress in the log
AGAIN_SECONDS = 60.0  # until what failed is tried again


class Upgrades:
    """bus: tells whom requests wait for."""

    def __init__(self, projects: Projects, bus: PgBus, events: Events) -> None:
        self.projects = projects
        self.events = events
        self.faults: dict[str, str] = {}  # by name, what stood in the way last
        self._urgent: dict[str, None] = {}  # names, in the order of asking
        self._look = asyncio.Event()
        self._waiting: dict[str, str] = {}  # ids by name
        self._all = self._done = 0
        self._told = 0.0
        bus.subscribe(UPGRADE, self._wanted)
        bus.subscribe(RECONNECTED, lambda _: self._look.set())

    def _wanted(self, message: dict[str, Any]) -> None:
        slug = message.get("slug")
        if isinstance(slug, str):
            self._urgent[slug] = None
            if slug not in self._waiting:  # made or brought back since the last look
                self._look.set()

    async def run(self) -> None:
        """Until cancelled."""
        lost = False
        while True:
            try:
                again = await self._pass()
            except (psycopg.Error, ApiError, OSError) as error:
                if not lost:
                    self.events.emit(Lost("a database (upgrades)", str(error).strip()))
                lost = again = True
            else:
                lost = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS if again else None):
                    await self._look.wait()
            self._look.clear()

    async def _pass(self) -> bool:
        """One turn over all that are not up to date; whether some still are not."""
        found = await upgrades.outdated(self.projects)
        self._waiting = {slug: id for id, slug in found}
        self._urgent = {slug: None for slug in self._urgent if slug in self._waiting}
        self.faults = {slug: fault for slug, fault in self.faults.items() if slug in self._waiting}
        self._all, self._done, self._told = len(found), 0, time.monotonic()
        if not found:
            return False
        if len(found) > 1:
            self.events.emit(Noted("bringing projects up to date", f"{len(found)} of them"))
        # One that raises has the others end after what they are at, which is waited for.
        several = [self._some() for _ in range(AT_ONCE)]
        results = await asyncio.gather(*several, return_exceptions=True)
        failed = 0
        for result in results:
            if isinstance(result, BaseException):
                raise result
            failed += result
        if len(found) > 1 or failed:
            text = f"{self._done} projects are up to date"
            self.events.emit(Noted(text, f"{failed} could not be brought there" if failed else ""))
        return failed > 0

    async def _some(self) -> int:
        """Takes one project after the other; gives how many failed."""
        failed = 0
        while self._waiting:
            asked = next((one for one in self._urgent if one in self._waiting), None)
            slug = asked or next(iter(self._waiting))
            self._urgent.pop(slug, None)
            id = self._waiting.pop(slug)
            try:
                failed += not await self._one(id, slug)
            except (psycopg.OperationalError, OSError):
                self._waiting.clear()  # a server is away: the others need not try
                raise
        return failed

    async def _one(self, id: str, slug: str) -> bool:
        try:
            fault = await upgrades.upgrade(self.projects, id)
        except Busy as error:
            fault = str(error)
        except (psycopg.OperationalError, OSError):
            raise
        except ApiError as error:
            fault = error.message
        except Exception:
            self.events.emit(Failed(f"bringing project {slug} up to date", traceback.format_exc()))
            return False
        return self._ended(slug, fault)

    def _ended(self, slug: str, fault: str | None) -> bool:
        if fault is not None:
            if self.faults.get(slug) != fault:
                self.faults[slug] = fault
                self.events.emit(Noted(f"project {slug} could not be brought up to date", fault))
            return False
        self.faults.pop(slug, None)
        self._done += 1
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            self.events.emit(Noted("bringing projects up to date", f"{self._done} of {self._all}"))
        return True
