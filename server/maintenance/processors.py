"""Shares the processors among the projects' sessions in the embedded PostgreSQL and their document
servers.

PostgreSQL has no limit of processor time, but a process per session, and a project's documents are
in a process of their own; both are called sessions here. These are weighed by the tiers of their
projects. A project whose sessions use much is a heavy one: as long as there are any beside other
projects' sessions, or something of low weight is busy, the workers and those sessions may interrupt
it. At other times nobody interrupts anybody, which gets most requests done.

A weight says how much time a process gets, not how soon another one does that wakes up: on a full
processor it may have to wait for the next tick of the clock. So a heavy project's sessions that
compute take long turns, which everybody may interrupt; those with less than a full weight come
behind all others, as long as these leave them enough. Those that write get more than their share
and come before them: who holds a lock of the log must get on. Who writes in bulk gets less, since
each feed has to read what any project logs. And the sessions of heavy projects with less than a
full weight, the functions of such, and what writes for all databases leave some processors to the
others, as long as there are any.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from typing import Any

import psycopg

from server.base import processor
from server.base.events import Events, Failed, Noted
from server.base.limits import of as limits_of
from server.control.database import Connection, connect, fetch
from server.control.projects import Projects
from server.maintenance.census import Census, lowered, named, nice_seconds, run_of_all_threads
from server.maintenance.writers import Writers

PAUSE = 0.25  # seconds between looks at the processes
SOON = 0.1  # the same while others are to be interrupted: new sessions begin with a full weight
AGAIN = 20  # looks between which the weights of known processes may have changed
MUCH, LITTLE = 0.25, 0.1  # of one processor: what makes a project heavy, and light again
KEPT = 0.5  # of what a project has used before, in the sum of each look
LEAST = 3  # weight of a process
NEXT_TO_NONE = 1  # the same of what comes behind all others
WRITER = 60  # the same of a session that writes and else does little
WRITER_APART = 200  # the same where it shares processors with nobody but its like
BULK = 30  # the same of a session that writes much, which all feeds have to read
READER = 40  # the same of a feed's session, whose work others make
CALM = 2.0  # seconds after the last heavy project in which it may still be interrupted
PRESENT = 10.0  # seconds after its last use of a session for which a project counts as there
ENOUGH = 0.4  # of a processor, for what comes behind all others together: locks must not be held on
STIR = 0.0001  # seconds of processor time between two looks that are a use
WORKERS = ("ichibase-worker", "ichibase-rt")
FUNCTIONS, FUNCTION = "ichibase-fn", "deno"  # the process that starts them, and each of them
SELECT = "select database, tier, limits from projects where database = any($1)"


class Processors:
    """node: process whose descendants the workers are. heavy: databases. crowded: whether others
    may interrupt them."""

    def __init__(self, projects: Projects, census: Census, node: int, events: Events) -> None:
        self.projects = projects
        self.census = census
        self.node = node
        self.events = events
        self.heavy: set[str] = set()
        self.crowded = False
        self.alone = False  # only one project has sessions
        self._wanted: dict[str, int] = {}  # weights by database
        self._weights: dict[int, int] = {}  # of processes that have been weighed
        self._busy: dict[str, int] = {}  # most processes at once, of the heavy ones
        self.writers = Writers()
        self._queued: dict[int, processor.Turn] = {}  # how they were told to take their turns
        self._first = True  # a process before this one may have told them
        self._workers: list[int] = []  # while they may interrupt
        self._use: dict[str, float] = {}  # of one processor, by database
        self._nice = 0.0
        self._looked = 0.0
        self._heavy_at = float("-inf")
        self._left = 0
        self._refused = False
        self._control: Connection | None = None
        self._present: dict[str, float] = {}  # when they were last used, by database
        self._all = processor.processors()
        self._some = processor.most(self._all)
        self._can_return = processor.can_return()
        self._behind = False  # whether sessions that compute may come behind all others
        self._writer = WRITER if self._some == self._all else WRITER_APART
        self._placed: set[int] = set()  # processes that are held to some processors
        self._functions: list[int] = []  # processes that start functions, while it is crowded
        # Functions with less than a full weight, likewise, and what they had run at the last look.
        self._lowered: dict[int, int] = {}
        self._busy_functions: set[int] = set()

    async def run(self) -> None:
        """Until cancelled. What fails is told once and tried again."""
        failing = False
        try:
            while True:
                try:
                    await self.look()
                    failing = False
                except Exception as error:
                    if not failing and not isinstance(error, psycopg.OperationalError):
                        trace = traceback.format_exc()
                        self.events.emit(Failed("sharing the processors", trace))
                    failing = True
                pause = SOON if self.crowded else PAUSE
                await asyncio.sleep(10 * PAUSE if failing else pause)
        finally:
            if self._control is not None:
                await self._control.close()

    async def look(self) -> None:
        """Weighs sessions that are new, and now and then those that are known; sees who is heavy
        and tells all how to take their turns."""
        fresh = self.census.look()
        for gone in self._weights.keys() - self.census.databases.keys():
            del self._weights[gone]
        self._left -= 1
        if fresh or self._left <= 0:
            self._left = AGAIN
            await self._ask()
        now = time.monotonic()
        seconds, self._looked = now - self._looked, now
        self._count(seconds, now)
        self.writers.look(self._heavy_sessions(), now)
        self._weigh()
        self._see_functions(seconds)
        self._queue()
        self._place()

    async def _ask(self) -> None:
        names = {name for name in self.census.databases.values() if name}
        if not names:
            return
        if self._control is None or self._control.closed:
            self._control = await connect(self.projects.dsn)
        rows = await fetch(self._control, SELECT, (list(names),))
        tiers = self.projects.config.tiers
        self._wanted = {name: limits_of(tiers, tier, own).cpu_weight for name, tier, own in rows}

    def _heavy_sessions(self) -> dict[int, int]:
        """How long those of the database have run."""
        return {
            process: ran for process, ran in self.census.ran.items()
            if self.census.databases.get(process) in self.heavy
            and process not in self.census.beside
        }  # fmt: skip

    def _weigh(self) -> None:
        """The busy sessions of a heavy project that compute share its weight."""
        for process, name in self.census.databases.items():
            weight = self._wanted.get(name, processor.FULL)
            if name in self.heavy and weight < processor.FULL:
                if self._computes(process):
                    part = max(LEAST, weight // self._busy[name])
                    weight = NEXT_TO_NONE if self._behind else part
                elif process in self.writers.writing:
                    bulk = process in self.writers.bulk
                    weight = max(BULK if bulk else self._writer, weight)
            elif process in self.census.readers:
                weight = max(READER, weight)
            before = self._weights.get(process, processor.FULL)
            if before != weight:
                # Raising may need rights that the node lacks; then the session keeps its weight.
                if self._change(processor.share, process, weight, tell=weight < before):
                    self._weights[process] = weight

    def _count(self, seconds: float, now: float) -> None:
        """Sees who is heavy. seconds: since the last look."""
        spent = self.census.spent()
        nice, self._nice = self._nice, nice_seconds()
        if seconds > 10 * PAUSE:  # the first look, or this process has been stopped meanwhile
            return
        use = {name: self._use.get(name, 0.0) * KEPT + spent.get(name, 0.0) / seconds * (1 - KEPT)
               for name in spent}  # fmt: skip
        self._use = use
        self._present = {name: at for name, at in self._present.items() if now - at < PRESENT}
        self._present |= {name: now for name, seconds in spent.items() if seconds > STIR}
        self.heavy = {
            name for name, part in use.items()
            if part > (LITTLE if name in self.heavy else MUCH)
        }  # fmt: skip
        light = sum(use[name] for name in self.heavy if self._light(name))
        self._behind = self._can_return and light > ENOUGH
        self._busy = {
            name: max(1, self._busy.get(name, 1), self.census.busy.get(name, 1))
            for name in self.heavy
        }
        self.alone = len(use.keys() | {name for name in self.census.databases.values() if name}) < 2
        if (self.heavy and not self.alone) or (self._nice - nice) / seconds > MUCH:
            self._heavy_at = now
        self.crowded = now - self._heavy_at < CALM

    def _queue(self) -> None:
        told = {process: self._turn(process, name)
                for process, name in self.census.databases.items()}  # fmt: skip
        if self.crowded != bool(self._workers) or (self.crowded and self._left == AGAIN):
            self._workers = named(self.node, WORKERS)
        told |= dict.fromkeys(self._workers, processor.FIRST if self.crowded else processor.USUAL)
        told |= {process: self._turn_of_function(process) for process in self._lowered}
        untold, self._first = None if self._first else processor.USUAL, False
        for process, turn in told.items():
            if self._queued.get(process, untold) != turn:
                self._change(processor.queue, process, turn)
                self._queued[process] = turn
        for gone in self._queued.keys() - told.keys():
            del self._queued[gone]
        if not self.crowded:
            self._workers = []
            self._lowered = {}

    def _turn(self, process: int, name: str) -> processor.Turn:
        if not self.crowded:
            return processor.YIELDING if name in self.heavy else processor.USUAL
        if not name and lowered(process):
            return processor.LAST  # a session of the node's own that nobody waits for
        if self.alone or name not in self.heavy:
            return processor.FIRST
        if not self._computes(process):
            return processor.SECOND
        return processor.BEHIND if self._behind and self._light(name) else processor.LAST

    def _light(self, name: str) -> bool:
        return self._wanted.get(name, processor.FULL) < processor.FULL

    def _computes(self, process: int) -> bool:
        return process in self.writers.computing or process in self.census.beside

    def _place(self) -> None:
        """Holds who is heavy to some of the processors while there are others."""
        if len(self._some) == len(self._all):
            return
        wanted = set()
        if self.crowded:
            wanted = {
                process for process, name in self.census.databases.items()
                if name in self.heavy and self._light(name) and self._present.keys() - {name}
            }  # fmt: skip
            if wanted:
                wanted |= self.census.keepers  # they are busy with what heavy projects write
            full = any(self._wanted.get(one, processor.FULL) >= processor.FULL
                       for one in self._present)  # fmt: skip
            if full or len(self._present) > 1:  # else it is likely to be their own project
                wanted |= self._lowered.keys()
        for process in wanted ^ self._placed:
            where = self._some if process in wanted else self._all
            if self._change(processor.place, process, where):
                self._placed ^= {process}

    def _see_functions(self, seconds: float) -> None:
        """Those with less than a full weight, as long as it is crowded, and once after that."""
        if not self.crowded:
            self._functions = []
            return
        if not self._functions or self._left == AGAIN:
            self._functions = named(self.node, (FUNCTIONS,))
        before = self._lowered
        self._lowered = {
            process: run_of_all_threads(process) or 0
            for parent in self._functions for process in named(parent, (FUNCTION,))
            if lowered(process)
        }  # fmt: skip
        self._busy_functions = {
            process for process, ran in self._lowered.items()
            if ran - before.get(process, ran) > MUCH * seconds * 1e9
        }  # fmt: skip

    def _turn_of_function(self, process: int) -> processor.Turn:
        if not self.crowded:
            return processor.YIELDING
        return processor.LAST if process in self._busy_functions else processor.SECOND

    def _change(
        self, change: Callable[..., None], process: int, *how: Any, tell: bool = True
    ) -> bool:
        """False when it has to be tried again a moment later."""
        try:
            change(process, *how)
        except BlockingIOError:
            return False  # the system takes one such change at a time
        except ProcessLookupError:
            pass
        except OSError as error:
            if tell and not self._refused:
                self._refused = True
                self.events.emit(Noted(
                    "this system does not let the node share the processors among projects",
                    f"{error.strerror}; their tiers' cpu_weight has no effect",
                ))  # fmt: skip
        return True
