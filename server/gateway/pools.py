"""Connection pools of the projects of one worker, all under one cap."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import quote

from server.base.context import Directory
from server.base.metrics import Labels
from server.base.project import Project
from server.postgres.mount import rest_settings, statement_timeout
from server.postgres.pool import ConnectionBudget, Pool

IDLE = 60.0  # seconds after which an unused connection is closed
ACQUIRE = 10.0  # seconds a request waits for a connection


def with_settings(dsn: str, settings: tuple[tuple[str, str], ...]) -> str:
    """A connection URL whose sessions begin with these settings."""
    options = " ".join(
        f"-c {name}={value}".replace("\\", "\\\\").replace(" ", "\\ ").replace("-c\\ ", "-c ", 1)
        for name, value in settings
    )
    return f"{dsn}{'&' if '?' in dsn else '?'}options={quote(options)}"


class ProjectPools:
    """Pools made on first use and kept as long as their project, also without connections: about 4
    KB each. One whose login has changed is given up and made anew: requests that have it finish
    with it."""

    def __init__(self, limit: int, directory: Directory, statement_timeout_ms: int) -> None:
        self.limit = limit
        self.statement_timeout_ms = statement_timeout_ms
        self.budget = ConnectionBudget(limit)
        self._pools: dict[tuple[str, str], tuple[str, Pool]] = {}  # (project id, kind) > dsn, pool
        self._retiring: dict[Pool, asyncio.Task[None]] = {}
        directory.on_change(self._changed)
        self._slugs: dict[str, str] = {}  # slug > project id

    def data(self, project: Project) -> Pool:
        """Logs in as the authenticator: for requests made in a client's role. Its connections
        have the settings that all requests share from their start."""
        dsn = project.authenticator_dsn
        if dsn is not None:
            dsn = with_settings(dsn, rest_settings(project, self.statement_timeout_ms).preset)
        return self._pool(project, "data", dsn)

    def system(self, project: Project) -> Pool:
        """Logs in as the owner of the schemas auth, storage and realtime."""
        return self._pool(project, "system", project.system_dsn)

    def timeout(self, project: Project) -> int:
        """Statement timeout of a project, milliseconds."""
        return statement_timeout(project, self.statement_timeout_ms)

    def _pool(self, project: Project, kind: str, dsn: str | None) -> Pool:
        if dsn is None:
            raise LookupError(f"the project {project.slug} has no database for {kind}")
        key = (project.id, kind)
        found = self._pools.get(key)
        if found is not None:
            if found[0] == dsn:
                return found[1]
            self._retire(found[1])
        pool = Pool(
            dsn,
            max_size=self._most(project),
            acquire_timeout=ACQUIRE,
            statement_timeout=None if kind == "system" else self.timeout(project) / 1000 + 1.0,
            idle_timeout=IDLE,
            budget=self.budget,
            application_name=f"ichibase {kind}",
        )
        self._pools[key] = (dsn, pool)
        self._slugs[project.slug] = project.id
        return pool

    def _most(self, project: Project) -> int:
        """Connections that a pool of the project may have."""
        return max(1, min(project.limits.connections, self.limit))

    def _changed(self, project: Project | None, slug: str) -> None:
        id = self._slugs.pop(slug, None) if project is None else project.id
        for key in [key for key in self._pools if key[0] == id]:
            dsn, pool = self._pools[key]
            kept = (
                project is not None and project.state == "active"
                and key[1] == "system" and dsn == project.system_dsn
                and pool.max_size == self._most(project)
            )  # fmt: skip
            if not kept:  # the settings of data connections may have changed
                del self._pools[key]
                self._retire(pool)

    def _retire(self, pool: Pool) -> None:
        task = asyncio.get_running_loop().create_task(pool.retire())
        self._retiring[pool] = task
        task.add_done_callback(lambda done: self._retiring.pop(pool, None))

    async def close(self) -> None:
        """Closes all, letting requests in flight end."""
        pools = [pool for _, pool in self._pools.values()]
        self._pools.clear()
        retiring = dict(self._retiring)
        await asyncio.gather(*(pool.close() for pool in (*pools, *retiring)), *retiring.values())

    def gauges(self) -> Iterable[tuple[str, Labels, float]]:
        """Connections and waiting requests, over all projects."""
        totals = {"connections": 0, "busy": 0, "waiting": 0}
        for _, pool in self._pools.values():
            stats = pool.stats()
            for name in totals:
                totals[name] += stats[name]
        yield "ichibase_pool_connections", (("state", "busy"),), totals["busy"]
        idle = totals["connections"] - totals["busy"]
        yield "ichibase_pool_connections", (("state", "idle"),), idle
        yield "ichibase_pool_waiting", (), totals["waiting"]
