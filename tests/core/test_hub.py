"""The hub against its slow twin: whatever the rules, filters and rows, the same receivers."""

import random
import socket

import orjson
import pytest

from ichicore.live.change import Change
from ichicore.live.hub import Hub, event_bits
from ichicore.live.wire import Wire
from server.base.project import Identity
from server.realtime import settings
from server.realtime.rules import ProjectRules, client_filter, context_of, filter_terms
from tests.oracle.hub import Ends, receivers
from tests.oracle.websocket import parse

USERS = ["u1", "u2", "3", "4.0", "-5", "true", "null", "ü"]
RULES = [
    True, {"a": "$auth.uid"}, {"$or": [{"a": "$auth.uid"}, {"b.c": "$auth.uid"}]},
    {"a": "$auth.uid", "n": {"$gt": 2}}, {"$or": [{"a": "$auth.uid"}, {"n": 1}]},
    {"a": {"$in": ["$auth.uid", "u9"]}}, {"old.a": "$auth.uid"}, {"tags": "$auth.uid"},
    {"b.c": "$auth.claims.team", "a": {"$ne": "$auth.uid"}}, {"auth.role": "authenticated"},
    {"$and": [{"a": "$auth.uid"}, {"b.c": "$auth.claims.team"}]}, {"b.0": "$auth.uid"},
    {"auth.uid": {"$in": ["u1", "u2"]}, "n": {"$exists": True}},
    {"a": {"$not": {"$eq": "$auth.uid"}}},
]  # fmt: skip
FILTERS = [
    None, {"n": 1}, {"n": "1"}, {"a": "u1"}, {"b.c": 3}, {"n": {"$gte": 2}}, {"tags": "u2"},
    {"n": None}, {"a": True}, {"b": {"c": 3}},
]  # fmt: skip
VALUES = ["u1", "u2", "3", 3, 3.0, 4, "4.0", -5, True, "true", None, "ü", 1, "1", 2, 1e20, 2**70]


@pytest.fixture
def connections():
    wire = Wire(Ends(), max_buffer=1 << 30)
    clients = []
    for _ in range(12):
        client, server = socket.socketpair()
        server.setblocking(False)
        wire.adopt(server.detach())
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        clients.append(client)
    wire.ready()
    for client in clients:
        client.recv(100)
        client.setblocking(False)
    yield wire, clients
    wire.close_all()
    for client in clients:
        client.close()


def received(wire, clients):
    while wire.flush():
        pass
    found = []
    for client in clients:
        try:
            data = client.recv(1 << 20)
        except BlockingIOError:
            data = b""
        frames, rest = parse(data)
        assert not rest
        found.append([orjson.loads(payload) for _, _, payload in frames])
    return found


def document(rng):
    made = {}
    for name in ("a", "n", "tags"):
        if rng.random() < 0.8:
            made[name] = rng.choice(VALUES)
    if rng.random() < 0.3:
        made["tags"] = [rng.choice(VALUES) for _ in range(rng.randrange(4))]
    kind = rng.random()
    if kind < 0.4:
        made["b"] = {"c": rng.choice(VALUES)}
    elif kind < 0.6:
        made["b"] = [{"c": rng.choice(VALUES)}, rng.choice(VALUES), {"d": 1}]
    elif kind < 0.7:
        made["b"] = rng.choice(VALUES)
    return made


