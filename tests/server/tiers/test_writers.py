"""Which sessions of a real server are found to write, and which to compute."""

import contextlib

import psycopg
import pytest

from server.maintenance.census import Census
from server.maintenance.writers import KEPT, Writers

COMPUTE = "select count(*) from generate_series(1, 300000) a where md5(a::text) < '8'"
SORT = "select count(*) from (select a from generate_series(1, 400000) a order by md5(a::text)) b"
WRITE = "insert into wrote select a, md5(a::text) from generate_series(1, 20000) a"


@pytest.fixture
def eyes(pg_cluster):
    """(sessions, a function that looks at them at a time)."""
    census, writers = Census(pg_cluster.pgdata), Writers()
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(psycopg.connect(pg_cluster.dsn("postgres"), autocommit=True))
            for _ in range(3)
        ]
        processes = {one.info.backend_pid for one in sessions}

        def look(now):
            census.look()
            census.databases |= dict.fromkeys(processes, "ichi_abcdefghjkmn")
            census.spent()
            writers.look({one: census.ran[one] for one in processes}, now)
            return writers

        yield sessions, look
        sessions[0].execute("drop table if exists wrote")


def test_who_writes_is_told_from_who_computes(eyes):
    (writing, computing, quiet), look = eyes
    writing.execute("create table wrote (id int, body text)")
    found = look(0.0)
    assert (found.writing, found.computing) == (set(), set())
    for _ in range(3):
        writing.execute(WRITE)
        computing.execute(COMPUTE)
    quiet.execute("select 1")
    found = look(1.0)
    assert found.writing == {writing.info.backend_pid}
    assert found.computing == {computing.info.backend_pid}


def test_a_session_that_writes_no_more_computes_some_time_later(eyes):
    (session, *_), look = eyes
    process = session.info.backend_pid
    session.execute("create table wrote (id int, body text)")
    session.execute("set work_mem = '64MB'")  # what is computed needs no files
    look(0.0)
    session.execute(WRITE)
    assert process in look(1.0).writing
    session.execute(COMPUTE)
    assert process in look(1.0 + KEPT / 2).writing
    found = look(1.0 + KEPT)
    assert (process in found.writing, process in found.computing) == (False, True)
    session.execute(WRITE)
    found = look(2.0 + KEPT)
    assert (process in found.writing, process in found.computing) == (True, False)


def test_who_writes_in_bulk_is_told_from_who_writes_a_row_at_a_time(monkeypatch):
    writers = Writers()
    monkeypatch.setattr("server.maintenance.writers._has_log", lambda process: True)
    monkeypatch.setattr("server.maintenance.writers._writes", lambda process: next(count))
    count = iter(range(1000))
    for second in range(10):
        ran = second * 1_000_000_000
        writers.look({1: ran // 2, 2: ran // 10}, float(second))
    assert writers.writing == {1, 2}
    assert writers.bulk == {1}
    for second in range(10, 20):
        writers.look({1: 5_000_000_000 + second, 2: second * 400_000_000}, float(second))
    assert writers.bulk == {2}


def test_files_of_a_sort_are_no_writes(eyes):
    (session, *_), look = eyes
    session.execute("set work_mem = '64kB'")
    found = look(0.0)
    before = found._sessions[session.info.backend_pid].writes
    session.execute(SORT)
    found = look(1.0)
    assert found._sessions[session.info.backend_pid].writes > before
    assert (found.writing, found.computing) == (set(), {session.info.backend_pid})


def test_who_is_gone_or_cannot_be_looked_at_is_in_neither():
    writers = Writers()
    writers.look({2**22 - 7: 0}, 0.0)
    writers.look({2**22 - 7: 10**9}, 1.0)
    assert (writers.writing, writers.computing) == (set(), {2**22 - 7})
    writers.look({}, 2.0)
    assert (writers.writing, writers.computing, writers._sessions) == (set(), set(), {})
