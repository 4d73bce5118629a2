"""Measuring, warning, sleeping; one leader at a time; tasks that fail alone."""

import asyncio
import os
import signal
import socket

import msgspec
import psycopg
import pytest

from server.base.events import Events, Failed, Lost, Noted
from server.base.metrics import Metrics
from server.base.usage import Usage
from server.control.database import Cluster, connect, fetch
from server.control.lifecycle import Lifecycle
from server.control.projects import Projects
from server.maintenance import growth, idle
from server.maintenance import leader as leading
from server.maintenance import main as maintenance
from server.maintenance.leader import Leader
from server.maintenance.quotas import Quotas, stage_of
from server.maintenance.scheduler import Scheduler, Task
from server.node.embedded_pg import LOG_LIMIT


def run(coroutine):
    return asyncio.run(coroutine)


class Listening(Events):
    def __init__(self):
        super().__init__()
        self.told = []
        self.listeners.append(self.told.append)


@pytest.fixture(scope="module")
def measured(world):
    record = run(world.fresh().create("measured", tier="free", owner="measured"))
    yield record
    run(world.fresh().delete("measured"))


def owner(record):
    return psycopg.connect(record.dsn("owner", record.owner_password), autocommit=True)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def warnings(world):
    with psycopg.connect(world.dsn) as control:
        return control.execute(
            "select detail ->> 'quota', (detail ->> 'percent')::int from audit "
            "where project = 'measured' and action = 'quota.warning' order by id"
        ).fetchall()


def test_stages():
    assert [stage_of(p) for p in (0, 79, 80, 99, 100, 250)] == [0, 0, 80, 80, 100, 100]


def test_sizes_are_measured_and_warned_of_once_on_the_way_up(world, measured):
    projects, events = world.fresh(), Listening()
    life = Lifecycle(projects)

    async def passes():
        usage = Usage(world.dsn)
        quotas = Quotas(projects, usage, events)
        await quotas.measure()
        (size,) = (quotas.use[measured.id][1]["database_bytes"].used,)
        assert size > 5_000_000
        await life.change("measured", {"limits": {"database_bytes": int(size / 0.85)}}, "test")
        for _ in range(3):
            await quotas.measure()
        assert warnings(world) == [("database_bytes", 80)]
        await life.change("measured", {"limits": {"database_bytes": int(size * 0.95)}}, "test")
        for _ in range(3):
            await quotas.measure()
        assert warnings(world) == [("database_bytes", 80), ("database_bytes", 100)]
        assert (await projects.find("measured")).read_only
        await life.change("measured", {"limits": {}}, "test")
        await quotas.measure()
        assert not (await projects.find("measured")).read_only
        await life.change("measured", {"limits": {"database_bytes": int(size / 0.9)}}, "test")
        await quotas.measure()
        assert warnings(world)[2:] == [("database_bytes", 80)]
        await life.change("measured", {"limits": {}}, "test")
        gauges = {(name, dict(labels).get("kind")): value
                  for name, labels, value in quotas.gauges()
                  if dict(labels).get("project") == "measured"}  # fmt: skip
        assert gauges["ichibase_project_bytes", "database"] >= size
        await usage.stop()

    run(passes())
    assert any(isinstance(e, Noted) and "read-only" in e.what for e in events.told)


def test_growth_is_seen_without_counting_rows(world, measured):
    projects = world.fresh()

    async def sizes():
        usage = Usage(world.dsn)
        quotas = Quotas(projects, usage, Events())
        await quotas.measure()
        before = quotas.use[measured.id][1]["database_bytes"].used
        with owner(measured) as session:
            session.execute("create table grown as select repeat('x', 500) as t "
                            "from generate_series(1, 20000)")  # fmt: skip
            await quotas.measure()
        after = quotas.use[measured.id][1]["database_bytes"].used
        await usage.flush()
        assert usage.level(measured.id, "database_bytes") == after
        await usage.stop()
        return after - before

    assert run(sizes()) > 9_000_000
    with owner(measured) as session:
        session.execute("drop table grown")


