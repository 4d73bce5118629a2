"""Database connections of one worker: pools per project, made on first use, under one cap."""

from __future__ import annotations

import asyncio

from server.base.context import Directory
from server.base.metrics import Labels
from server.base.project import Project
from server.postgres.pool import ConnectionBudget, Pool

IDLE_SECONDS = 60.0  # an idle project's connections go back after this
WAIT_SECONDS = 10.0  # for a connection, before the request is refused


class ProjectPools:
    """Pools by (project, login). max_connections: of all pools together. A change of a project's
    address closes its pools; requests in flight finish first."""

    def __init__(self, directory: Directory, max_connections: int, statement_timeout: float,
                 per_project: int = 20) -> None:  # fmt: skip
        self.budget = ConnectionBudget(max_connections)
        self.statement_timeout = statement_timeout
        self.per_project = min(per_project, max_connections)
        self._pools: dict[tuple[str, str], tuple[str, Pool]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ids: dict[str, str] = {}
        directory.on_change(self._changed)

    def data(self, project: Project) -> Pool:
        """Logs in as the authenticator: for requests made in a client's role."""
        return self._pool(project, "data", project.authenticator_dsn)

    def system(self, project: Project) -> Pool:
        """Logs in as the owner of the schemas auth, storage and realtime."""
        return self._pool(project, "system", project.system_dsn)

    def _pool(self, project: Project, kind: str, dsn: str | None) -> Pool:
        if dsn is None:
            raise LookupError(f"the project has no {kind} login")
        key = (project.id, kind)
        found = self._pools.get(key)
        if found is not None:
            if found[0] == dsn:
                return found[1]
            self._close(key)
        pool = Pool(
            dsn,
            max_size=self.per_project,
            acquire_timeout=WAIT_SECONDS,
            statement_timeout=self.statement_timeout,
            idle_timeout=IDLE_SECONDS,
            budget=self.budget,
            application_name=f"ichibase {kind}",
        )
        self._pools[key] = (dsn, pool)
        self._ids[project.slug] = project.id
        return pool

    def _changed(self, project: Project | None, slug: str) -> None:
        id = self._ids.get(slug)
        if id is not None and (project is None or project.id != id):
            del self._ids[slug]
            for key in [key for key in self._pools if key[0] == id]:
                self._close(key)

    def _close(self, key: tuple[str, str]) -> None:
        _, pool = self._pools.pop(key)
        task = asyncio.get_running_loop().create_task(pool.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every pool, after what is in flight."""
        pools = [pool for _, pool in self._pools.values()]
        self._pools.clear()
        await asyncio.gather(*(pool.close() for pool in pools), *self._closing)

    def gauges(self) -> list[tuple[str, Labels, float]]:
        """Connections and waiting requests over all pools, for the metrics."""
        stats = [pool.stats() for _, pool in self._pools.values()]
        busy = sum(one["busy"] for one in stats)
        idle = sum(one["connections"] for one in stats) - busy
        return [
            ("ichibase_pool_connections", (("state", "busy"),), busy),
            ("ichibase_pool_connections", (("state", "idle"),), idle),
            ("ichibase_pool_waiting", (), sum(one["waiting"] for one in stats)),
        ]
