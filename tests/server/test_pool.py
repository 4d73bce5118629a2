"""The pool and its executor: every result reaches the request it belongs to, whatever breaks."""

import asyncio
import contextlib
import itertools
import random
import threading
from collections import Counter

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import JSON, NONE, VALUES, Group, Statement
from server.postgres.pool import Pool
from tests.timing import slowness

ECHO = Statement("select $1::text as said", result=JSON)
ROWS = Statement("select g, $1::text from generate_series(1, $2::int) g", result=VALUES)
SLEEP = Statement("select $1::text as said from pg_sleep($2::float8)", result=JSON)
SET = Statement("select set_config('app.mark', $1, true)", result=NONE, per_role=False)
MARK = Statement("select current_setting('app.mark', true)", result=VALUES, per_role=False)
FAIL = Statement("select 1 / ($1::int - $1::int)", result=JSON)


def said(text):
    group = Group("r")
    group.add(ECHO, (text.encode(),))
    return group


def marked(text, *, fails=False):
    group = Group("r")
    group.add(SET, (text.encode(),))
    if fails:
        group.add(FAIL, (b"1",))
    group.add(MARK)
    return group


def asleep(text, seconds):
    group = Group("r")
    group.add(SLEEP, (text.encode(), str(seconds).encode()))
    return group


def run(work):
    return asyncio.run(asyncio.wait_for(work, 120))


def test_each_group_gets_its_own_result(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=4)
        try:
            rng = random.Random(5)

            async def one(n):
                text = f"mark {n}"
                kind = rng.random()
                if kind < 0.2:
                    with pytest.raises(PgError) as caught:
                        await pool.run(marked(text, fails=True))
                    assert caught.value.sqlstate == "22012"
                elif kind < 0.5:
                    _, result = await pool.run(marked(text))
                    assert result.values == [(text.encode(),)]
                elif kind < 0.6:
                    group = Group("r")
                    group.add(ROWS, (text.encode(), b"700"))
                    (result,) = await pool.run(group)
                    assert len(result.values) == 700
                    assert {row[1] for row in result.values} == {text.encode()}
                else:
                    (result,) = await pool.run(said(text))
                    assert result.body == f'[{{"said":"{text}"}}]'.encode()

            for _ in range(5):
                await asyncio.gather(*(one(n) for n in range(300)))
            assert pool.stats()["in_flight"] == 0
        finally:
            await pool.close()

    run(work())


def test_a_setting_of_one_group_is_not_seen_by_the_next(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=1)
        try:
            bare = Group("r")
            bare.add(MARK)
            first, second = await asyncio.gather(pool.run(marked("mine")), pool.run(bare))
            assert first[1].values == [(b"mine",)]
            assert second[0].values in ([(None,)], [(b"",)])
        finally:
            await pool.close()

    run(work())


def test_a_killed_backend_fails_its_groups_and_no_other(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=3)
        outcomes = Counter()
        done = asyncio.Event()

        async def caller(n):
            k = 0
            while not done.is_set():
                k += 1
                text = f"{n}/{k}"
                try:
                    (result,) = await pool.run(asleep(text, 0.001) if k % 3 == 0 else said(text))
                    assert result.body == f'[{{"said":"{text}"}}]'.encode()
                    outcomes["right"] += 1
                except PgUnavailable:
                    outcomes["away"] += 1
                    await asyncio.sleep(0.01)
                except PgError as error:
                    assert error.sqlstate == "57P01"
                    outcomes["ended"] += 1

        async with await psycopg.AsyncConnection.connect(pg_database, autocommit=True) as admin:
            callers = [asyncio.create_task(caller(n)) for n in range(24)]
            for _ in range(15):
                await asyncio.sleep(0.05)
                await admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where application_name = 'ichibase' and datname = current_database() "
                    "order by random() limit 1"
                )
            await asyncio.sleep(0.3)
            while outcomes["right"] <= 500:
                await asyncio.sleep(0.05)
            done.set()
            await asyncio.gather(*callers)
        (result,) = await pool.run(said("after"))
        assert result.body == b'[{"said":"after"}]'
        assert pool.stats()["in_flight"] == 0
        await pool.close()

    run(work())