def test_a_full_project_that_grows_on_loses_its_owners_login(world, measured, monkeypatch):
    monkeypatch.setattr(growth, "LEAST", 8 << 20)
    projects, events = world.fresh(), Listening()
    life = Lifecycle(projects)
    more = "create table {} as select repeat('x', 500) as t from generate_series(1, 10000)"

    async def passes():
        usage = Usage(world.dsn)
        quotas = Quotas(projects, usage, events)
        await quotas.measure()
        size = quotas.use[measured.id][1]["database_bytes"].used
        await life.change("measured", {"limits": {"database_bytes": size // 2}}, "test")
        await quotas.measure()
        await quotas.measure()
        with owner(measured) as session:
            session.execute("set default_transaction_read_only = off")
            session.execute(more.format("grown"))
            await quotas.measure()  # within what it may grow by
            session.execute(more.format("grown_more"))
            await quotas.measure()
            with pytest.raises(psycopg.OperationalError):
                session.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            owner(measured)
        await quotas.measure()
        async with await connect(world.cluster.dsn(measured.database)) as admin:
            await admin.execute("drop table public.grown, public.grown_more")
            await quotas.measure()
        owner(measured).close()
        await life.change("measured", {"limits": {}}, "test")
        await quotas.measure()
        await usage.stop()

    run(passes())
    assert [e.what for e in events.told if "login" in e.what] == [
        "the owner's login of project measured is closed"
    ]


def long_ago(world, record):
    """All that the control database knows of the project's use was two days ago."""
    with psycopg.connect(world.dsn, autocommit=True) as control:
        for change in (
            "update projects set created_at = created_at - interval '2 days', "
            "state_at = state_at - interval '2 days' where id = %s",
            "update usage set changed_at = changed_at - interval '2 days' where project_id = %s",
        ):  # fmt: skip
            control.execute(change, (record.id,))


def test_idle_projects_sleep_unless_they_are_used_or_connected(world, measured):
    life = Lifecycle(world.fresh())

    def sleep_after(days):
        run(life.change("measured", {"limits": {"sleep_days": days}}, "test"))

    def sleepers():
        return run(idle.put_to_sleep(world.fresh(), Events()))

    sleep_after(1)
    assert sleepers() == []  # made just now
    long_ago(world, measured)
    with owner(measured) as session:
        with psycopg.connect(world.dsn, autocommit=True) as control:
            control.execute("insert into usage (project_id, day, counter, value) values "
                            "(%s, now()::date, 'requests', 1)", (measured.id,))  # fmt: skip
        assert sleepers() == []  # used just now
        long_ago(world, measured)
        session.execute("select 1")
        assert sleepers() == []  # its developer is at it
        sleep_after(1e-9)
        assert sleepers() == ["measured"]  # connected, but idle for longer
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    assert run(world.fresh().find("measured")).state == "sleeping"
    assert sleepers() == []
    sleep_after(1)
    run(life.step("measured", "wake", "test"))
    assert sleepers() == []  # woken just now
    long_ago(world, measured)
    run(life.change("measured", {"limits": {"sleep_days": 0}}, "test"))
    assert sleepers() == []  # never
    run(life.change("measured", {"limits": {}}, "test"))


HOLDER = """select pid from pg_locks where locktype = 'advisory' and granted
  and database = (select oid from pg_database where datname = $1)"""


def database_of(world):
    return psycopg.conninfo.conninfo_to_dict(world.dsn)["dbname"]


def test_one_leads_and_another_takes_over_when_it_is_gone(world, monkeypatch):
    monkeypatch.setattr(leading, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(leading, "BEAT_SECONDS", 0.05)
    at_work, began, most = [], [], []

    def make(name):
        async def work():
            at_work.append(name)
            began.append(name)
            most.append(len(at_work))
            try:
                await asyncio.sleep(600)
            finally:
                at_work.remove(name)

        return Leader(world.dsn, Events(), work)

    async def story():
        one, two = make("one"), make("two")
        tasks = {"one": asyncio.create_task(one.run())}
        await until(lambda: at_work == ["one"])
        tasks["two"] = asyncio.create_task(two.run())
        await asyncio.sleep(0.3)  # for as many tries as fit
        assert (at_work, one.leads, two.leads) == (["one"], True, False)
        async with await connect(world.cluster.admin_dsn) as admin:  # its connection breaks
            ((process,),) = await fetch(admin, HOLDER, (database_of(world),))
            await fetch(admin, "select pg_terminate_backend($1)", (process,))
        await until(lambda: len(began) == 2 and at_work)  # whoever is quicker
        last = at_work[0]
        tasks[last].cancel()
        await asyncio.wait([tasks[last]])
        await until(lambda: len(began) == 3 and at_work)
        assert at_work != [last]
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values())

    run(story())
    assert at_work == []
    assert set(most) == {1}  # never both


def test_who_leads_stops_when_the_database_falls_silent(world, monkeypatch):
    for name, seconds in (("RETRY_SECONDS", 0.05), ("BEAT_SECONDS", 0.05), ("PATIENCE", 2.0)):
        monkeypatch.setattr(leading, name, seconds)
    at_work, told = [], Listening()

    async def work():
        at_work.append(True)
        try:
            await asyncio.sleep(600)
        finally:
            at_work.pop()

    async def story():
        task = asyncio.create_task(Leader(world.dsn, told, work).run())
        await until(lambda: at_work)
        async with await connect(world.cluster.admin_dsn) as admin:
            ((process,),) = await fetch(admin, HOLDER, (database_of(world),))
        os.kill(process, signal.SIGSTOP)
        try:
            await until(lambda: not at_work)
        finally:
            os.kill(process, signal.SIGCONT)
        await until(lambda: at_work)  # the server has noticed that nobody is there
        task.cancel()
        await asyncio.wait([task])

    run(story())
    assert [event.what for event in told.told if isinstance(event, Lost)] == [
        "the control database"
    ]


def test_a_connection_notices_that_the_other_machine_is_gone(world):
    async def options():
        parts = psycopg.conninfo.conninfo_to_dict(world.cluster.admin_dsn)
        dsn = psycopg.conninfo.make_conninfo(**{**parts, "host": "127.0.0.1"})
        async with await connect(dsn) as admin:
            with socket.socket(fileno=os.dup(admin.fileno())) as one:
                return [one.getsockopt(socket.IPPROTO_TCP, option) for option in (
                    socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )]  # fmt: skip

    assert run(options()) == [30, 10, 3, 60_000]


def test_what_cannot_be_written_ends_nothing_and_is_told_once(world, tmp_path, monkeypatch):
    monkeypatch.setattr(maintenance, "METRICS_SECONDS", 0.05)
    told = Listening()
    log = tmp_path / "postgres" / "postgres.log"
    log.parent.mkdir()
    log.write_bytes(bytes(LOG_LIMIT + 1))
    log.with_name("postgres.log.1").mkdir()  # it cannot be moved there
    config = msgspec.structs.replace(world.config, data_dir=tmp_path)

    async def some():
        made = maintenance.Maintenance(config, world.fresh(), told)
        made.leader.work = asyncio.Event().wait
        task = asyncio.create_task(made.run())
        await until(lambda: any(isinstance(one, Failed) for one in told.told))
        await asyncio.sleep(0.5)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])

    run(some())
    failed = [one.doing for one in told.told if isinstance(one, Failed)]
    assert failed == ["moving the database server's log aside"]


def test_one_project_that_fails_keeps_no_other_from_its_quota(world, measured):
    projects, life = world.fresh(), Lifecycle(world.fresh())
    first = run(projects.create("aa-first"))  # comes before the other
    away = Cluster(
        id="away", kind="external", admin_dsn="host=127.0.0.1 port=1 user=nobody",
        host="127.0.0.1", port=1,
    )  # fmt: skip
    elsewhere = Projects(world.dsn, {away.id: away, **projects.clusters}, world.config)
    for one in (first, measured):
        run(life.change(one.slug, {"limits": {"database_bytes": 1_000_000}}, "test"))
    login = first.role("owner")
    with psycopg.connect(world.cluster.admin_dsn) as admin:  # which cannot be changed then
        admin.execute(f"alter role {login} rename to {login}_gone")

    async def measure(projects):
        usage = Usage(world.dsn)
        quotas = Quotas(projects, usage, Events())
        try:
            await quotas.measure()
        finally:
            await usage.stop()
            assert quotas.use.keys() >= {first.id, measured.id}

    with pytest.raises(psycopg.OperationalError) as caught:
        run(measure(elsewhere))
    assert caught.value.__notes__ == ["1 more failed"]
    assert run(projects.find("measured")).read_only
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        admin.execute(f"alter role {login}_gone rename to {login}")
    for one in (first, measured):
        run(life.change(one.slug, {"limits": {}}, "test"))
    run(measure(projects))
    assert not run(projects.find("measured")).read_only
    run(projects.delete(first.slug))


def test_a_task_that_fails_does_not_keep_the_others_waiting():
    done, events, metrics = [], Listening(), Metrics()

    async def fail():
        raise RuntimeError("no")

    async def away():
        raise psycopg.OperationalError("away")

    async def work():
        done.append(1)

    async def some():
        tasks = [Task("bad", 0.01, fail), Task("away", 0.01, away), Task("good", 0.02, work)]
        running = asyncio.create_task(Scheduler(tasks, events, metrics).run())
        await until(lambda: len(done) >= 3 and len(metrics.counters) == 2)
        running.cancel()
        await asyncio.wait([running])

    run(some())
    assert any(isinstance(event, Failed) for event in events.told)
    counted = {labels[0][1]: n for (name, labels), n in metrics.counters.items()}
    assert set(counted) == {"bad", "away"}
