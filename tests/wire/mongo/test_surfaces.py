"""One rule, every surface: what find, count, distinct, aggregate, writes and sockets let a user see
or touch is what the rules' slow twin says, for random rules and documents."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ichicore.live.change import Change
from ichicore.live.hub import Hub, event_bits
from ichicore.live.wire import Wire
from ichicore.rules import Context, RuleError, compile_match
from server.base.project import Identity
from server.realtime import settings as realtime
from server.realtime.rules import ProjectRules
from tests.core.test_hub import Ends, received
from tests.oracle import rules_match
from tests.oracle.rules_strategies import expressions, nested
from tests.wire.mongo.conftest import ANN, BOB, Told

SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, 2.0])
    | st.sampled_from(["", "x", "xy", "X", "anna", "ü", ANN])
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c"])
VALUES = nested(SCALARS, 5)
DOCUMENTS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=6, max_size=6)
USERS = (
    (ANN, {"n": 1, "list": ["x", 1, None], "o": {"a": 1}, "email": "a@x"}),
    (BOB, {"n": 0.5, "list": [], "o": {}}),
)


def compiles(expression):
    try:
        compile_match(expression)
    except RuleError:
        return False
    return True


RULES = st.lists(expressions(True, NAMES).filter(compiles), min_size=8, max_size=8)


class Sockets:
    """The realtime process's own parts, fed with what the worker tells it."""

    def __init__(self, world):
        self.told = Told(world.site.config.data_dir)
        self.wire = Wire(Ends(), max_buffer=1 << 30)
        self.client, server = socket.socketpair()
        server.setblocking(False)
        self.wire.adopt(server.detach())
        self.client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        self.wire.ready()
        self.client.recv(100)
        self.client.setblocking(False)

    def heard(self, name, rule, identity, count):
        """Frames of a socket with this identity, of the next `count` changes."""
        section = realtime.parse({"collections": {name: {"rule": rule}}})
        audience = ProjectRules(section).source("mongo", name).audience(identity)
        events = self.told.take(count)
        assert len(events) == count
        hub = Hub()
        source = hub.source("mongo", name)
        if not audience.never:
            bits = event_bits(("insert", "update", "delete"))
            source.add(
                self.wire.peers[0], (audience.key, bits), bits, audience.rule, None,
                audience.whole, audience.terms,
            )  # fmt: skip
        for event in events:
            hub.put(Change("mongo", name, event["event"], record=event["record"], old=event["old"]))
            while hub.pump():
                pass
        assert hub.faults == 0
        return received(self.wire, [self.client])[0]

    def close(self):
        self.wire.close_all()
        self.client.close()
        self.told.close()


@pytest.fixture(scope="module")
def sockets(world):
    made = Sockets(world)
    yield made
    made.close()
    asyncio.run(world.projects.put_settings("default", "realtime", {}))
    world.settings()


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules=RULES, bodies=DOCUMENTS)
def test_every_surface_agrees_with_the_twin(world, sockets, rules, bodies):
    documents = [{**body, "_id": number} for number, body in enumerate(bodies)]
    names = [f"surface{number}" for number in range(len(rules))]
    pairs = list(zip(names, rules, strict=True))
    told = {"collections": {name: {"rule": rule} for name, rule in pairs}}
    asyncio.run(world.projects.put_settings("default", "realtime", told))
    world.rules({
        name: {action: {"filter": rule} for action in ("read", "update", "delete")}
        for name, rule in pairs
    })  # fmt: skip
    for name, rule in pairs:
        for uid, claims in USERS:
            world.service("deleteMany", name, {"filter": {}}, query="?realtime=false")
            sockets.told.messages.clear()
            world.service("insertMany", name, {"docs": documents})
            check(world, sockets, name, rule, documents, uid, claims)


def check(world, sockets, name, rule, documents, uid, claims):
    identity = Context("authenticated", uid, claims.get("email"), {**claims, "sub": uid})
    listener = Identity("authenticated", uid, {**claims, "sub": uid})
    told = f"{json.dumps(rule)} for {uid} over {json.dumps(documents)}"
    who = {"uid": uid, **claims}

    def call(op, body):
        return world.call(op, name, body, **who)

    def ids(frames, member):
        return [frame[member]["_id"] for frame in frames]

    inserts = sockets.heard(name, rule, listener, len(documents))
    if not rules_match.resolves(rule, identity):
        for op, body in (("find", {}), ("count", {}), ("distinct", {"field": "_id"}),
                         ("aggregate", {"pipeline": []}), ("deleteMany", {"filter": {}}),
                         ("updateMany", {"filter": {}, "update": {"$set": {"z": 1}}})):  # fmt: skip
            assert call(op, body).code == "policy_denied", (op, told)
        assert inserts == [], told
        return
    wanted = [d["_id"] for d in documents if rules_match.match(rule, d, identity)]
    assert ids(inserts, "record") == wanted, told

    found = call("find", {"sort": {"_id": 1}})
    assert found.status == 200, (found.text, told)
    assert [d["_id"] for d in found.json["docs"]] == wanted, told
    assert call("count", {}).json == {"count": len(wanted)}, told
    assert sorted(call("distinct", {"field": "_id"}).json["values"]) == wanted, told
    pipeline = [{"$sort": {"_id": 1}}, {"$project": {"_id": 1}}]
    docs = call("aggregate", {"pipeline": pipeline}).json["docs"]
    assert [d["_id"] for d in docs] == wanted, told
    grouped = call("aggregate", {"pipeline": [{"$group": {"_id": None, "n": {"$sum": 1}}}]})
    assert sum(d["n"] for d in grouped.json["docs"]) == len(wanted), told
    for number in range(len(documents)):
        one = call("findOne", {"filter": {"_id": number}}).json["doc"]
        assert (one is not None) == (number in wanted), told

    done = call("updateMany", {"filter": {}, "update": {"$set": {"z": 1}}}).json
    assert done["matched"] == len(wanted), told
    marked = world.service("find", name, {"filter": {"z": 1}, "sort": {"_id": 1}})["docs"]
    assert [d["_id"] for d in marked] == wanted, told
    assert ids(sockets.heard(name, rule, listener, len(wanted)), "record") == wanted, told
    ops = [{"op": "updateOne", "filter": {"_id": n}, "update": {"$set": {"y": 1}}}
           for n in range(len(documents))]  # fmt: skip
    answer = call("bulkWrite", {"ops": ops})
    assert answer.json["matched"] == len(wanted), told
    sockets.told.take(len(wanted))
    assert call("deleteMany", {"filter": {}}).json == {"deleted": len(wanted)}, told
    assert ids(sockets.heard(name, rule, listener, len(wanted)), "old") == wanted, told
    left = world.service("distinct", name, {"field": "_id"})["values"]
    assert sorted(left) == [d["_id"] for d in documents if d["_id"] not in wanted], told
