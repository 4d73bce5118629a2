"""The pool and its executor: every result reaches the request it belongs to, whatever breaks."""

import asyncio
import random
import threading
from collections import Counter

import psycopg
import pytest

from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import JSON, NONE, VALUES, Group, Statement
from server.postgres.pool import Pool

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
    return asyncio.run(asyncio.wait_for(work, 60))


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
            done.set()
            await asyncio.gather(*callers)
        assert outcomes["right"] > 500, outcomes
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
            for n in range(4_000):
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
            assert counts["placed"] > 1000, counts
            assert counts["looped"] > 500, counts
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
