"""Revoked tokens over a real control database: told, kept, read by who starts later."""

import asyncio
import time

import psycopg
import pytest

from server.base.bus import PgBus
from server.base.context import TOKEN_REVOKED
from server.base.events import Events
from server.base.keys import Denied, revoke
from server.base.revocations import Revocations
from server.control.database import prepare
from tests.clusters import cluster_of
from tests.timing import slowness


@pytest.fixture
def control(pg_cluster, pg_database):
    name = f"control_{pg_database.rpartition('/')[2].partition('?')[0][-12:]}"
    cluster = cluster_of(pg_cluster, name)
    dsn = asyncio.run(prepare(cluster, "control password"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        owner = connection.execute("insert into owners (name) values ('o') returning id")
        owner_id = owner.fetchone()[0]
        connection.execute(
            "insert into clusters (id, kind, host, port) values ('c', 'embedded', 'h', 1)"
            " on conflict do nothing"
        )
        for id in ("p1", "p2"):
            connection.execute(
                "insert into projects values (%s, %s, %s, 'c', 'postgres', 'free', 'active', %s,"
                " 'x', 'x', 'x', 'x', 'x', 'x')",
                (id, id, owner_id, id),
            )
    yield dsn
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'drop database "{name}" with (force)')


class Process:
    """What one process of a node knows of revoked tokens."""

    def __init__(self, dsn):
        self.denied = {}
        self.bus = PgBus(dsn, Events())
        self.revocations = Revocations(dsn, self.bus, self.apply, Events())
        self.bus.subscribe(TOKEN_REVOKED, self.apply)

    def apply(self, message):
        revoke(self.denied.setdefault(message["project"], Denied()), message)

    def refuses(self, project, **claims):
        found = self.denied.get(project)
        return found is not None and found.covers(claims, time.time())

    async def start(self):
        self.bus.start()
        self.revocations.start()
        await asyncio.wait_for(self.revocations.ready.wait(), 60)
        return self

    async def stop(self):
        await self.revocations.stop()
        await self.bus.stop()


async def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def test_running_processes_are_told_and_later_ones_read(control):
    second = slowness()  # one, on a machine that has it

    async def run():
        one, two = await Process(control).start(), await Process(control).start()
        now = time.time()
        await one.revocations.sessions("p1", ["s1", "s2"], now + 60)
        await one.revocations.user("p1", "u1", now, now + 60)
        for process in (one, two):
            await until(lambda p=process: p.refuses("p1", session_id="s2"), second)
            await until(lambda p=process: p.refuses("p1", sub="u1", iat=now - 5), second)
        late = await Process(control).start()
        told = []  # to a service that begins to listen later than its process
        await late.revocations.replay(told.append)
        assert {(m.get("session_id"), m.get("user_id")) for m in told} == {
            ("s1", None), ("s2", None), (None, "u1"),
        }  # fmt: skip
        for process in (one, two, late):
            assert process.refuses("p1", session_id="s1", sub="u2", iat=now)
            assert process.refuses("p1", sub="u1", iat=now - 5)
            assert not process.refuses("p1", sub="u1", iat=now + 5)
            assert not process.refuses("p2", session_id="s1", sub="u1", iat=now - 5)
            await process.stop()

    asyncio.run(run())


def test_what_was_told_while_the_connection_was_broken_is_read(control):
    async def run():
        one, two = await Process(control).start(), await Process(control).start()
        with psycopg.connect(control, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name"
                " = 'ichibase bus' and datname = current_database()"
            )
        await one.revocations.sessions("p1", ["s1"], time.time() + 60)
        await until(lambda: two.refuses("p1", session_id="s1"), 60)
        await one.stop()
        await two.stop()

    asyncio.run(run())


def test_the_list_is_bounded_and_forgets_what_has_expired(control):
    async def run():
        one = await Process(control).start()
        now = time.time()
        await one.revocations.sessions("p1", ["old"], now - 120)
        await one.revocations.sessions("gone project", ["x"], now + 60)
        for _ in range(3):  # the same again is the same row
            await one.revocations.sessions("p1", ["s1", "s1b"], now + 60)
        with psycopg.connect(control) as admin:
            rows = admin.execute("select subject from revoked_tokens order by 1").fetchall()
        assert rows == [("s1",), ("s1b",)]
        await one.stop()

    asyncio.run(run())
