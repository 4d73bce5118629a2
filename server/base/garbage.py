"""How a process that serves has the interpreter look for garbage."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time

from server.base.context import Directory
from server.base.project import Project

LATER = 20.0  # seconds after a project has fallen asleep or gone
QUICK = 0.005  # seconds that a look at everything may take, or the next one is at what is younger


def settle() -> None:
    """After the start: what is there now stays, and collections need not look at it again. What
    comes in thousands at once, requests or connections, is looked at less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Sweeper:
    """Gives back what projects have left that are asleep or gone: it refers to itself, and would be
    looked for after some million requests. Make it in the loop that runs the process."""

    def __init__(self, directory: Directory) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: asyncio.TimerHandle | None = None
        self._generation = 2
        directory.on_change(self._changed)

    def _changed(self, project: Project | None, slug: str) -> None:
        if self._due is None and (project is None or project.state == "sleeping"):
            self._due = self._loop.call_later(LATER, self._sweep)

    def _sweep(self) -> None:
        self._due = None
        began = time.perf_counter()
        gc.collect(self._generation)
        self._generation = 2 if time.perf_counter() - began < QUICK else 1
        with contextlib.suppress(OSError, AttributeError):  # a C library that has no such function
            ctypes.CDLL(None).malloc_trim(0)