@pytest.mark.parametrize("kind", ["postgres", "mongo"])
def test_the_index_finds_whom_a_search_of_all_finds(connections, kind):
    wire, clients = connections
    rng = random.Random(21)
    events = (
        ("INSERT", "UPDATE", "DELETE") if kind == "postgres" else ("insert", "update", "delete")
    )
    section = "tables" if kind == "postgres" else "collections"
    name = "public.t" if kind == "postgres" else "t"
    compared = 0
    for _ in range(60):
        rules = ProjectRules(settings.parse({section: {"t": {"rule": rng.choice(RULES)}}}))
        rule = rules.source(kind, name)
        hub = Hub()
        source = hub.source(kind, name)
        identities = [
            Identity(
                "authenticated", user,
                {"sub": user, "team": rng.choice(VALUES[:4]), "iat": rng.random()},
            )
            for user in rng.choices(USERS, k=12)
        ]  # fmt: skip
        kept = []
        for _ in range(rng.randrange(1, 40)):
            number = rng.randrange(12)
            audience = rule.audience(identities[number])
            given = rng.choice(FILTERS)
            wanted_events = tuple(rng.sample(events, rng.randrange(1, 4)))
            bits = event_bits(wanted_events)
            wanted, key, terms = None, None, audience.terms
            if given is not None:
                match = client_filter(given, loose=rule.loose)
                wanted = match.bind(context_of(identities[number], claims=False))
                key = orjson.dumps(given)
                terms = terms or filter_terms(wanted)
            if audience.never:
                continue
            group = source.add(
                wire.peers[number], (audience.key, key, bits), bits, audience.rule, wanted,
                audience.whole, terms,
            )  # fmt: skip
            kept.append((number, audience.rule, wanted, wanted_events, group))
        for number, *_, group in [kept.pop() for _ in range(len(kept) // 4)]:
            source.remove(wire.peers[number], group)
        for _ in range(40):
            event = rng.choice(events)
            record = None if event.upper() == "DELETE" else document(rng)
            old = document(rng) if event.upper() != "INSERT" and rng.random() < 0.8 else None
            subscriptions = [
                (number, own, wanted, tuple(e.upper() for e in some))
                for number, own, wanted, some, _ in kept
            ]
            expected = receivers(kind, subscriptions, event.upper(), record, old)
            hub.put(Change(kind, name, event, record=record, old=old))
            while hub.pump(3):
                pass
            for number, frames in enumerate(received(wire, clients)):
                assert len(frames) == (number in expected), (number, event, record, old)
                if frames:
                    assert ("old" in frames[0]) == expected[number]
                    assert (
                        frames[0].get("record") == record or record is None or 2**70 in str(record)
                    )
                    compared += 1
        for number, *_, group in kept:
            source.remove(wire.peers[number], group)
        assert (source.groups, hub.faults) == ({}, 0)
        hub.drop(source)
        assert hub.sources == {}
    assert compared > 500


def test_a_rule_that_fails_lets_nobody_through(connections):
    wire, clients = connections

    class Broken:
        def test(self, document, old, partial):
            raise RuntimeError("never")

    hub = Hub()
    source = hub.source("mongo", "t")
    source.add(wire.peers[0], 1, 7, Broken())
    source.add(wire.peers[1], 2, 7)
    hub.put(Change("mongo", "t", "insert", record={"a": 1}))
    assert not hub.pump()
    got = received(wire, clients)
    assert [len(frames) for frames in got[:2]] == [0, 1]
    assert (hub.faults, str(hub.last_fault)) == (1, "never")


def test_long_work_is_cut_and_keeps_its_order(connections):
    wire, clients = connections
    hub = Hub()
    source = hub.source("mongo", "t")
    for number in range(300):
        source.add(wire.peers[number % 12], number, 7, None, None, False, None)
    for number in range(5):
        hub.put(Change("mongo", "t", "insert", record={"n": number}))
    rounds = 1
    while hub.pump(50):
        rounds += 1
        assert rounds < 100
        assert hub.behind, "the last change has not reached all yet"
    assert rounds > 20
    assert hub.behind == 0
    for frames in received(wire, clients):
        assert [frame["record"]["n"] for frame in frames] == list(range(5))


def test_filters_over_paths_of_all_kinds_are_found_and_bound_the_index(connections):
    """Clients choose what they filter by: each path that is indexed costs every change."""
    wire, clients = connections
    hub = Hub()
    source = hub.source("postgres", "public.t")
    groups = []
    for number in range(300):
        wanted = client_filter({f"c{number}": 1}, loose=True).bind(context_of(Identity("anon")))
        terms = filter_terms(wanted)
        if not source.takes(terms):
            terms = None
        groups.append(
            (
                number % 12,
                source.add(wire.peers[number % 12], number, 3, None, wanted, False, terms),
            )
        )
    assert not source.takes((("other", 1),))
    assert source.takes((("c1", 5),))
    # rules are the owner's: their paths are always indexed
    own = source.add(wire.peers[0], "own", 3, None, None, False, (("user_id", "u1"),))
    for number in (5, 250):
        hub.put(Change("postgres", "public.t", "INSERT", record={f"c{number}": 1, "user_id": "u1"}))
        hub.put(Change("postgres", "public.t", "DELETE", old={f"c{number}": 1, "user_id": "u1"}))
        before, rounds = hub.tests, 0
        while hub.pump(100):
            rounds += 1
        assert rounds >= 2
        assert hub.tests - before < 300
        got = {at: len(frames) for at, frames in enumerate(received(wire, clients)) if frames}
        assert got == {number % 12: 1, 0: 1}
    for at, group in groups:
        source.remove(wire.peers[at], group)
    source.remove(wire.peers[0], own)
    assert source.groups == {}
    assert source.takes((("other", 1),))
