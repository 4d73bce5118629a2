"""Counters: added up over processes, once each, also when the database goes away or we die."""

import asyncio
import os
import signal
import subprocess
import sys

import psycopg
import pytest

from server.base import usage as module
from server.base.usage import Usage
from tests.timing import slowness


@pytest.fixture(scope="module")
def project(world):
    record = asyncio.run(world.fresh().create("counted"))
    yield record.id
    asyncio.run(world.fresh().delete("counted"))


@pytest.fixture(autouse=True)
def _clean(world, project):
    with psycopg.connect(world.dsn, autocommit=True) as control:
        control.execute("delete from usage")


def stored(world, project):
    with psycopg.connect(world.dsn) as control:
        rows = control.execute(
            "select counter, value from usage where project_id = %s", (project,)
        ).fetchall()
    return dict(rows)


def test_processes_add_up_and_see_each_others_levels(world, project):
    async def main():
        one, two = Usage(world.dsn), Usage(world.dsn)
        for _ in range(3):
            one.add(project, "requests")
            two.add(project, "requests", 2)
        one.add(project, "storage_bytes", 1000)
        assert one.level(project, "storage_bytes") == 1000
        await one.flush()
        two.add(project, "storage_bytes", -400)
        await two.flush()
        await one.flush()
        assert one.level(project, "storage_bytes") == two.level(project, "storage_bytes") == 600
        await one.set_level(project, "storage_bytes", 5)
        await two.flush()
        assert two.level(project, "storage_bytes") == 5
        await one.stop()
        await two.stop()

    asyncio.run(main())
    assert stored(world, project) == {"requests": 9, "storage_bytes": 5}


def test_a_batch_whose_answer_was_lost_counts_once(world, project):
    async def main():
        usage = Usage(world.dsn)
        usage.add(project, "requests", 7)
        real = psycopg.AsyncConnection.execute

        async def lost(self, query, *arguments, **options):
            cursor = await real(self, query, *arguments, **options)
            if query is module.FLUSH:
                raise psycopg.OperationalError("the answer was lost")
            return cursor

        psycopg.AsyncConnection.execute = lost
        try:
            with pytest.raises(psycopg.OperationalError):
                await usage.flush()
        finally:
            psycopg.AsyncConnection.execute = real
        usage.add(project, "requests", 1)
        await usage.flush()
        await usage.stop()

    asyncio.run(main())
    assert stored(world, project) == {"requests": 8}


def test_counts_wait_for_a_database_that_is_away(world, project):
    async def main():
        usage = Usage("host=127.0.0.1 port=1 dbname=none")
        usage.add(project, "requests", 3)
        with pytest.raises(psycopg.OperationalError):
            await usage.flush()
        usage.dsn = world.dsn
        await usage.flush()
        await usage.stop()

    asyncio.run(main())
    assert stored(world, project) == {"requests": 3}


def test_counts_of_a_project_that_is_gone_do_not_stand_in_the_way(world, project):
    async def main():
        usage = Usage(world.dsn)
        usage.add("nosuchproject", "requests", 3)
        usage.add(project, "requests", 3)
        await usage.stop()

    asyncio.run(main())
    assert stored(world, project) == {"requests": 3}


KILLED = """
import asyncio, sys
from server.base import usage
usage.FLUSH_SECONDS = 0.2
async def main():
    counts = usage.Usage(sys.argv[1])
    counts.start()
    n = 0
    while True:
        counts.add(sys.argv[2], "requests")
        n += 1
        print(n, flush=True)
        await asyncio.sleep(0.005)
asyncio.run(main())
"""


def test_a_killed_process_loses_one_interval_at_most(world, project):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, world.dsn, project], stdout=subprocess.PIPE, text=True
    )
    slow = slowness()
    try:
        while int(child.stdout.readline()) < 300:
            pass
    finally:
        os.kill(child.pid, signal.SIGKILL)
        out, _ = child.communicate()
    counted = int(out.split()[-1]) if out else 300
    kept = stored(world, project)["requests"]
    assert 0 <= counted - kept <= 0.5 * slow / 0.005, (counted, kept)
