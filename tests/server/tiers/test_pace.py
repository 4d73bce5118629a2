"""How much of the server's log the sessions of one project may write, and where they wait."""

import asyncio
import os
import signal
import threading
import time

import psycopg
import pytest

from server.control import records
from server.control.lifecycle import Lifecycle
from server.node import embedded_pg
from tests.ports import free_port

MANY = "insert into heap select repeat(md5(a::text), 20) from generate_series(1, {}) a"
FREE = 10_000_000  # bytes a second
AHEAD = 1.0  # seconds' worth that may be written at once
COMMIT = 8192  # bytes that one counts besides its log


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def pair(world):
    """(a free project, a pro one), each with a table `heap`."""
    made = [
        records.to_project(
            run(world.fresh().create(f"log-{tier}", tier=tier, owner=f"{tier}-logger")),
            world.config,
        )
        for tier in ("free", "pro")
    ]
    for one in made:
        with psycopg.connect(one.owner_dsn) as owner:
            owner.execute("create table heap (body text); create sequence numbers")
    yield made
    for tier in ("free", "pro"):
        run(world.fresh().delete(f"log-{tier}"))


@pytest.fixture
def free(pair):
    """A session of the free project's owner, which owes nothing."""
    time.sleep(AHEAD)
    with psycopg.connect(pair[0].owner_dsn, autocommit=True) as owner:
        owner.execute("truncate heap")
        yield owner


def logged(session):
    found = session.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return float(found[0])


def rate(session, *statements):
    """Bytes of log a second, beyond what may be written at once."""
    before, began = logged(session), time.monotonic()
    for statement in statements:
        session.execute(statement)
    return (logged(session) - before - AHEAD * FREE) / (time.monotonic() - began)


@pytest.mark.parametrize("statements", [
    [MANY.format(50_000)],
    ["explain analyze " + MANY.format(50_000)],
    [f"do $$ begin for n in 1..10 loop {MANY.format(5_000)}; end loop; end $$"],
    ["select count(setval('numbers', a)) from generate_series(1, 250000) a"],
    [MANY.format(10_000), *["update heap set body = body || 'x'"] * 3],
    [f"with many as ({MANY.format(50_000)} returning 1) select count(*) from many"],
    ["create table if not exists copied as select * from heap limit 0",
     *["create temp table other as select repeat(md5(a::text), 20) as body from"
       " generate_series(1, 1000) a", "insert into copied select other.body from other,"
       " generate_series(1, 50)", "drop table other"]],
], ids=["rows", "explained", "loop", "selected", "updates", "with", "ddl"])  # fmt: skip
def test_a_project_writes_no_more_log_than_its_tier_has(free, statements):
    assert rate(free, *statements) < 1.15 * FREE


def test_a_copy_pays_behind_itself(free):
    def copy():
        with free.cursor().copy("copy heap from stdin") as into:
            for _ in range(300):
                into.write(("y" * 700 + "\n") * 100)
        free.execute("select 1")

    copy()
    began = time.monotonic()
    copy()
    assert time.monotonic() - began > 1


