"""Calls the functions that have a schedule when they are due, by the node's own front door: with
the project's service key, its limits, its logs.

Every node that shares the control database looks; the one that takes a run on first makes it. What
was due while no node ran is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from ichicore.errors import ApiError
from server.base.functions import SCHEDULE, TRUSTED
from server.base.project import Project
from server.functions.cron import Cron, Interval, ScheduleError, parse
from server.functions.store import Scheduled, Store

LONGEST_SLEEP = 60.0  # seconds
RETRY = 2.0
CLOCK = timedelta(minutes=5)  # a clock that was set back further counts as right
AT_ONCE = 16
ANSWER = 64 << 10  # bytes of an answer that are read
MORE = 20.0  # seconds beyond the longest invocation: a project may have to wake up


class Due(NamedTuple):
    """One schedule of a function. number: its place among those of the project."""

    function: Scheduled
    text: str
    when: Cron | Interval
    number: int


class Scheduler:
    """Of one node. find(slug): the project, None when there is none. tell(function, level, text):
    a line of the project's log. token: proves to the workers that a call is ours."""

    def __init__(
        self, store: Store, listener: tuple[str, int],
        find: Callable[[str], Awaitable[Project | None]],
        tell: Callable[[Scheduled, str, str], None],
    ) -> None:  # fmt: skip
        self.store = store
        self.listener = listener
        self.find = find
        self.tell = tell
        self.token = secrets.token_urlsafe(24)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._runs: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="schedules")

    async def stop(self) -> None:
        tasks = [*self._runs.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def changed(self) -> None:
        """There may be other schedules."""
        self._changed.set()

    async def _run(self) -> None:
        known: list[Due] = []
        moment = datetime.now(UTC)  # until then all runs have been made
        self._changed.set()
        while True:
            now = datetime.now(UTC)
            for due in known:
                at = due.when.after(moment)
                if at <= now:
                    self._begin(due, at)
            if now > moment or moment - now > CLOCK:
                moment = now
            if self._changed.is_set():
                self._changed.clear()
                try:
                    known = _all(await self.store.scheduled())
                except ApiError:  # the control database is away
                    self._changed.set()
                    await asyncio.sleep(RETRY)
                    continue
            soonest = min(
                (due.when.after(moment) for due in known),
                default=moment + timedelta(seconds=LONGEST_SLEEP),
            )
            left = (soonest - datetime.now(UTC)).total_seconds()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LONGEST_SLEEP, max(0.0, left) + 0.01)):
                    await self._changed.wait()

    def _begin(self, due: Due, at: datetime) -> None:
        place = (due.function.project_id, due.function.name)
        if place in self._runs:
            self.tell(due.function, "warn", f"schedule {due.text!r}: the run before is not over")
            return
        task = asyncio.ensure_future(self._call(due, at))
        self._runs[place] = task
        task.add_done_callback(lambda _: self._runs.pop(place, None))

    async def _call(self, due: Due, at: datetime) -> None:
        function = due.function
        try:
            async with self._turn:
                project = await self.find(function.slug)
                if project is None or project.id != function.project_id:
                    return
                limits = project.limits
                if project.state not in ("active", "sleeping", "outdated"):
                    return
                if due.number >= limits.schedules or due.when.shortest < limits.schedule_seconds:
                    self.tell(function, "warn", f"schedule {due.text!r}: the tier has no such one")
                    return
                if not await self.store.claim(function, at):
                    return
                seconds = limits.function_wall_ms / 1000 + MORE
                status, body = await self._post(project, function.name, due.text, seconds)
                if not 200 <= status <= 299:
                    told = f"the function answered {status}" if status else "no answer came"
                    told += f": {body[:500]}" if body else ""
                    self.tell(function, "error", f"schedule {due.text!r}: {told}")
                await self.store.ran(function, at, status)
        except ApiError:
            return  # the control database is away; this run is lost

    async def _post(
        self, project: Project, name: str, text: str, seconds: float
    ) -> tuple[int, str]:
        """Status and beginning of the body; (0, "") when there was no answer."""
        parts = urlsplit(project.url)
        head = (
            f"POST /functions/{name} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
            f"apikey: {project.service_key}\r\n{TRUSTED}: {self.token}\r\n{SCHEDULE}: {text}\r\n"
            f"x-forwarded-proto: {parts.scheme}\r\ncontent-length: 0\r\n\r\n"
        )
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_connection(*self.listener)
                try:
                    writer.write(head.encode("ascii"))
                    status = int((await reader.readline()).split()[1])
                    while (await reader.readline()).strip():
                        pass
                    body = b""
                    while len(body) < ANSWER and (piece := await reader.read(ANSWER)):
                        body += piece
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError, IndexError):
            return 0, ""
        return status, body.decode("utf-8", "replace")


def _all(functions: list[Scheduled]) -> list[Due]:
    found: list[Due] = []
    counts: dict[str, int] = {}
    for function in functions:
        for text in function.schedule:
            number = counts.get(function.project_id, 0)
            counts[function.project_id] = number + 1
            with contextlib.suppress(ScheduleError):  # of a newer version of this program
                found.append(Due(function, text, parse(text), number))
    return found
