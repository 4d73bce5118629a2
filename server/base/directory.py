"""The projects of the node as this worker knows them, kept current by the bus."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg

from server.base.bus import RECONNECTED, PgBus
from server.base.events import Events, Failed, Lost
from server.base.project import Project

Change = Callable[[Project | None, str], None]
RETRY_SECONDS = 1.0
URGE_SECONDS = 2.0  # between messages that a project is waited for
MOST_URGES = 30
UPGRADE = "upgrade"  # topic of the bus: a project is asked for that is not up to date
LOOK_PAUSE = 0.1  # seconds in which those who look for projects that are not known share a reading
LOOK_AGAIN = 1.0  # seconds in which a project that was not found is not looked for again
MOST_LOOKS = 64


class Source(NamedTuple):
    """How projects are read from the control database: statements with $1 placeholders that
    answer one text column, and what makes a Project of one. wake: makes a sleeping project of
    the slug $1 active, once however many processes ask."""

    all: str
    one: str
    decode: Callable[[str], Project]
    topic: str
    wake: str = ""


class ControlDirectory:
    """A Directory over the control database. `ready` is set once all projects have been read."""

    def __init__(self, dsn: str, source: Source, bus: PgBus, events: Events) -> None:
        self.dsn = dsn
        self.source = source
        self.events = events
        self.ready = asyncio.Event()
        self._projects: dict[str, Project] = {}
        self._callbacks: list[Change] = []
        self._wanted: set[str | None] = set()  # slugs to read again; None is all of them
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._waking: dict[str, asyncio.Task[Project | None]] = {}
        self._looks: dict[str, asyncio.Future[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._missing: set[str] = set()
        self._bus = bus
        self._news: dict[str, asyncio.Event] = {}  # of projects that are brought up to date
        bus.subscribe(source.topic, self._told)
        bus.subscribe(RECONNECTED, lambda _: self._want(None))

    def get(self, slug: str) -> Project | None:
        return self._projects.get(slug)

    def all(self) -> list[Project]:
        return list(self._projects.values())

    def on_change(self, callback: Change) -> None:
        self._callbacks.append(callback)

    async def wake(self, slug: str) -> Project | None:
        """The project, awake and up to date; those who ask meanwhile share one waking. OSError or
        psycopg.Error when the control database is away."""
        task = self._waking.get(slug)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._wake_up(slug), name="wake")
            self._waking[slug] = task
            task.add_done_callback(lambda done: self._waking.pop(slug, None))
        return await asyncio.shield(task)

    async def _wake_up(self, slug: str) -> Project | None:
        project = self._projects.get(slug)
        if project is None or project.state == "sleeping":
            async with await self._connect() as connection:
                await connection.execute(self.source.wake, (slug,))
                await self._read(connection, {slug})
        if self._outdated(slug):
            await self._upgraded(slug)
        return self._projects.get(slug)

    def _outdated(self, slug: str) -> bool:
        project = self._projects.get(slug)
        return project is not None and project.state == "outdated"

    async def _upgraded(self, slug: str) -> None:
        """Asks for the project to be brought up to date, and waits until it has been or cannot."""
        news = self._news[slug] = asyncio.Event()
        try:
            for _ in range(MOST_URGES):
                await self._bus.publish(UPGRADE, {"slug": slug})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(URGE_SECONDS):
                        await news.wait()
                        news.clear()
                if not self._outdated(slug):
                    return
        finally:
            del self._news[slug]

    async def look(self, slug: str) -> Project | None:
        """The project of a slug that `get` does not know: it may have been made a moment ago.
        Whoever asks for what is not there costs no more than a few readings a second."""
        found = self._looks.get(slug)
        if found is None:
            if slug in self._missing or len(self._looks) >= MOST_LOOKS:
                return None
            loop = asyncio.get_running_loop()
            found = self._looks[slug] = loop.create_future()
            if self._looking is None or self._looking.done():
                self._looking = loop.create_task(self._look(), name="look")
        await asyncio.shield(found)
        return self._projects.get(slug)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._looks:
            await asyncio.sleep(LOOK_PAUSE)
            looks, self._looks = self._looks, {}
            try:
                async with await self._connect() as connection:
                    await self._read(connection, set(looks))
            except (psycopg.Error, OSError):
                pass  # told by those who read what has changed
            finally:
                for found in looks.values():
                    found.set_result(None)
            missing = looks.keys() - self._projects.keys()
            self._missing |= missing
            loop.call_later(LOOK_AGAIN, self._missing.difference_update, missing)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self.dsn, autocommit=True, application_name="ichibase directory",
            connect_timeout=5, cursor_factory=psycopg.AsyncRawCursor,
        )  # fmt: skip

    def start(self) -> None:
        """Begins to read, in the running loop."""
        self._want(None)
        self._task = asyncio.get_running_loop().create_task(self._run(), name="directory")

    async def stop(self) -> None:
        tasks = [task for task in (self._task, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _told(self, message: dict[str, Any]) -> None:
        slug = message.get("slug")
        self._want(slug if isinstance(slug, str) else None)

    def _want(self, slug: str | None) -> None:
        self._wanted.add(slug)
        self._wake.set()

    async def _run(self) -> None:
        lost = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted, self._wanted = self._wanted, set()
            try:
                async with await self._connect() as connection:
                    await self._read(connection, wanted)
                lost = False
            except (psycopg.Error, OSError) as error:
                if not lost:
                    self.events.emit(Lost("the control database", str(error)))
                lost = True
                self._wanted |= wanted
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(
        self, connection: psycopg.AsyncConnection[Any], wanted: set[str | None]
    ) -> None:
        if None in wanted:
            cursor = await connection.execute(self.source.all)
            found = {p.slug: p for p in self._decode(await cursor.fetchall())}
            for slug in self._projects.keys() - found.keys():
                self._set(slug, None)
            for slug, project in found.items():
                self._set(slug, project)
            self.ready.set()
            return
        for slug in sorted(s for s in wanted if s is not None):
            cursor = await connection.execute(self.source.one, (slug,))
            projects = self._decode(await cursor.fetchall())
            self._set(slug, projects[0] if projects else None)

    def _decode(self, rows: list[tuple[str]]) -> list[Project]:
        projects = []
        for (text,) in rows:
            try:
                projects.append(self.source.decode(text))
            except ValueError:
                self.events.emit(Failed("reading a project's row", traceback.format_exc()))
        return projects

    def _set(self, slug: str, project: Project | None) -> None:
        known = self._projects.get(slug)
        if project is None:
            if known is None:
                return
            del self._projects[slug]
        else:
            if known is not None and known == project:
                return
            self._projects[slug] = project
        if slug in self._news:
            self._news[slug].set()
        for callback in self._callbacks:
            try:
                callback(project, slug)
            except Exception:
                self.events.emit(Failed(f"change of the project {slug}", traceback.format_exc()))