def test_all_sessions_of_a_project_share_its_log(pair, free):
    def work():
        with psycopg.connect(pair[0].owner_dsn, autocommit=True) as owner:
            owner.execute(MANY.format(15_000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    before, began = logged(free), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = logged(free) - before - AHEAD * FREE
    assert written / (time.monotonic() - began) < 1.15 * FREE


def test_a_commit_counts_as_a_page(free):
    free.execute(MANY.format(20_000))  # all that may be written at once
    began = time.monotonic()
    for number in range(1500):
        free.execute("insert into heap values ('x')" if number % 2 else "delete from heap"
                     " where ctid in (select ctid from heap limit 1)")  # fmt: skip
    assert 1500 / (time.monotonic() - began) < 1.15 * FREE / COMMIT


def test_who_reads_and_others_do_not_wait(pair, free):
    free.execute(MANY.format(2000))
    waiting = threading.Thread(target=free.execute, args=(MANY.format(60_000),))
    waiting.start()
    try:
        time.sleep(1.5)
        with psycopg.connect(pair[0].owner_dsn, autocommit=True) as other:
            began = time.monotonic()
            assert other.execute("select count(*) from heap").fetchone() == (2000,)
            other.execute("insert into heap values ('one')")
            assert time.monotonic() - began < 0.5
            event = other.execute(
                "select wait_event from pg_stat_activity where pid = %s", (free.info.backend_pid,)
            ).fetchone()
            assert event == ("IchibaseLogRate",)
        with psycopg.connect(pair[1].owner_dsn, autocommit=True) as pro:
            began = time.monotonic()
            pro.execute(MANY.format(30_000))
            assert time.monotonic() - began < 1.5
            pro.execute("truncate heap")
    finally:
        waiting.join()


@pytest.mark.parametrize("end", ["cancel", "terminate", "timeout"])
def test_who_waits_can_be_stopped(pair, free, end):
    pid = free.info.backend_pid
    if end == "timeout":
        free.execute("set statement_timeout = 1500")
    else:
        signals = {"cancel": signal.SIGINT, "terminate": signal.SIGTERM}
        threading.Timer(1.5, os.kill, (pid, signals[end])).start()
    began = time.monotonic()
    with pytest.raises((psycopg.errors.QueryCanceled, psycopg.errors.AdminShutdown)):
        free.execute(MANY.format(100_000))
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("statement", [
    "set ichibase.log_rate = 0", "select set_config('ichibase.log_rate', '0', false)",
    "alter role current_user set ichibase.log_rate = 0",
    "create function f() returns int language sql set ichibase.log_rate = 0 as 'select 1'",
    "alter database {} set ichibase.log_rate = 0", "alter system set ichibase.log_rate = 0",
    "grant set on parameter ichibase.log_rate to current_user", "reset ichibase.log_rate",
    "load 'pace'",
])  # fmt: skip
def test_nobody_lifts_his_own_limit(free, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        free.execute(statement.format(free.info.dbname))


@pytest.mark.parametrize("statement", [
    "reset all", "discard all", "alter role current_user in database {} reset all",
])  # fmt: skip
def test_what_an_owner_puts_back_is_not_the_limit(pair, free, statement):
    free.execute(statement.format(free.info.dbname))
    with psycopg.connect(pair[0].owner_dsn) as owner:
        for session in (free, owner):
            assert session.execute("show ichibase.log_rate").fetchone() == ("9766kB",)


def test_the_tier_and_a_projects_own_limits_say_how_much(world, pair, free):
    life = Lifecycle(world.fresh())

    def shown(dsn):
        with psycopg.connect(dsn) as session:
            return session.execute("show ichibase.log_rate").fetchone()[0]

    kinds = (pair[0].owner_dsn, pair[0].authenticator_dsn, pair[0].system_dsn)
    assert [shown(dsn) for dsn in kinds] == ["9766kB", "9766kB", "0"]
    run(life.change("log-free", {"limits": {"log_bytes": 0}}, "test"))
    assert shown(kinds[0]) == "0"
    run(life.change("log-free", {"tier": "pro", "limits": {}}, "test"))
    assert shown(kinds[0]) == "97657kB"
    run(life.change("log-free", {"tier": "free"}, "test"))
    assert shown(kinds[0]) == "9766kB"


def test_a_server_without_the_module_starts_and_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_pg, "pace", lambda: None)
    server = embedded_pg.EmbeddedPostgres(tmp_path / "p", free_port(), options={"fsync": "off"})
    server.start()
    try:
        with psycopg.connect(server.dsn()) as session:
            assert session.execute(
                "select count(*) from pg_settings where name like 'ichibase.%'"
            ).fetchone() == (0,)
    finally:
        server.stop()
