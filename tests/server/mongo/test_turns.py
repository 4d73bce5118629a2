"""Shares of the embedded document server, by a clock of the test's own."""

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace

import msgspec
import pytest

from ichicore.errors import ApiError
from server.base.limits import DEFAULT_TIERS
from server.mongo import embedded, turns
from server.mongo.service import MongoService
from server.mongo.turns import Turns


class Project(msgspec.Struct):
    id: str
    limits: object


FREE = Project("light", DEFAULT_TIERS["free"])
PRO = Project("full", DEFAULT_TIERS["pro"])


class Clock:
    """Time passes when somebody sleeps or works."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        self.slept = 0.0
        sleep = asyncio.sleep

        async def slept(seconds):
            self.now += seconds
            self.slept += seconds
            await sleep(0)

        monkeypatch.setattr(turns.asyncio, "sleep", slept)

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def idle(project_id):
    """Nobody else's operation is on its way."""
    return False


def works(clock, shared, project, seconds, times, patience=1e9):
    async def work():
        for _ in range(times):
            async with shared.turn(project, patience):
                clock.now += seconds

    asyncio.run(work())


def test_a_light_project_gets_its_part_while_others_are_there(clock):
    shared = Turns(lambda _: True, idle, clock)
    works(clock, shared, FREE, 0.05, 100)
    worked, whole = 5.0, clock.now - 100
    # After what it had saved up, ten seconds for each second of work.
    assert whole == pytest.approx((worked - turns.BURST) * 10, rel=0.1)


def test_it_gets_all_while_it_is_alone(clock):
    shared = Turns(lambda _: False, idle, clock)
    works(clock, shared, FREE, 0.05, 100)
    assert clock.slept == 0


def test_a_modest_one_never_waits(clock):
    shared = Turns(lambda _: True, idle, clock)

    async def work():
        for _ in range(200):
            async with shared.turn(FREE, 1e9):
                clock.now += 0.002
            clock.now += 0.023

    asyncio.run(work())
    assert clock.slept == 0


def test_a_full_weight_never_waits(clock):
    shared = Turns(lambda _: True, idle, clock)
    works(clock, shared, PRO, 1.0, 100)
    assert (clock.slept, shared._shares) == (0, {})


def test_only_a_full_weight_takes_the_short_way():
    address = SimpleNamespace(short=True, tls=None)
    book = SimpleNamespace(by_function=False, operation_ms=1000)
    store = SimpleNamespace(address=address, give_back=None, kept=None)
    room = SimpleNamespace(
        rulebook=SimpleNamespace(of=lambda _: book), caps=lambda *_: None,
        stores=SimpleNamespace(get=lambda _: store),
    )  # fmt: skip
    assert MongoService(room).guide(FREE) is None
    assert MongoService(room).guide(PRO) is not None


@pytest.mark.parametrize(("others", "places"), [(False, turns.PLACES), (True, 1)])
def test_few_operations_at_once_and_who_waits_too_long_is_refused(others, places):
    shared = Turns(lambda _: others, idle)
    most = at_once = 0
    refused = []

    async def one():
        nonlocal most, at_once
        try:
            async with shared.turn(FREE, 0.15):
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(0.1)
                at_once -= 1
        except ApiError as error:
            refused.append((error.status, error.code))

    async def many():
        await asyncio.gather(*(one() for _ in range(10)))

    asyncio.run(many())
    assert most == places
    assert set(refused) == {(503, "unavailable")}


def test_none_begins_while_one_of_another_project_is_on_its_way_unless_that_takes_long(clock):
    done_at = 0.0
    shared = Turns(lambda _: True, lambda _: clock.now < done_at, clock)
    for on_its_way, waits in ((0.003, 0.003), (5.0, turns.AFTER), (0.0, 0.0)):
        done_at, before = clock.now + on_its_way, clock.slept
        works(clock, shared, FREE, 0.0, 1)
        assert clock.slept - before == pytest.approx(waits, abs=1.1 * turns.MOMENT)
    done_at, before = clock.now + 1.0, clock.slept
    works(clock, shared, PRO, 0.0, 1)
    assert clock.slept == before


def test_the_shares_of_many_projects_are_bounded(clock):
    shared = Turns(lambda _: True, idle, clock)
    for number in range(turns.KEPT + 50):
        works(clock, shared, Project(f"p{number}", DEFAULT_TIERS["free"]), 0.0, 1)
    assert len(shared._shares) == turns.KEPT


def test_the_server_begins_with_short_turns_of_its_threads(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    embedded._write_startup(tmp_path / "startup")
    told = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.getswitchinterval())"],
        env=dict(os.environ), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(told.stdout) == pytest.approx(embedded.SWITCH_SECONDS)
