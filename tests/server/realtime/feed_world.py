"""A project on a real cluster, and a sink that keeps what a feed tells it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from ichicore.live.change import Change, Publish
from server.base.context import NodeConfig
from server.base.events import Event, Events, Failed
from server.base.project import Project
from server.control import records
from server.control.database import Cluster, prepare
from server.control.projects import Projects
from server.node.embedded_pg import EmbeddedPostgres
from server.realtime.pg_feed import PgFeed

names = (f"feed{number}" for number in itertools.count())


class Kept:
    """A sink. Waiting is by `until`, which looks again after each thing told."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.messages: list[Publish] = []
        self.notices: list[str] = []
        self.truncations: list[tuple[int, str]] = []  # after how many changes, and which table
        self.all: list[Change | Publish] = []
        self.told = asyncio.Event()

    def change(self, project_id: str, change: Change) -> bool:
        self.changes.append(change)
        self.all.append(change)
        self.told.set()
        return True

    def publish(self, project_id: str, message: Publish) -> bool:
        self.messages.append(message)
        self.all.append(message)
        self.told.set()
        return True

    def truncated(self, project_id: str, source: str) -> bool:
        self.truncations.append((len(self.changes), source))
        self.told.set()
        return True

    def notice(self, project_id: str, code: str, detail: str) -> bool:
        self.notices.append(code)
        self.told.set()
        return True

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.told.clear()
                try:
                    await asyncio.wait_for(self.told.wait(), 0.1)
                except TimeoutError:
                    pass


class World:
    """One cluster with its control database; makes projects."""

    def __init__(
        self,
        postgres: EmbeddedPostgres,
        folder: Path,
        *,
        admin_dsn: str | None = None,
        database: str = "control_feed",
    ) -> None:
        self.postgres = postgres
        self.cluster = Cluster(
            kind="embedded" if admin_dsn is None else "external",
            admin_dsn=admin_dsn or postgres.dsn(), host="127.0.0.1", port=postgres.port,
            socket_dir=str(postgres.socket_dir), database=database,
        )  # fmt: skip
        self.dsn = asyncio.run(prepare(self.cluster, "control password"))
        self.config = NodeConfig(data_dir=folder, control_dsn=self.dsn)
        self.projects = Projects(self.dsn, {self.cluster.id: self.cluster}, self.config)

    @property
    def postgres_version(self) -> int:
        """The major one."""
        with psycopg.connect(self.cluster.admin_dsn) as connection:
            return connection.info.server_version // 10_000

    def project(self) -> Project:
        """A new project."""
        record = asyncio.run(self.projects.create(next(names)))
        return records.to_project(record, self.config)

    def admin(self, project: Project) -> psycopg.Connection[Any]:
        return psycopg.connect(self.cluster.dsn(f"ichi_{project.id}"), autocommit=True)


def owner(project: Project) -> psycopg.Connection[Any]:
    assert project.owner_dsn is not None
    return psycopg.connect(project.owner_dsn, autocommit=True)


def run_sql(project: Project, *statements: str) -> None:
    with owner(project) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@asynccontextmanager
async def feeding(
    project: Project, *tables: str, drop: bool = True, node: str = "test", kept: Kept | None = None
) -> AsyncIterator[tuple[PgFeed, Kept]]:
    """A running feed; faults fail the test."""
    kept = kept or Kept()
    events = Events()
    faults: list[Event] = []
    events.listeners.append(lambda e: faults.append(e) if isinstance(e, Failed) else None)
    feed = PgFeed(project, kept, node=node, tables=frozenset(tables), events=events)
    feed.start()
    try:
        await feed.ready()
        yield feed, kept
        assert not faults
    finally:
        await feed.stop(drop=drop)
