"""The change feed while its server is killed, its connection cut and its slot taken away."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ichicore.live.pgoutput import Decoder
from ichicore.live.pgtypes import Types
from server.base.events import Events
from server.base.project import Project
from server.control import provision
from server.realtime.pg_feed import GAP, PgFeed
from server.realtime.pg_slot import FeedUnavailable
from server.realtime.pg_stream import Stream, StreamEnded, connect
from tests.ports import free_port
from tests.server.realtime.feed_world import Kept, World, feeding, owner, run_sql
from tests.servers import server


class Cluster:
    """A server of one's own, which may be killed."""

    def __init__(self, **options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-feed-"))
        self.folder.chmod(0o755)
        self.postgres = server(self.folder, free_port(), options=options)
        self.postgres.start()
        self.world = World(self.postgres, self.folder)

    def kill(self) -> None:
        """As if the power failed; then a start."""
        assert self.postgres.process is not None
        pid = self.postgres.process.pid
        os.kill(pid, signal.SIGKILL)
        self.postgres.process.wait()
        self.postgres._log.close()
        self.postgres.start()

    def close(self) -> None:
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(max_prepared_transactions="10")
    yield made
    made.close()


@pytest.fixture(scope="module")
def project(cluster: Cluster) -> Project:
    made = cluster.world.project()
    run_sql(made, "create table t (id int primary key, n int)")
    return made


class Writer(threading.Thread):
    """Commits transactions of a few rows each until it is stopped, whatever happens to the server;
    `acknowledged` are the rows whose commit was answered."""

    def __init__(self, project: Project, start: int) -> None:
        super().__init__()
        self.project = project
        self.next = start
        self.first = start
        self.acknowledged: list[int] = []
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                with owner(self.project) as connection:
                    while not self.ending.is_set():
                        rows = range(self.next, self.next + 3)
                        self.next += 3
                        with connection.transaction():
                            for row in rows:
                                connection.execute("insert into t values (%s)", (row,))
                        self.acknowledged += rows
                        time.sleep(0.001)
            except psycopg.Error:
                time.sleep(0.02)


def told(kept: Kept) -> list[int]:
    return [c.record["id"] for c in kept.changes if c.record is not None]


def stored(project: Project, first: int) -> list[int]:
    with owner(project) as connection:
        rows = connection.execute("select id from t where id >= %s order by id", (first,))
        return [row[0] for row in rows.fetchall()]


def walsenders(cluster: Cluster) -> list[int]:
    with psycopg.connect(cluster.postgres.dsn(), autocommit=True) as admin:
        rows = admin.execute("select pid from pg_stat_activity where backend_type = 'walsender'")
        return [row[0] for row in rows.fetchall()]


def check_once(kept: Kept, project: Project, writer: Writer) -> None:
    found = told(kept)
    there = stored(project, writer.first)
    assert len(set(found)) == len(found), "told twice"
    assert sorted(found) == there
    assert set(writer.acknowledged) <= set(there)
    positions = [change.position for change in kept.changes]
    assert positions == sorted(set(positions))
    assert kept.notices == []


def test_a_killed_server_loses_and_repeats_nothing(cluster: Cluster, project: Project) -> None:
    async def work() -> None:
        async with feeding(project, "public.t") as (feed, kept):
            writer = Writer(project, 1)
            writer.start()
            try:
                for _ in range(3):
                    await asyncio.sleep(0.5)
                    cluster.kill()  # here: the server ends with the thread that started it
                await asyncio.sleep(0.3)
            finally:
                writer.ending.set()
                await asyncio.to_thread(writer.join)
            assert len(writer.acknowledged) > 100
            last = stored(project, 1)[-1]
            await kept.until(lambda: last in told(kept), 30)
            check_once(kept, project, writer)
            assert feed.gaps == 0

    asyncio.run(work())


def test_prepared_transactions_are_told_when_they_are_committed(
    cluster: Cluster, project: Project
) -> None:
    """Also when the server was killed in between; what was rolled back in part is not told."""
    base = 6_000_000

    async def work() -> None:
        async with feeding(project, "public.t") as (_, kept):
            with owner(project) as connection:
                for name, row in (("one", base + 1), ("two", base + 2)):
                    connection.execute("begin")
                    connection.execute(f"insert into t values ({row})".encode())
                    connection.execute("select realtime.publish('c', 'e', '1')")
                    connection.execute("savepoint s")
                    connection.execute(f"insert into t values ({base + 9})".encode())
                    connection.execute("select realtime.publish('c', 'never')")
                    connection.execute("rollback to s")
                    connection.execute(f"prepare transaction '{name}'".encode())
                connection.execute(f"insert into t values ({base + 3})".encode())
            await kept.until(lambda: len(kept.all) == 1)
            cluster.kill()
            run_sql(
                project, f"insert into t values ({base + 4})", "rollback prepared 'two'",
                "commit prepared 'one'", f"insert into t values ({base + 5})",
            )  # fmt: skip
            await kept.until(lambda: told(kept)[-1:] == [base + 5])
            assert told(kept) == [base + number for number in (3, 4, 1, 5)]
            assert [message.event for message in kept.messages] == ["e"]
            assert kept.all[3] is kept.messages[0]
            assert kept.notices == []

    asyncio.run(work())
    run_sql(project, f"delete from t where id > {base}")


def test_cut_connections_lose_and_repeat_nothing(cluster: Cluster, project: Project) -> None:
    async def work() -> None:
        async with feeding(project, "public.t") as (_, kept):
            writer = Writer(project, 1_000_000)
            writer.start()
            try:
                for _ in range(15):
                    await asyncio.sleep(0.1)
                    for pid in await asyncio.to_thread(walsenders, cluster):
                        os.kill(pid, signal.SIGTERM)
            finally:
                writer.ending.set()
                await asyncio.to_thread(writer.join)
            last = stored(project, writer.first)[-1]
            await kept.until(lambda: last in told(kept), 30)
            check_once(kept, project, writer)

    asyncio.run(work())


def test_cut_in_the_middle_of_a_large_transaction(cluster: Cluster, project: Project) -> None:
    """A receiver that is slow, so that the cut comes inside; each row is told once."""

    class Slow(Kept):
        def change(self, project_id: str, change: Any) -> bool:
            if len(self.changes) % 500 == 0:
                time.sleep(0.002)
            return super().change(project_id, change)

    async def work() -> None:
        kept = Slow()
        async with feeding(project, "public.t", kept=kept):
            first, rows = 2_000_000, 30_000
            insert = f"insert into t select {first} + g from generate_series(1, {rows}) g"
            writing = asyncio.create_task(asyncio.to_thread(run_sql, project, insert))
            await kept.until(lambda: len(kept.changes) > 1_000)
            assert len(kept.changes) < rows
            for pid in walsenders(cluster):
                os.kill(pid, signal.SIGTERM)
            await writing
            await kept.until(lambda: len(kept.changes) >= rows, 60)
            await asyncio.sleep(0.3)
            assert told(kept) == list(range(first + 1, first + rows + 1))

    asyncio.run(work())


def test_a_lost_slot_is_replaced_and_the_gap_told(cluster: Cluster, project: Project) -> None:
    async def work() -> None:
        async with feeding(project, "public.t") as (feed, kept):
            run_sql(project, "insert into t values (5000001)")
            await kept.until(lambda: len(kept.changes) == 1)

            def lose() -> None:
                """Nobody else can take the slot while its reader is away for a moment."""
                with psycopg.connect(cluster.postgres.dsn(f"ichi_{project.id}"),
                                     autocommit=True) as admin:  # fmt: skip
                    while True:
                        for pid in walsenders(cluster):
                            os.kill(pid, signal.SIGTERM)
                        try:
                            admin.execute("select pg_drop_replication_slot(%s)", (feed.slot_name,))
                        except psycopg.errors.ObjectInUse:
                            continue
                        return

            await asyncio.to_thread(lose)
            await kept.until(lambda: kept.notices == [GAP])
            await feed.ready()
            run_sql(project, "insert into t values (5000002)")
            await kept.until(lambda: len(kept.changes) == 2)
            assert feed.gaps == 1

    asyncio.run(work())


def test_an_invalidated_slot_is_replaced_and_the_gap_told() -> None:
    """A reader that stands still while the log grows beyond max_slot_wal_keep_size."""
    cluster = Cluster(
        max_slot_wal_keep_size="1MB", max_wal_size="32MB", min_wal_size="32MB", fsync="off"
    )
    try:
        project = cluster.world.project()
        run_sql(project, "create table t (id int primary key, n int)")

        async def work() -> None:
            async with feeding(project, "public.t") as (feed, kept):
                assert feed._stream is not None
                feed._stream.fail = lambda error: None  # type: ignore[method-assign]
                asyncio.get_running_loop().remove_reader(feed._stream._socket)

                def grow() -> str:
                    with psycopg.connect(cluster.postgres.dsn(), autocommit=True) as admin:
                        for _ in range(40):
                            admin.execute(
                                "select pg_logical_emit_message(false, 'x', repeat('x', 4000000));"
                                "select pg_switch_wal(); checkpoint"
                            )
                            row = admin.execute(
                                "select wal_status, pg_size_pretty(sum(size) over ()) from"
                                " pg_replication_slots, pg_ls_waldir() limit 1"
                            ).fetchone()
                            if row is not None and row[0] == "lost":
                                return row[0]
                    return "kept"

                assert await asyncio.to_thread(grow) == "lost"
                del feed._stream.fail
                feed._stream.fail(StreamEnded("cut"))
                await kept.until(lambda: kept.notices == [GAP], 30)
                await feed.ready()
                run_sql(project, "insert into t values (1)")
                await kept.until(lambda: told(kept) == [1])

        asyncio.run(work())
    finally:
        cluster.close()


def test_a_new_process_begins_at_the_end_of_the_log(cluster: Cluster, project: Project) -> None:
    """Nobody who subscribes to it can have been told what was before."""

    async def work() -> None:
        async with feeding(project, "public.t", drop=False) as (_, kept):
            run_sql(project, "insert into t values (6000001)")
            await kept.until(lambda: len(kept.changes) == 1)
        run_sql(project, "insert into t values (6000002)")
        async with feeding(project, "public.t", drop=False) as (_, kept):
            run_sql(project, "insert into t values (6000003)")
            await kept.until(lambda: len(kept.changes) == 1)
            assert told(kept) == [6000003]
        # and while the dead process's connection still holds the slot
        assert project.feed_dsn is not None
        dead = await connect(project.feed_dsn, replication=True)
        stream = Stream(dead, Decoder(Types()), lambda item: True, lambda: None, lambda: None)
        await stream.start(
            f"START_REPLICATION SLOT ichi_{project.id}_test LOGICAL 0/0 (proto_version '1', "
            "publication_names 'ichibase_realtime')"
        )
        async with feeding(project, "public.t") as (_, kept):
            run_sql(project, "insert into t values (6000004)")
            await kept.until(lambda: told(kept) == [6000004])
        stream.close()

    asyncio.run(work())


def test_a_server_that_cannot_replicate_says_so() -> None:
    cluster = Cluster(wal_level="replica", fsync="off")
    try:
        project = cluster.world.project()

        async def work() -> None:
            feed = PgFeed(project, Kept(), node="n", tables=frozenset(), events=Events())
            feed.start()
            with pytest.raises(FeedUnavailable, match="wal_level"):
                await feed.ready(seconds=2)
            await feed.stop(drop=True)

        asyncio.run(work())
    finally:
        cluster.close()


def test_without_a_bound_the_slot_lives_as_long_as_its_connection() -> None:
    """So that a node that is gone cannot fill the disk of the database server."""
    cluster = Cluster(max_slot_wal_keep_size="-1", fsync="off")
    try:
        project = cluster.world.project()
        run_sql(project, "create table t (id int primary key, n int)")

        async def work() -> None:
            async with feeding(project, "public.t", drop=False) as (feed, kept):
                run_sql(project, "insert into t values (1)")
                await kept.until(lambda: told(kept) == [1])
                with owner(project) as connection:
                    row = connection.execute("select temporary from pg_replication_slots")
                    assert row.fetchall() == [(True,)]
                for pid in walsenders(cluster):
                    os.kill(pid, signal.SIGTERM)
                await kept.until(lambda: kept.notices == [GAP])
                await feed.ready()
                run_sql(project, "insert into t values (2)")
                await kept.until(lambda: told(kept) == [1, 2])
            for _ in range(50):
                with owner(project) as connection:
                    if not connection.execute("select from pg_replication_slots").fetchall():
                        return
                await asyncio.sleep(0.1)
            raise AssertionError("the slot stays")

        asyncio.run(work())
    finally:
        cluster.close()


def test_a_project_is_deleted_while_it_is_read(cluster: Cluster) -> None:
    project = cluster.world.project()

    async def work() -> None:
        async with feeding(project, drop=False):
            record = await cluster.world.projects.find(project.slug)
            await provision.remove(cluster.world.cluster, record)

    asyncio.run(work())
    with psycopg.connect(cluster.postgres.dsn(), autocommit=True) as admin:
        name = f"ichi_{project.id}"
        assert not admin.execute("select from pg_database where datname = %s", (name,)).fetchall()
        assert not admin.execute(
            "select from pg_roles where starts_with(rolname, %s)", (name,)
        ).fetchall()
