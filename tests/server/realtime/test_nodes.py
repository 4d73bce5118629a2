"""Several realtime processes over one control database, whose connections break."""

from __future__ import annotations

import asyncio
import random
import time

import psycopg
import pytest

from server.base.events import Events, Noted
from server.base.exchange import INLINE, QUEUE_BYTES, Exchange
from server.realtime import nodes
from server.realtime.nodes import Nodes
from tests.server.realtime.world import SECRET, key, project

TABLE = """create unlogged table exchange (id bigint generated always as identity primary key,
  body text not null, at timestamptz not null default now())"""
RULES = {"channels": {"room:*": {"subscribe": True, "send": True, "presence": True}}}


@pytest.fixture
def database(pg_database):
    with psycopg.connect(pg_database, autocommit=True) as connection:
        connection.execute(TABLE)
    return pg_database


def cut(dsn, name="ichibase exchange"):
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = "
            "current_database() and application_name = %s",
            (name,),
        )


async def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


class End:
    """One end of an exchange, and what it was told of each sender."""

    def __init__(self, dsn):
        self.seen = []
        self.events = Events()
        self.events.listeners.append(self.seen.append)
        self.told = {}
        self.begun = 0
        self.exchange = Exchange(dsn, self.events, self.take, self.began)

    def take(self, run, number, message):
        self.told.setdefault(run, []).append((number, message["n"]))

    def began(self):
        self.begun += 1


