"""What the executor holds does not grow with the number of groups it has run. ICHIBASE_SOAK
multiplies that number: 10 makes it 140,000."""

import asyncio
import gc
import os

import psutil

from ichicore.pg.errors import PgError
from ichicore.pg.executor import JSON, NONE, VALUES, Group, Statement
from server.postgres.pool import Pool

SETTINGS = Statement("select num_nulls(set_config('app.a', $1, true))", result=NONE, per_role=False)
ROW = Statement("select $1::int as id, repeat('x', 300) as body", result=JSON)
WIDE = Statement("select g as id, repeat('x', 1000) as body from generate_series(1, 20000) g",
                 result=JSON)  # fmt: skip
SOAK = int(os.environ.get("ICHIBASE_SOAK", "1"))
FAIL = Statement("select 1 / ($1::int - $1::int)", result=VALUES)


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def groups(count, statement):
    for n in range(count):
        group = Group("authenticated")
        group.add(SETTINGS, (b"x" * 500,))
        group.add(statement, (b"%d" % n,))
        yield group


async def spend(pool, count, statement):
    for start in range(0, count, 50):
        batch = [pool.run(group) for group in groups(min(50, count - start), statement)]
        for result in await asyncio.gather(*batch, return_exceptions=True):
            assert isinstance(result, (list, PgError))


def test_ten_thousand_groups_leave_nothing(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=2)
        try:
            grown = []
            for _ in range(4):  # a leak grows in every round, a cache or another test's rest in one
                before, objects = resident(), len(gc.get_objects())
                await spend(pool, SOAK * 3_000, ROW)
                await spend(pool, SOAK * 500, FAIL)
                grown.append((resident() - before, len(gc.get_objects()) - objects))
            assert min(megabytes for megabytes, _ in grown[1:]) < 1, grown
            assert min(count for _, count in grown[1:]) < 200, grown
        finally:
            await pool.close()

    asyncio.run(work())


def test_other_sql_each_time_stays_bounded(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=1, statements=100)
        try:
            for n in range(1_500):
                group = Group("authenticated")
                group.add(Statement(f"select {n} as n", result=VALUES))
                await pool.run(group)
            assert pool.stats()["prepared"] <= 100
        finally:
            await pool.close()

    asyncio.run(work())


def test_a_large_result_is_not_held(pg_database):
    async def work():
        pool = Pool(pg_database, max_size=1)
        try:
            for _ in range(3):
                group = Group("authenticated")
                group.add(WIDE)
                (result,) = await pool.run(group, slow=True)
                assert len(result.body) > 20_000_000
                result.body.close()
            before = resident()
            for _ in range(5):
                group = Group("authenticated")
                group.add(WIDE)
                (result,) = await pool.run(group, slow=True)
                result.body.close()
            assert resident() - before < 10
        finally:
            await pool.close()

    asyncio.run(work())
