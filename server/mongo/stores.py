"""The stores of all projects of one worker, made on first use and given back when idle."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from ichicore.errors import ApiError
from server.base.context import Directory
from server.base.metrics import Labels
from server.base.project import Project
from server.mongo.address import read_server
from server.mongo.lease import Lease, share_of
from server.mongo.store import Budget, Store

IDLE = 60.0  # seconds after which an unused store closes its connections
SWEEP = 20.0  # seconds between looks
MOST = 256  # stores of one worker; the longest unused one gives way


def not_enabled() -> ApiError:
    return ApiError(404, "mongo_not_enabled", "This project has no Mongo database.")


class Stores:
    """limit: connections of the worker at most, and so of one project. data_dir: where the node
    says which document server it has."""

    def __init__(self, limit: int, directory: Directory, data_dir: Path) -> None:
        server = read_server(data_dir)
        self._address = None if server is None else server.address
        self._desk = None if server is None or server.desk is None else Path(server.desk)
        self.budget = Budget(limit)
        self.limit = limit
        self._stores: dict[str, Store] = {}  # by project id
        self._ids: dict[str, str] = {}  # slug > project id
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        directory.on_change(self._changed)

    def get(self, project: Project) -> Store:
        """ApiError 404 mongo_not_enabled, 503 when the node has no document server."""
        found = self._stores.get(project.id)
        if found is not None and found.url == project.mongo_url:
            return found
        if project.flavor == "postgres":
            raise not_enabled()
        if project.mongo_url is None:
            raise ApiError(
                503, "unavailable", "The server has no document server for this project.",
                headers=(("retry-after", "30"),),
            )  # fmt: skip
        if found is not None:
            self._close(project.id)
        if len(self._stores) >= MOST:
            self._close(min(self._stores, key=lambda id: self._stores[id].used))
        limit = max(1, min(self.limit, project.limits.connections))
        store = self._stores[project.id] = Store(
            project.mongo_url, limit, self.budget, self._lease(project)
        )
        self._ids[project.slug] = project.id
        return store

    def _lease(self, project: Project) -> Lease | None:
        """For a project on one of the node's own servers."""
        url = urlsplit(project.mongo_url or "")
        here = urlsplit(self._address or "").netloc
        if self._desk is None or url.netloc.rpartition("@")[2] != here:
            return None
        return Lease(self._desk, url.path.lstrip("/"), share_of(project.limits))

    async def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="mongo stores")

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        for id in list(self._stores):
            self._close(id)
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)

    def gauges(self) -> Iterable[tuple[str, Labels, float]]:
        """Connections over all projects."""
        busy = sum(store.busy for store in self._stores.values())
        connections = sum(store.connections for store in self._stores.values())
        yield "ichibase_mongo_connections", (("state", "busy"),), busy
        yield "ichibase_mongo_connections", (("state", "idle"),), connections - busy

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            limit = time.monotonic() - IDLE
            for id, store in list(self._stores.items()):
                if store.used < limit and store.busy == 0:
                    self._close(id)

    def _changed(self, project: Project | None, slug: str) -> None:
        id = self._ids.get(slug)
        store = self._stores.get(id) if id is not None else None
        if store is None or id is None:
            return
        if project is None or project.state != "active" or project.mongo_url != store.url:
            self._close(id)
        else:
            store.limit = max(1, min(self.limit, project.limits.connections))
            if store.lease is not None:
                store.lease.weigh(share_of(project.limits))

    def _close(self, id: str) -> None:
        store = self._stores.pop(id)
        self._ids = {slug: one for slug, one in self._ids.items() if one != id}
        task = asyncio.get_running_loop().create_task(store.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
