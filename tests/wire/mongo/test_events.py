"""What the realtime process is told of writes, and decisions by a function."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from tests.wire.mongo.conftest import ANN, Told

OWN = {"user_id": "${auth.uid}"}


@pytest.fixture(scope="module")
def told(world):
    made = Told(world.site.config.data_dir)
    section = {"collections": {"orders": {"enabled": True, "rule": OWN}}}
    asyncio.run(world.projects.put_settings("default", "realtime", section))
    world.rules({"orders": {"read": {"filter": OWN}, "insert": {"set": OWN},
                            "update": {"filter": OWN}, "delete": {"filter": OWN}}})  # fmt: skip
    yield made
    asyncio.run(world.projects.put_settings("default", "realtime", {}))
    world.settings()
    made.close()


@pytest.fixture
def orders(world, told):
    world.service("deleteMany", "orders", {"filter": {}}, query="?realtime=false")
    time.sleep(0.05)
    told.messages.clear()
    return world


def test_each_affected_document_is_told(orders, told):
    orders.ok("insertOne", "orders", {"doc": {"_id": 1, "n": 1}}, uid=ANN)
    assert told.take() == [
        {"event": "insert", "record": {"_id": 1, "n": 1, "user_id": ANN}, "old": None}
    ]
    orders.ok("insertMany", "orders", {"docs": [{"_id": 2, "n": 1}, {"_id": 3, "n": 1}]}, uid=ANN)
    assert [e["record"]["_id"] for e in told.take(2)] == [2, 3]
    done = orders.ok("updateMany", "orders", {"filter": {}, "update": {"$inc": {"n": 1}}}, uid=ANN)
    assert (done["matched"], done["modified"]) == (3, 3)
    events = told.take(3)
    assert [(e["event"], e["record"]["n"], e["old"]["n"]) for e in events] == [("update", 2, 1)] * 3
    body = {"filter": {"_id": 1}, "update": {"$set": {"n": 9}}}
    orders.ok("findOneAndUpdate", "orders", body, uid=ANN)
    body = {"filter": {"_id": 2}, "replacement": {"n": 7, "user_id": ANN}}
    orders.ok("replaceOne", "orders", body, uid=ANN)
    assert [(e["event"], e["record"]["n"]) for e in told.take(2)] == [("update", 9), ("update", 7)]
    body = {"filter": {"_id": "u"}, "update": {"$set": {"n": 1}}, "upsert": True}
    orders.ok("updateOne", "orders", body, uid=ANN)
    (event,) = told.take()
    assert (event["event"], event["record"]["_id"]) == ("insert", "u")
    orders.ok("findOneAndDelete", "orders", {"filter": {"_id": 1}}, uid=ANN)
    orders.ok("deleteMany", "orders", {"filter": {}}, uid=ANN)
    events = told.take(4)
    assert [e["event"] for e in events] == ["delete"] * 4
    assert {e["old"]["_id"] for e in events} == {1, 2, 3, "u"}
    assert all(e["old"]["user_id"] == ANN for e in events)


def test_identifiers_of_every_kind_are_told(orders, told):
    ids = [{"a": 1, "b": [1]}, 1.5, True, "x", {"$oid": "0123456789abcdef01234567"}]
    for id in ids:
        orders.ok("insertOne", "orders", {"doc": {"_id": id}}, uid=ANN)
    assert len(told.take(len(ids))) == len(ids)
    done = orders.ok("updateMany", "orders", {"filter": {}, "update": {"$set": {"n": 1}}}, uid=ANN)
    assert done["matched"] == len(ids)
    assert all(e["old"] is not None and e["record"]["n"] == 1 for e in told.take(len(ids)))
    assert orders.ok("deleteMany", "orders", {"filter": {}}, uid=ANN) == {"deleted": len(ids)}
    assert len(told.take(len(ids))) == len(ids)


def test_a_batch_tells_of_each_document(orders, told):
    ops = [{"op": "insertOne", "doc": {"_id": n, "n": n}} for n in (1, 2)]
    ops += [{"op": "updateOne", "filter": {"_id": 1}, "update": {"$inc": {"n": 5}}},
            {"op": "deleteOne", "filter": {"_id": 2}}]  # fmt: skip
    orders.ok("bulkWrite", "orders", {"ops": ops}, uid=ANN)
    assert [e["event"] for e in told.take(4)] == ["insert", "insert", "update", "delete"]


def test_refused_and_empty_writes_tell_nothing(orders, told):
    orders.ok("insertOne", "orders", {"doc": {"_id": 1}}, uid=ANN)
    assert len(told.take()) == 1
    orders.call("insertOne", "orders", {"doc": {"_id": 1}}, uid=ANN)
    body = {"filter": {"_id": 1}, "update": {"$set": {"user_id": "other"}}}
    assert orders.call("updateOne", "orders", body, uid=ANN).code == "policy_denied"
    orders.ok("updateOne", "orders", {"filter": {"_id": 5}, "update": {"$set": {"a": 1}}}, uid=ANN)
    orders.ok("deleteMany", "orders", {"filter": {"_id": 5}}, uid=ANN)
    assert told.take(1, 0.3) == []


def test_only_the_secret_key_may_write_quietly(orders, told):
    quiet = "?realtime=false"
    orders.service("insertOne", "orders", {"doc": {"_id": 1}}, query=quiet)
    assert told.take(1, 0.3) == []
    orders.service("insertOne", "orders", {"doc": {"_id": 2}}, query="?realtime=true")
    assert len(told.take()) == 1
    orders.ok("insertOne", "orders", {"doc": {"_id": 3}}, uid=ANN, query=quiet)
    assert len(told.take()) == 1


def test_collections_that_are_not_enabled_tell_nothing(orders, told):
    orders.service("insertOne", f"c{uuid.uuid4().hex[:8]}", {"doc": {}})
    assert told.take(1, 0.3) == []


def test_what_the_change_stream_tells_the_worker_does_not(orders, told):
    section = {"documents": "stream", "collections": {"orders": {"enabled": True, "rule": OWN}}}
    asyncio.run(orders.projects.put_settings("default", "realtime", section))

    def tells():
        orders.ok("insertOne", "orders", {"doc": {}}, uid=ANN)
        return told.take(1, 0.3) != []

    orders.until(lambda: not tells())
    orders.ok("insertOne", "orders", {"doc": {"_id": 1}}, uid=ANN)
    orders.ok("updateMany", "orders", {"filter": {}, "update": {"$set": {"n": 1}}}, uid=ANN)
    orders.ok("deleteMany", "orders", {"filter": {}}, uid=ANN)
    time.sleep(0.3)
    assert told.messages == []
    del section["documents"]
    asyncio.run(orders.projects.put_settings("default", "realtime", section))
    orders.until(tells)


def test_a_realtime_process_that_is_away_costs_no_write(world):
    """Nothing listens: writes go on."""
    section = {"collections": {"alone": {"enabled": True, "rule": True}}}
    asyncio.run(world.projects.put_settings("papers2", "realtime", section)
                if world.records.get("papers2") else _made(world, section))  # fmt: skip
    for n in range(5):
        world.service("insertOne", "alone", {"doc": {"_id": n}}, slug="papers2")
    assert world.service("count", "alone", slug="papers2") == {"count": 5}


async def _made(world, section):
    world.records["papers2"] = await world.projects.create("papers2", "mongo", "pro")
    await world.projects.put_settings("papers2", "realtime", section)
    await asyncio.sleep(1)


def test_mode_function_fails_closed(world):
    """No such function is deployed: all is refused, the secret key's requests too."""
    world.make("byfunction", "mongo")
    world.settings("byfunction", mode="function")
    answer = world.call("find", "open", slug="byfunction")
    assert (answer.status, answer.code) == (403, "policy_denied")
    answer = world.call("insertOne", "open", {"doc": {}}, slug="byfunction", service=True)
    assert (answer.status, answer.code) == (403, "policy_denied")


def test_a_project_over_its_quota_reads_and_deletes(world):
    import psycopg

    world.make("full", "mongo")
    world.service("insertOne", "open", {"doc": {"_id": 1, "t": "x" * 1000}}, slug="full")
    with psycopg.connect(world.dsn) as control:
        control.execute(
            "update projects set limits = '{\"database_bytes\": 500}' where slug='full'"
        )
    world.until(lambda: world.call("insertOne", "open", {"doc": {}}, slug="full",
                                   service=True).status == 507)  # fmt: skip
    body = {"filter": {"_id": 1}, "update": {"$set": {"a": 1}}}
    answer = world.call("updateOne", "open", body, slug="full", service=True)
    assert (answer.status, answer.code) == (507, "quota_exceeded")
    assert world.service("count", "open", slug="full")["count"] >= 1
    world.service("deleteMany", "open", {"filter": {}}, slug="full")
    world.until(lambda: world.call("insertOne", "open", {"doc": {}}, slug="full",
                                   service=True).status == 200)  # fmt: skip