def test_a_storm_of_cancels_hits_only_those_who_left(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=4)
        rng = random.Random(7)
        counts = Counter()

        async def one(n):
            text = f"call {n}"
            if rng.random() < 0.5:
                task = asyncio.ensure_future(pool.run(asleep(text, 5), slow=True))
                await asyncio.sleep(rng.random() * 0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                counts["left"] += 1
                return
            quick = rng.random() < 0.7
            (result,) = await pool.run(said(text) if quick else asleep(text, 0.002), slow=not quick)
            assert result.body == f'[{{"said":"{text}"}}]'.encode()
            counts["stayed"] += 1

        try:
            for batch in range(6):
                await asyncio.gather(*(one(100 * batch + n) for n in range(60)))
            assert counts["left"] > 100
            assert counts["stayed"] > 100
            (result,) = await pool.run(said("after"))
            assert result.body == b'[{"said":"after"}]'
        finally:
            await pool.close()

    run(work())


def test_without_prepared_statements(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=2, statements=0)

        async def one(n):
            text = f"mark {n}"
            if n % 5 == 0:
                with pytest.raises(PgError) as caught:
                    await pool.run(marked(text, fails=True))
                assert caught.value.sqlstate == "22012"
                return
            _, result = await pool.run(marked(text))
            assert result.values == [(text.encode(),)]
            (result,) = await pool.run(said(text))
            assert result.body == f'[{{"said":"{text}"}}]'.encode()
            group = Group("r")
            group.add(Statement("select $1::int4range as r, $2::point as x", result=JSON),
                      (b"[1,3)", b"(1,2)"))  # fmt: skip
            (result,) = await pool.run(group)
            assert result.body == b'[{"r":"[1,3)","x":"(1,2)"}]'

        try:
            await asyncio.gather(*(one(n) for n in range(200)))
            kept = await pool.fetch("select name from pg_prepared_statements where name <> ''")
            assert kept == []
            assert pool.stats()["prepared"] == 0
        finally:
            await pool.close()

    run(work())


class Network:
    """A TCP proxy before PostgreSQL that passes bytes on in pieces of any size, stalls, and cuts
    connections in the middle of anything."""

    def __init__(self, dsn, rng):
        self.rng = rng
        self.target = conninfo_to_dict(dsn)
        self.breaks = True
        self.cuts = 0
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.arrived, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.dsn = make_conninfo("", **(self.target | {"host": "127.0.0.1", "port": port}))
        return self

    async def __aexit__(self, *error):
        self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()

    def arrived(self, reader, writer):
        self.tasks.add(asyncio.ensure_future(self.serve(reader, writer)))

    async def serve(self, reader, writer):
        host, port = self.target["host"], self.target["port"]
        if host.startswith("/"):
            above, below = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            above, below = await asyncio.open_connection(host, port)
        ways = [asyncio.ensure_future(self.pass_on(*ends))
                for ends in ((reader, below), (above, writer))]  # fmt: skip
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, below):
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def pass_on(self, reader, writer):
        while data := await reader.read(self.rng.choice((1, 7, 300, 65_536))):
            if self.breaks and self.rng.random() < 0.002:
                self.cuts += 1
                data = data[: self.rng.randrange(len(data) + 1)]
                writer.write(data)
                return
            if self.rng.random() < 0.01:
                await asyncio.sleep(self.rng.random() * 0.01)
            writer.write(data)
            await writer.drain()


