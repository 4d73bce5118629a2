"""Room for a project's documents: measured now and then, asked before each write that may grow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import bson

from ichicore.errors import ApiError
from server.base.context import WorkerContext
from server.base.project import Project
from server.mongo.faults import DriverError
from server.mongo.store import Store, check

log = logging.getLogger("ichibase.mongo")
EVERY = 15.0  # seconds between measures of a project that is written to
NEAR_EVERY = 2.0  # the same beyond NEAR of what it may have
NEAR = 0.9
DOCUMENTS, ROWS = "document_bytes", "database_bytes"


class Quota:
    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self._measured: dict[str, float] = {}  # project id > when
        self._measuring: set[asyncio.Task[None]] = set()

    def _used(self, project: Project) -> int:
        usage = self.context.usage
        return usage.level(project.id, DOCUMENTS) + usage.level(project.id, ROWS)

    def fits(self, project: Project) -> bool:
        """Whether there is room left, as last measured."""
        return self._used(project) < project.limits.database_bytes

    async def check(self, project: Project, store: Store) -> None:
        """ApiError 507 quota_exceeded for a project that has no room left."""
        most = project.limits.database_bytes
        if self.fits(project):
            return
        if self._is_due(project, NEAR_EVERY):  # there may be room again
            await self._measure(project, store)
        used = self._used(project)
        if used >= most:
            raise ApiError(
                507, "quota_exceeded",
                f"The project's databases hold {used} bytes and may hold {most}; delete something "
                "first.",
            )  # fmt: skip

    def written(self, project: Project, store: Store) -> None:
        """Measures again, if the last time is long ago."""
        near = self._used(project) > NEAR * project.limits.database_bytes
        if self._is_due(project, NEAR_EVERY if near else EVERY):
            task = asyncio.get_running_loop().create_task(self._measure(project, store))
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)

    def _is_due(self, project: Project, every: float) -> bool:
        now = time.monotonic()
        if now - self._measured.get(project.id, -every) < every:
            return False
        self._measured[project.id] = now
        return True

    async def stop(self) -> None:
        for task in list(self._measuring):
            task.cancel()
        if self._measuring:
            await asyncio.wait(self._measuring)

    async def _measure(self, project: Project, store: Store) -> None:
        body = bson.encode({"dbStats": 1, "$db": store.database})
        with contextlib.suppress(ApiError, DriverError, OSError):
            found = check(await store.run(body, 5.0), store)
            size = int(found.get("dataSize", 0)) + int(found.get("indexSize", 0))
            if size != self.context.usage.level(project.id, DOCUMENTS):
                try:
                    await self.context.usage.set_level(project.id, DOCUMENTS, size)
                except Exception as error:  # the control database is away: later then
                    log.warning("the documents' size cannot be kept: %s", error)