def test_messages_of_all_sizes_keep_their_order(database):
    async def work():
        ends = [End(database) for _ in range(3)]
        for end in ends:
            end.exchange.start()
        await until(lambda: all(end.exchange.connected for end in ends))
        sizes = [0, INLINE - 60, INLINE, INLINE + 1, 1 << 16, 10]
        for number in range(300):
            for end in ends:
                end.exchange.send({"n": number, "x": "ü" * (sizes[number % 6] // 2)})
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        runs = {end.exchange.run for end in ends}
        await until(lambda: all(
            len(told) == 300 for end in ends for told in end.told.values()
        ) and all(len(end.told) == 2 for end in ends), 60)  # fmt: skip
        for end in ends:
            assert set(end.told) == runs - {end.exchange.run}
            for told in end.told.values():
                assert told == [(n + 1, n) for n in range(300)]
            await end.exchange.stop()

    asyncio.run(work())


def test_cut_connections_lose_only_what_the_numbers_show(database):
    """Who only sends is not harmed at all: a batch goes again, and listeners see its numbers."""

    async def work():
        one, two = End(database), End(database)
        for end in (one, two):
            end.exchange.start()
        await until(lambda: one.exchange.connected and two.exchange.connected)
        for number in range(600):
            one.exchange.send({"n": number, "x": "y" * (20_000 if number % 7 == 0 else 10)})
            if number % 200 == 100:
                await asyncio.to_thread(cut, database)
            await asyncio.sleep(0.002)
        await until(lambda: two.told[one.exchange.run][-1][1] == 599)
        told = two.told[one.exchange.run]
        assert all(number == n + 1 for number, n in told)
        fresh = sorted(set(told))
        assert [pair for i, pair in enumerate(told) if pair not in told[:i]] == fresh
        assert two.begun >= 3
        for end in (one, two):
            await end.exchange.stop()

    asyncio.run(work())


def test_what_waits_for_the_database_is_bounded():
    events = Events()
    seen = []
    events.listeners.append(seen.append)

    async def work():
        exchange = Exchange("host=127.0.0.1 port=1 user=x", events, lambda *_: None, lambda: None)
        exchange.start()
        for _ in range(40):
            exchange.send({"x": "y" * (1 << 20)})
        assert exchange._queued <= QUEUE_BYTES
        assert 8 <= exchange.dropped < 12
        await exchange.stop()

    asyncio.run(work())
    assert any(isinstance(event, Noted) for event in seen)


@pytest.fixture
def pair(world, database, monkeypatch):
    """Two processes that share a database, and one project."""
    monkeypatch.setattr(nodes, "ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(nodes, "DEAD_SECONDS", 1.0)
    rules = {**RULES, "frames_per_second": 10_000}
    worlds = [world(project(SECRET, rules)) for _ in range(2)]
    for number, one in enumerate(worlds):

        def begin(one=one, number=number):
            one.process.nodes = Nodes(one.process, f"n{number}", database, one.events)
            one.process.nodes.start()

        one.call(begin)
    return worlds


def shown(world, channel):
    """Who is present in a channel, as somebody who joins now would be told."""

    def look():
        tenant = world.process.tenants.get("p1")
        found = None if tenant is None else tenant.hub.channel(channel)
        if found is None:
            return {}
        return dict(found.present.values()) | dict(found.remote)

    return world.call(look)


def eventually(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_both_agree_on_who_is_present_whatever_breaks(pair, database):
    rng = random.Random(3)
    anchors = [one.connect(key()) for one in pair]
    for anchor in anchors:
        anchor.ask(type="subscribe", ref="1", kind="broadcast", channel="room:0", presence=True)
    clients = [[], []]
    for step in range(120):
        side = rng.randrange(2)
        if clients[side] and rng.random() < 0.4:
            clients[side].pop(rng.randrange(len(clients[side]))).close()
        elif clients[side] and rng.random() < 0.4:
            rng.choice(clients[side]).say(
                type="presence", channel="room:0", state={"step": step, "x": "y" * rng.randrange(9)}
            )
        else:
            made = pair[side].connect(key())
            made.say(
                type="subscribe", ref="1", kind="broadcast", channel="room:0", presence=True,
                state={"step": step, "long": "z" * rng.choice((0, 3_000))},
            )  # fmt: skip
            clients[side].append(made)
        if step in (30, 60, 90):
            cut(database)
        time.sleep(0.01)
    count = 2 + sum(map(len, clients))
    eventually(lambda: len(shown(pair[0], "room:0")) == len(shown(pair[1], "room:0")) == count)
    eventually(lambda: shown(pair[0], "room:0") == shown(pair[1], "room:0"))


def test_a_process_that_falls_silent_is_gone_and_comes_back(pair):
    one, two = pair
    for world in pair:
        client = world.connect(key())
        client.ask(type="subscribe", ref="1", kind="broadcast", channel="room:0", presence=True)
    eventually(lambda: len(shown(one, "room:0")) == len(shown(two, "room:0")) == 2)
    listener = two.process.nodes.exchange

    def silence(message):
        listener._number += 1

    two.call(lambda: setattr(listener, "send", silence))
    eventually(lambda: len(shown(one, "room:0")) == 1)
    two.call(lambda: delattr(listener, "send"))
    eventually(lambda: shown(one, "room:0") == shown(two, "room:0"))
    assert len(shown(one, "room:0")) == 2


def test_processes_that_took_each_other_for_gone_find_together_again(pair):
    for world in pair:
        client = world.connect(key())
        client.ask(type="subscribe", ref="1", kind="broadcast", channel="room:0", presence=True)
    eventually(lambda: all(len(shown(world, "room:0")) == 2 for world in pair))
    for world in pair:
        exchange = world.process.nodes.exchange

        def slow(message, exchange=exchange, real=exchange.send):
            if message["k"] != "alive":
                real(message)

        world.call(lambda exchange=exchange, slow=slow: setattr(exchange, "send", slow))
    gone = "a node is gone"
    for world in pair:
        eventually(
            lambda w=world: any(isinstance(e, Noted) and gone in e.what for e in list(w.seen))
        )
    for world in pair:
        world.call(lambda world=world: delattr(world.process.nodes.exchange, "send"))
    eventually(lambda: all(len(shown(world, "room:0")) == 2 for world in pair))


def test_a_project_without_sockets_gets_nothing(pair):
    one, two = pair
    client = one.connect(key())
    client.ask(type="subscribe", ref="1", kind="broadcast", channel="room:0", presence=True)
    assert one.call(lambda: dict(one.process.nodes.wanted)) == {}
    other = two.connect(key())
    eventually(lambda: one.call(lambda: "p1" in one.process.nodes.wanted))
    eventually(lambda: len(shown(two, "room:0")) == 1)  # known before anybody asks
    other.close()
    eventually(lambda: one.call(lambda: dict(one.process.nodes.wanted)) == {})
    assert shown(two, "room:0") == {}


def test_documents_reach_the_sockets_of_the_other(world, database, pair):
    one, two = pair
    rules = {"collections": {"orders": {"rule": {"user": "$auth.role"}}}}
    for each in pair:
        each.call(lambda each=each: each.directory.set("default", project(SECRET, rules)))
    client = two.connect(key())
    client.ask(type="subscribe", ref="1", kind="mongo", collection="orders")
    eventually(lambda: one.call(lambda: "p1" in one.process.nodes.wanted))
    events = [
        {"event": "insert", "record": {"_id": n, "user": user}, "old": None}
        for n, user in enumerate(("anon", "other", "anon"))
    ]
    message = {"kind": "mongo", "project": "p1", "collection": "orders", "events": events}
    one.call(lambda: one.process.documents(message))
    frames = [client.hear(), client.hear()]
    assert [frame["record"]["_id"] for frame in frames] == [0, 2]
    assert frames[0]["position"] < frames[1]["position"]
    client.silent()
