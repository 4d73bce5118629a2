"""Runs tasks by the clock, one after the other; one that fails does not keep the others waiting."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable

import psycopg

from server.base.events import Events, Failed, Lost
from server.base.metrics import Metrics


class Task:
    """every: seconds from one start to the next. run: may raise anything."""

    def __init__(self, name: str, every: float, run: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.every = every
        self.run = run
        self.due = 0.0
        self.lost = ""  # what it said of a database the last time


class Scheduler:
    def __init__(self, tasks: list[Task], events: Events, metrics: Metrics) -> None:
        self.tasks = tasks
        self.events = events
        self.metrics = metrics

    async def run(self) -> None:
        """Until cancelled. A late task is not made up for."""
        for task in self.tasks:
            task.due = 0.0
        while True:
            now = time.monotonic()
            for task in self.tasks:
                if task.due <= now:
                    task.due = now + task.every
                    await self.once(task)
            pause = min(task.due for task in self.tasks) - time.monotonic()
            await asyncio.sleep(max(pause, 0.05))

    async def once(self, task: Task) -> None:
        """One run of a task; what it raises is told, the same of a database once."""
        before, task.lost = task.lost, ""
        try:
            await task.run()
        except psycopg.OperationalError as error:
            self.metrics.count("ichibase_maintenance_failures_total", (("task", task.name),))
            task.lost = str(error).strip()
            if task.lost != before:
                self.events.emit(Lost(f"a database (maintenance, {task.name})", task.lost))
        except Exception:
            self.metrics.count("ichibase_maintenance_failures_total", (("task", task.name),))
            self.events.emit(Failed(f"maintenance: {task.name}", traceback.format_exc()))