def test_results_stay_paired_over_a_network_that_breaks(pg_database):
    async def work():
        rng = random.Random(11)
        counts = Counter()
        done = asyncio.Event()

        async def one(pool, text):
            kind = rng.random()
            if kind < 0.1:
                task = asyncio.ensure_future(pool.run(asleep(text, 0.05), slow=rng.random() < 0.5))
                await asyncio.sleep(rng.random() * 0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return "left"
            if kind < 0.2:
                with pytest.raises((StatementTimeout, PoolTimeout)):  # at work, or in the queue
                    await pool.run(asleep(text, 2), slow=True, timeout=0.03)
                return "late"
            if kind < 0.3:
                with pytest.raises(PgError) as caught:
                    await pool.run(marked(text, fails=True))
                assert caught.value.sqlstate == "22012"
                return "failed"
            if kind < 0.5:
                _, result = await pool.run(marked(text))
                assert result.values == [(text.encode(),)]
            elif kind < 0.6:
                group = Group("r")
                group.add(ROWS, (text.encode(), b"400"))
                (result,) = await pool.run(group)
                assert len(result.values) == 400
                assert {row[1] for row in result.values} == {text.encode()}
            else:
                (result,) = await pool.run(said(text))
                assert result.body == f'[{{"said":"{text}"}}]'.encode()
            return "right"

        async def caller(pool, n):
            k = 0
            while not done.is_set():
                k += 1
                try:
                    counts[await one(pool, f"{n}/{k}")] += 1
                except PgUnavailable:
                    counts["cut"] += 1
                    await asyncio.sleep(0.005)

        async with Network(pg_database, rng) as network:
            pool = Pool(network.dsn, max_size=5, acquire_timeout=20)
            try:
                callers = [asyncio.create_task(caller(pool, n)) for n in range(12)]
                await asyncio.sleep(3)
                while not (network.cuts > 3 and counts["right"] > 50 and len(counts) == 5):
                    await asyncio.sleep(0.05)
                done.set()
                network.breaks = False
                await asyncio.gather(*callers)
                for n in range(20):
                    (result,) = await pool.run(said(f"after {n}"))
                    assert result.body == f'[{{"said":"after {n}"}}]'.encode()
                async with asyncio.timeout(60):  # whose cancellation was cut off ends by itself
                    while pool.stats()["in_flight"]:
                        await asyncio.sleep(0.02)
            finally:
                await pool.close()
        assert set(counts) == {"right", "left", "late", "failed", "cut"}

    run(work())


def test_a_deadline_ends_a_statement_and_leaves_the_connection_good(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=1)
        try:
            for _ in range(3):
                with pytest.raises(StatementTimeout):
                    await pool.run(asleep("long", 30), slow=True, timeout=0.1)
                (result,) = await pool.run(said("next"), timeout=5)
                assert result.body == b'[{"said":"next"}]'
        finally:
            await pool.close()

    run(work())


def test_a_full_pool_queues_then_refuses_by_deadline(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=1, acquire_timeout=0.3)
        try:
            holds = asyncio.create_task(pool.run(asleep("held", 1.0), slow=True))
            await asyncio.sleep(0.1)
            with pytest.raises(PoolTimeout):
                await pool.run(said("waits"))
            assert (await holds)[0].body == b'[{"said":"held"}]'
            assert (await pool.run(said("then")))[0].body == b'[{"said":"then"}]'
        finally:
            await pool.close()

    run(work())


class Waiter:
    """What a thread gives with its group."""

    def __init__(self):
        self.event = threading.Event()
        self.results = None
        self.error = None

    def done(self):
        return self.event.is_set()

    def set_result(self, results):
        self.results = results
        self.event.set()

    def set_exception(self, error):
        self.error = error
        self.event.set()


def test_another_thread_and_the_loop_share_connections(pg_database):
    async def work():
        loop = asyncio.get_running_loop()
        pool = Pool(pg_database, max_size=3)
        counts = Counter()

        def threads_part():
            for n in itertools.count():
                if n >= 4_000 and counts["placed"] > 1000 and counts["looped"] > 500:
                    break
                text = f"thread {n}"
                waiter = Waiter()
                fails = n % 11 == 0
                group = marked(text, fails=fails)
                group.waiter = waiter
                if not pool.placing.put(group, loop.time()):
                    counts["refused"] += 1
                    waiter.event.wait(0.0005)
                    continue
                assert waiter.event.wait(20)
                if fails:
                    assert waiter.error.sqlstate == "22012"
                else:
                    assert waiter.results[1].values == [(text.encode(),)]
                counts["placed"] += 1

        async def loops_part(n):
            k = 0
            while not finished.done():
                k += 1
                text = f"loop {n} {k}"
                if k % 7 == 0:
                    with pytest.raises(PgError):
                        await pool.run(marked(text, fails=True))
                else:
                    _, result = await pool.run(marked(text))
                    assert result.values == [(text.encode(),)]
                counts["looped"] += 1

        try:
            await pool.run(said("opens"))
            finished = loop.run_in_executor(None, threads_part)
            await asyncio.gather(finished, *(loops_part(n) for n in range(4)))
            assert pool.stats()["in_flight"] == 0
        finally:
            await pool.close()

    run(work())


def test_a_placement_is_refused_when_others_wait_or_nothing_is_open(pg_database):
    async def work():
        loop = asyncio.get_running_loop()
        pool = Pool(pg_database, max_size=1)
        try:
            group = said("first")
            group.waiter = Waiter()
            assert not pool.placing.put(group, loop.time())  # no connection yet
            await pool.run(said("opens"))
            holds = asyncio.create_task(pool.run(asleep("held", 0.3), slow=True))
            await asyncio.sleep(0.05)
            assert not pool.placing.put(group, loop.time())  # the only one is taken
            await holds
        finally:
            await pool.close()
        assert not pool.placing.put(group, loop.time())  # closed

    run(work())


def test_reads_stay_away_from_commits_that_wait(pg_database):
    write = Statement("select pg_sleep($1::float8)", result=NONE)

    async def work():
        pool = Pool(pg_database, max_size=3)
        try:
            await asyncio.gather(*(pool.run(asleep("opens", 0.1), slow=True) for _ in range(2)))
            for _ in range(30):  # so quick that many share a connection
                await pool.run(said("quick"))
            group = Group("r")
            group.add(write, (b"0.5",))
            waits = asyncio.create_task(pool.run(group))
            await asyncio.sleep(0.01)
            for _ in range(10):
                await asyncio.wait_for(pool.run(said("beside")), 0.3)
            assert not waits.done()
            await waits
        finally:
            await pool.close()

    run(work())


def test_a_pool_that_is_given_up_serves_those_who_have_it_and_then_closes(pg_database):
    slow, took = slowness(), []

    async def work():
        pool = Pool(pg_database, max_size=1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting = [asyncio.create_task(pool.run(asleep(f"{n}", 0.2), slow=True)) for n in range(3)]
        await asyncio.sleep(0)
        retired = asyncio.create_task(pool.retire())
        for one in waiting:
            await one
        await asyncio.sleep(0.5)
        await pool.run(said("one step more"))
        assert not retired.done()
        await retired
        took.append(loop.time() - began)
        assert pool.stats()["connections"] == 0
        with pytest.raises(PgUnavailable):
            await pool.run(said("too late"))

    run(work())
    assert 2.5 < took[0] < 6 * max(slow, slowness())
