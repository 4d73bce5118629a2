"""A project that somebody works on without end keeps the maintenance of no other waiting."""

import asyncio
import contextlib

import msgspec
import psycopg
import pytest

from server.backup.jobs import Jobs
from server.base.bus import PgBus
from server.base.events import Events, Lost, Noted
from server.base.metrics import Metrics
from server.base.usage import Usage
from server.control import projects as module
from server.control.lifecycle import Lifecycle
from server.maintenance import idle
from server.maintenance import main as maintenance
from server.maintenance.quotas import Quotas
from server.maintenance.scheduler import Scheduler, Task
from server.maintenance.upgrades import Upgrades
from tests.server.tiers.shop import done

SLUGS = ("busy-a", "busy-b")
WAIT = 0.3  # seconds for a lock
BOUND = 60.0  # of what would have waited for ever


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, BOUND))


class Listening(Events):
    def __init__(self):
        super().__init__()
        self.told = []
        self.listeners.append(self.told.append)


@pytest.fixture
def both(world, monkeypatch):
    """Two projects, of which the first is the first in every order."""
    monkeypatch.setattr(module, "BUSY_SECONDS", WAIT)
    made = [asyncio.run(world.fresh().create(slug, tier="free", owner=slug)) for slug in SLUGS]
    yield made
    asyncio.run(world.fresh().recover())
    for slug in SLUGS:
        with contextlib.suppress(module.ApiError):
            asyncio.run(world.fresh().delete(slug))


@contextlib.contextmanager
def at_work(world, record):
    """Somebody works on the project, and does not come to an end."""
    with psycopg.connect(world.dsn, autocommit=True) as control:
        key = f"ichibase project {record.id}"
        control.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (key,))
        yield


def states(world):
    with psycopg.connect(world.dsn) as control:
        return dict(control.execute(
            "select slug, state || case when read_only then ', read-only' else '' end "
            "from projects where slug = any(%s)", (list(SLUGS),)
        ).fetchall())  # fmt: skip


def owed(world):
    with psycopg.connect(world.dsn) as control:
        return [row[0] for row in control.execute(
            "select p.slug from duties d join projects p on p.id = d.project_id order by 1"
        )]  # fmt: skip


def hurried(world):
    return world.fresh().hurried(WAIT)


def test_others_go_to_sleep(world, both):
    for slug in SLUGS:
        run(Lifecycle(world.fresh()).change(slug, {"limits": {"sleep_days": 1e-9}}, "test"))
    with at_work(world, both[0]):
        assert run(idle.put_to_sleep(hurried(world), Events())) == list(SLUGS)
        assert states(world) == dict.fromkeys(SLUGS, "sleeping")
        assert owed(world) == ["busy-a"]
    assert run(world.fresh().recover()) == {}
    assert owed(world) == []


def test_others_become_read_only_and_writable_again(world, both):
    events = Listening()

    def measure():
        async def do():
            usage = Usage(world.dsn)
            try:
                await Quotas(hurried(world), usage, events).measure()
            finally:
                await usage.stop()

        run(do())

    for slug in SLUGS:
        run(Lifecycle(world.fresh()).change(slug, {"limits": {"database_bytes": 1 << 20}}, "test"))
    with at_work(world, both[0]):
        measure()
        assert states(world) == dict.fromkeys(SLUGS, "active, read-only")
        assert owed(world) == ["busy-a"]
        measure()
        with psycopg.connect(world.dsn, autocommit=True) as control:
            control.execute("update projects set limits = '{}' where slug = any(%s)",
                            (list(SLUGS),))  # fmt: skip
        measure()
        assert states(world) == dict.fromkeys(SLUGS, "active")
    told = [event.what for event in events.told if "busy-a" in event.what]
    assert len(told) == len(set(told))
    assert len(told) == 3  # it uses so much, is read-only, and takes writes again


def test_others_are_removed_and_what_is_left_is_told_once(world, both):
    events = Listening()
    config = msgspec.structs.replace(world.config, maintenance_seconds=0.1)
    for slug in SLUGS:
        run(Lifecycle(world.fresh()).step(slug, "delete", "test", keep_days=0))

    async def turns():
        made = maintenance.Maintenance(config, world.fresh(), events)
        assert made.projects.patience == maintenance.PATIENCE
        assert made.jobs.projects.patience == maintenance.RESTORE_PATIENCE
        assert await Lifecycle(hurried(world)).purge() == ["busy-b"]
        for _ in range(3):
            await made.recover()

    with at_work(world, both[0]):
        run(turns())
        assert states(world) == {"busy-a": "removing"}
    assert run(world.fresh().recover()) == {"busy-a": None}
    assert states(world) == {}
    assert [(event.what, event.detail) for event in events.told if isinstance(event, Noted)] == [
        ("project busy-a is unfinished", "somebody else has a lock that it needs")
    ]


def test_others_are_brought_up_to_date(world, both):
    events = Listening()

    def outdated():
        with psycopg.connect(world.dsn) as control:
            return [row[0] for row in control.execute(
                "select slug from projects where provisioned = 0 and slug = any(%s)",
                (list(SLUGS),),
            )]  # fmt: skip

    async def turn(upgrades):
        return await upgrades._pass()

    with psycopg.connect(world.dsn) as control:
        control.execute("update projects set provisioned = 0 where slug = any(%s)", (list(SLUGS),))
    upgrades = Upgrades(hurried(world), PgBus(world.dsn, events), events)
    with at_work(world, both[0]):
        for _ in range(2):
            assert run(turn(upgrades)) is True  # it is tried again
            assert outdated() == ["busy-a"]
    assert run(turn(upgrades)) is False
    assert outdated() == []
    faults = [event.detail for event in events.told if "busy-a could not" in event.what]
    assert faults == ["somebody else is at work on the project"]


def test_a_restore_gives_up_and_nothing_of_the_project_changes(world, both):
    def job(what, **args):
        jobs = Jobs(world.fresh().hurried(1.0), Events(), Metrics())
        return done(jobs, what, "busy-a", **args)

    state, result, error = job("backup", kind="manual")
    assert state == "done", error
    with at_work(world, both[0]):
        state, _, error = job("restore", backup=result["backup"])
    assert (state, error) == ("failed", "somebody else is at work on the project")
    with psycopg.connect(world.dsn) as control:
        last = "select code from jobs where kind = 'restore' order by id desc limit 1"
        assert control.execute(last).fetchone() == ("project_busy",)
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        left = admin.execute("select datname from pg_database where starts_with(datname, %s)",
                             (both[0].database,)).fetchall()  # fmt: skip
    assert left == [(both[0].database,)]
    state, _, error = job("restore", backup=result["backup"])
    assert state == "done", error


def test_a_database_that_stays_away_is_told_of_once():
    events, metrics, said = Listening(), Metrics(), ["away", "away", None, "away", "gone", "gone"]

    async def work():
        if text := said.pop(0):
            raise psycopg.OperationalError(text)

    async def turns():
        task = Task("sizes", 1.0, work)
        scheduler = Scheduler([task], events, metrics)
        while said:
            await scheduler.once(task)

    run(turns())
    assert [event.reason for event in events.told if isinstance(event, Lost)] == [
        "away", "away", "gone"]  # fmt: skip
    assert set(metrics.counters.values()) == {5}
