"""What the functions process knows of a process that serves a function."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any

import msgspec

from server.base import processor
from server.functions.cells import Cell
from server.functions.origin import Origin
from server.functions.store import Version
from server.functions.watch import RECYCLE_CPU, Charge

CRASH_WINDOW = 60.0  # seconds; ends within it count as a loop
LONGEST_BACKOFF = 60.0
FREE_CRASHES = 3  # ends that are followed by a new start at once
IDLE_SECONDS = 60.0  # without a lease until a process ends
SMOOTH = 0.3  # weight of the newest look

SOFT_MEMORY = 0.8  # of the limit: a process that stays above is replaced before it is killed
SOFT_SECONDS = 5.0
SOFT_AGE = (
    30.0  # seconds that it has served, so that one that needs so much is not replaced for ever
)

REASONS = {
    "wall": (504, "function_timeout", "The function took too long."),
    "cpu": (504, "function_timeout", "The function used more processor time than it may."),
    "memory": (500, "function_error", "The function used more memory than it may."),
    "crash": (500, "function_error", "The function's process ended."),
    "load": (502, "function_load_failed", "The function could not be started; its log says why."),
    "stop": (503, "unavailable", "The functions process is stopping."),
}


class ToldProject(msgspec.Struct, frozen=True):
    """A project as a worker tells of it with each lease."""

    id: str
    slug: str
    url: str
    anon_key: str
    service_key: str
    mongo: bool
    wall_ms: int
    cpu_ms: int
    memory: int
    concurrency: int
    bundle: int
    functions: int
    weight: int = processor.FULL


class Running:
    """One assigned process. leases: how many workers may be calling it."""

    def __init__(self, cell: Cell, version: Version, project: ToldProject, key: str) -> None:
        self.cell = cell
        self.version = version
        self.project = project
        self.key = key
        self.leases: set[Any] = set()
        self.background = False
        self.idle_since = monotonic()
        self.retired_at: float | None = None
        self.charge = Charge(cell.usage()[0])
        self.loaded: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.origin: Origin | None = None
        self.keep = IDLE_SECONDS
        self.rate = 0.0  # processors in use, smoothed
        self.memory = 0  # bytes
        self.heavy: float | None = None  # since when its memory is above the soft limit
        self._looked = (monotonic(), cell.usage()[0])

    @property
    def able(self) -> bool:
        """Whether it takes calls: a process that was killed is there for a moment longer."""
        return self.cell.state == "ready" and self.cell.reason is None

    def worn(self, now: float) -> bool:
        """Whether another process should take its place."""
        return self.charge.cpu > RECYCLE_CPU or (
            self.heavy is not None
            and now - self.heavy > SOFT_SECONDS
            and now - self.cell.started > SOFT_AGE
        )

    def looked(self, cpu: float, memory: int, now: float) -> float:
        """Takes in the processor time of its life and its memory; gives the time since the last
        look."""
        before, used = self._looked
        self.memory = memory
        if memory <= SOFT_MEMORY * self.project.memory:
            self.heavy = None
        elif self.heavy is None:
            self.heavy = now
        new = max(0.0, cpu - used)
        if now > before:
            self.rate += SMOOTH * (new / (now - before) - self.rate)
        self._looked = (now, max(cpu, used))
        return new


class Loop:
    """How often a function's process has ended by itself of late."""

    __slots__ = ("ends", "until")

    def __init__(self) -> None:
        self.ends: deque[float] = deque(maxlen=16)
        self.until = 0.0

    def ended(self) -> None:
        now = monotonic()
        self.ends.append(now)
        recent = sum(1 for at in self.ends if now - at < CRASH_WINDOW)
        if recent > FREE_CRASHES:
            self.until = now + min(LONGEST_BACKOFF, 2.0 ** (recent - FREE_CRASHES - 1))
