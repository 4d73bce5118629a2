"""Rules in force: who reads and writes what, through every operation."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from tests.timing import quickest
from tests.wire.mongo.conftest import ANN, BOB

OWN = {"user_id": "${auth.uid}"}
NOTES = {
    "read": {"filter": OWN},
    "insert": {"set": OWN},
    "update": {"filter": OWN},
    "delete": {"filter": OWN},
}


@pytest.fixture(scope="module")
def ruled(world):
    """Collections under rules that the tests of this module share."""
    world.rules({
        "notes": NOTES,
        "posts": {
            "read": [{"when": {"auth.role": "anon"}, "filter": {"published": True}},
                     {"filter": {"$or": [{"published": True}, {"owner": "${auth.uid}"}]}}],
            "write": {"when": {"auth.uid": {"$exists": True}}, "filter": {"owner": "${auth.uid}"},
                      "set": {"owner": "${auth.uid}"}},
        },
        "countries": {"read": True},
        "people": {"read": {"read_fields": {"deny": ["salary", "private.note"]}},
                   "write": {"write_fields": {"deny": ["salary"]}}},
        "orders": {"read": True,
                   "insert": {"check": {"total": {"$gte": 0}}},
                   "update": {"check": {"total": {"$gte": 0}}}},
    })  # fmt: skip
    yield world
    world.settings()


@pytest.fixture
def notes(ruled):
    """Two notes of Ann, one of Bob, one of nobody."""
    ruled.service("deleteMany", "notes", {"filter": {}})
    ruled.service("insertMany", "notes", {"docs": [
        {"_id": "a1", "user_id": ANN, "t": 1}, {"_id": "a2", "user_id": ANN, "t": 2},
        {"_id": "b1", "user_id": BOB, "t": 3}, {"_id": "n1", "t": 4}]})  # fmt: skip
    return ruled


def test_no_rule_refuses_everything(ruled):
    for op, body in (("find", {}), ("count", {}), ("insertOne", {"doc": {}}),
                     ("deleteMany", {"filter": {}})):  # fmt: skip
        answer = ruled.call(op, "unknown_things", body, uid=ANN)
        assert (answer.status, answer.code) == (403, "policy_denied"), op
    answer = ruled.call("insertOne", "countries", {"doc": {}}, uid=ANN)
    assert answer.code == "policy_denied"
    assert ruled.call("find", "countries").status == 200


def test_every_read_sees_the_same_documents(notes):
    for uid, ids in ((ANN, ["a1", "a2"]), (BOB, ["b1"])):
        assert [d["_id"] for d in notes.ok("find", "notes", uid=uid)["docs"]] == ids
        assert notes.ok("count", "notes", uid=uid) == {"count": len(ids)}
        assert notes.ok("distinct", "notes", {"field": "_id"}, uid=uid)["values"] == ids
        pipeline = [{"$project": {"_id": 1}}]
        docs = notes.ok("aggregate", "notes", {"pipeline": pipeline}, uid=uid)["docs"]
        assert [d["_id"] for d in docs] == ids
        facet = [{"$facet": {"all": [{"$match": {}}], "n": [{"$count": "n"}]}}]
        docs = notes.ok("aggregate", "notes", {"pipeline": facet}, uid=uid)["docs"]
        assert [d["_id"] for d in docs[0]["all"]] == ids
        other = "b1" if uid == ANN else "a1"
        assert notes.ok("findOne", "notes", {"filter": {"_id": other}}, uid=uid) == {"doc": None}
    for op in ("find", "count", "aggregate"):
        body = {"pipeline": []} if op == "aggregate" else {}
        assert notes.call(op, "notes", body).code == "policy_denied", "anonymous"


def test_a_filter_cannot_be_overridden(notes):
    for filter in ({"user_id": BOB}, {"$or": [{"user_id": BOB}, {}]}, {"user_id": {"$ne": ANN}},
                   {"$nor": [{"user_id": ANN}]}, {"$and": [{"user_id": BOB}]}):  # fmt: skip
        docs = notes.ok("find", "notes", {"filter": filter}, uid=ANN)["docs"]
        assert all(d["user_id"] == ANN for d in docs), filter


def test_inserts_are_stamped(notes):
    made = notes.ok("insertOne", "notes", {"doc": {"user_id": BOB, "t": 9}}, uid=ANN)
    found = notes.service("findOne", "notes", {"filter": {"_id": made["insertedId"]}})["doc"]
    assert found["user_id"] == ANN
    assert notes.call("insertOne", "notes", {"doc": {"t": 1}}).code == "policy_denied"


def test_writes_reach_own_documents_alone(notes):
    touch = {"$set": {"t": 0}}
    for op in ("updateOne", "updateMany", "findOneAndUpdate"):
        answer = notes.ok(op, "notes", {"filter": {"_id": "b1"}, "update": touch}, uid=ANN)
        assert answer.get("matched", 0) == 0
        assert answer.get("doc") is None
    body = {"filter": {"_id": "b1"}, "replacement": {"user_id": ANN}}
    assert notes.ok("replaceOne", "notes", body, uid=ANN)["matched"] == 0
    assert notes.ok("deleteOne", "notes", {"filter": {"_id": "b1"}}, uid=ANN) == {"deleted": 0}
    body = {"filter": {"_id": "b1"}}
    assert notes.ok("findOneAndDelete", "notes", body, uid=ANN) == {"doc": None}
    assert notes.ok("deleteMany", "notes", {"filter": {}}, uid=ANN) == {"deleted": 2}
    left = [d["_id"] for d in notes.service("find", "notes", {"sort": {"_id": 1}})["docs"]]
    assert left == ["b1", "n1"]


@pytest.mark.parametrize("change", [
    {"$set": {"user_id": BOB}}, {"$unset": {"user_id": 1}}, {"$rename": {"user_id": "x"}},
    {"$rename": {"t": "user_id"}}, {"$currentDate": {"user_id": True}},
    {"$set": {"user_id.deep": 1}},
])  # fmt: skip
def test_an_update_cannot_move_a_document_out_of_the_rule(notes, change):
    for op in ("updateOne", "updateMany", "findOneAndUpdate"):
        answer = notes.call(op, "notes", {"filter": {"_id": "a1"}, "update": change}, uid=ANN)
        assert answer.status in (400, 403), (op, answer.text)
    body = {"ops": [{"op": "updateOne", "filter": {"_id": "a1"}, "update": change}]}
    assert notes.call("bulkWrite", "notes", body, uid=ANN).status in (400, 403)
    found = notes.service("findOne", "notes", {"filter": {"_id": "a1"}})["doc"]
    assert found == {"_id": "a1", "user_id": ANN, "t": 1}


def test_a_replacement_cannot_move_a_document_out_of_the_rule(notes):
    body = {"filter": {"_id": "a1"}, "replacement": {"user_id": BOB}}
    assert notes.call("replaceOne", "notes", body, uid=ANN).code == "policy_denied"
    body["replacement"] = {"t": 1}
    assert notes.call("replaceOne", "notes", body, uid=ANN).code == "policy_denied"
    body["replacement"] = {"t": 8, "user_id": ANN}
    assert notes.ok("replaceOne", "notes", body, uid=ANN)["modified"] == 1


def test_an_upsert_makes_ones_own_document(notes):
    body = {"filter": {"_id": "new"}, "update": {"$set": {"t": 5}}, "upsert": True}
    assert notes.ok("updateOne", "notes", body, uid=ANN)["upsertedId"] == "new"
    found = notes.service("findOne", "notes", {"filter": {"_id": "new"}})["doc"]
    assert found == {"_id": "new", "t": 5, "user_id": ANN}
    body = {"filter": {"user_id": BOB, "k": 1}, "update": {"$set": {"t": 5}}, "upsert": True}
    assert notes.call("updateOne", "notes", body, uid=ANN).code == "policy_denied"
    # somebody else has this identifier: it is neither changed nor shown
    body = {"filter": {"_id": "b1"}, "update": {"$set": {"t": 5}}, "upsert": True}
    answer = notes.call("updateOne", "notes", body, uid=ANN)
    assert (answer.status, answer.code) == (409, "duplicate_key")


def test_checks_look_at_what_an_update_leaves(ruled):
    ruled.service("deleteMany", "orders", {"filter": {}})
    assert ruled.call("insertOne", "orders", {"doc": {"total": -1}}, uid=ANN).status == 403
    ruled.ok("insertMany", "orders", {"docs": [{"_id": 1, "total": 5}, {"_id": 2, "total": 1}]},
             uid=ANN)  # fmt: skip
    inc = {"$inc": {"total": -3}}
    assert ruled.ok("updateOne", "orders", {"filter": {"_id": 1}, "update": inc}, uid=ANN)[
        "modified"
    ] == 1  # fmt: skip
    for op in ("updateOne", "findOneAndUpdate"):
        answer = ruled.call(op, "orders", {"filter": {"_id": 1}, "update": inc}, uid=ANN)
        assert answer.code == "policy_denied"
    answer = ruled.call("updateMany", "orders", {"filter": {}, "update": {"$inc": {"total": -2}}},
                        uid=ANN)  # fmt: skip
    assert answer.code == "policy_denied"
    docs = ruled.service("find", "orders", {"sort": {"_id": 1}})["docs"]
    assert [d["total"] for d in docs] == [2, 1], "all or nothing"
    less = {"$inc": {"total": -1}}
    ops = [{"op": "updateOne", "filter": {"_id": 2}, "update": inc},
           {"op": "updateOne", "filter": {"_id": 1}, "update": less}]  # fmt: skip
    done = ruled.ok("bulkWrite", "orders", {"ops": ops}, uid=ANN)
    assert [e["code"] for e in done["errors"]] == ["policy_denied"]
    assert done["modified"] == 1


def test_checks_hold_under_concurrent_updates(ruled):
    """Twelve senders each take 1 from a total of 5: five succeed, and nobody ever sees less
    than 0."""
    ruled.service("deleteMany", "orders", {"filter": {}})
    ruled.service("insertOne", "orders", {"doc": {"_id": "c", "total": 5}})
    body = {"filter": {"_id": "c"}, "update": {"$inc": {"total": -1}}}
    outcomes, seen, stop = [], [], threading.Event()

    def sender():
        one = fork(ruled)
        outcomes.append(one.call("updateOne", "orders", body, uid=ANN).status)
        one.client.close()

    def watcher():
        one = fork(ruled)
        while not stop.is_set():
            seen.append(one.service("findOne", "orders", {"filter": {"_id": "c"}})["doc"]["total"])
        one.client.close()

    watching = threading.Thread(target=watcher)
    watching.start()
    senders = [threading.Thread(target=sender) for _ in range(12)]
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join()
    stop.set()
    watching.join()
    assert sorted(outcomes) == [200] * 5 + [403] * 7
    assert min(seen) >= 0
    assert ruled.service("findOne", "orders", {"filter": {"_id": "c"}})["doc"]["total"] == 0


def statuses(world, name):
    """Of a read over eight new connections, which the workers share out among themselves."""
    found = []
    for _ in range(8):
        one = fork(world)
        found.append(one.call("find", name).status)
        one.client.close()
    return found


def fork(world):
    """The same world over a connection of its own, for a thread."""
    import copy
    import http.client

    other = copy.copy(world)
    other.client = http.client.HTTPConnection("127.0.0.1", world.site.port, timeout=60)
    return other


def test_denied_fields_are_not_read(ruled):
    ruled.service("deleteMany", "people", {"filter": {}})
    private = {"note": "x", "phone": 5}
    doc = {"_id": 1, "name": "Eve", "salary": 100, "private": private}
    ruled.service("insertOne", "people", {"doc": doc})
    shown = {"_id": 1, "name": "Eve", "private": {"phone": 5}}
    assert ruled.ok("findOne", "people", {"filter": {}}, uid=ANN) == {"doc": shown}
    assert ruled.ok("find", "people", uid=ANN)["docs"] == [shown]
    assert ruled.ok("aggregate", "people", {"pipeline": []}, uid=ANN)["docs"] == [shown]
    for projection in ({"salary": 1}, {"private.note": 1}, {"private": 1, "salary": 1}):
        answer = ruled.call("find", "people", {"projection": projection}, uid=ANN)
        assert answer.status == 403 or "salary" not in answer.text
        assert "note" not in answer.text or answer.status == 403
    assert ruled.ok("find", "people", {"projection": {"name": 1}}, uid=ANN)["docs"] == [
        {"_id": 1, "name": "Eve"}
    ]
    for body in ({"filter": {"salary": 100}}, {"sort": {"salary": 1}},
                 {"filter": {"$or": [{"salary": {"$gt": 1}}]}}, {"filter": {"private.note": "x"}},
                 {"filter": {"$expr": {"$gt": ["$salary", 1]}}},
                 {"filter": {"private": {}}}):  # fmt: skip
        answer = ruled.call("find", "people", body, uid=ANN)
        assert (answer.status, answer.code) == (403, "policy_denied"), body
    answer = ruled.call("distinct", "people", {"field": "salary"}, uid=ANN)
    assert answer.code == "policy_denied"
    for pipeline in ([{"$group": {"_id": "$salary"}}], [{"$project": {"x": "$salary"}}],
                     [{"$project": {"x": "$$ROOT"}}], [{"$sort": {"salary": 1}}],
                     [{"$match": {"salary": 100}}]):  # fmt: skip
        answer = ruled.call("aggregate", "people", {"pipeline": pipeline}, uid=ANN)
        assert answer.status == 403 or "100" not in answer.text, pipeline


def test_denied_fields_are_not_written(ruled):
    ruled.service("deleteMany", "people", {"filter": {}})
    ruled.service("insertOne", "people", {"doc": {"_id": 1, "name": "Eve", "salary": 100}})
    assert ruled.call("insertOne", "people", {"doc": {"salary": 1}}, uid=ANN).status == 403
    for change in ({"$set": {"salary": 1}}, {"$inc": {"salary": 1}}, {"$unset": {"salary": ""}},
                   {"$rename": {"name": "salary"}}, {"$rename": {"salary": "name"}},
                   {"$setOnInsert": {"salary": 1}}, {"$set": {"salary.x": 1}}):  # fmt: skip
        body = {"filter": {"_id": 1}, "update": change}
        assert ruled.call("updateOne", "people", body, uid=ANN).status in (400, 403), change
    body = {"filter": {"_id": 1}, "replacement": {"name": "x"}}
    assert ruled.call("replaceOne", "people", body, uid=ANN).code == "policy_denied"
    body = {"filter": {"_id": 1}, "update": {"$set": {"name": "Eva"}}}
    assert ruled.ok("updateOne", "people", body, uid=ANN)["modified"] == 1
    assert ruled.service("findOne", "people")["doc"]["salary"] == 100


def test_roles_choose_their_rule(ruled):
    ruled.service("deleteMany", "posts", {"filter": {}})
    ruled.service("insertMany", "posts", {"docs": [
        {"_id": 1, "published": True, "owner": BOB}, {"_id": 2, "published": False, "owner": ANN},
        {"_id": 3, "published": False, "owner": BOB}]})  # fmt: skip

    def ids(**who):
        docs = ruled.ok("find", "posts", {"sort": {"_id": 1}}, **who)["docs"]
        return [d["_id"] for d in docs]

    assert ids() == [1]
    assert ids(uid=ANN) == [1, 2]
    assert ids(uid=BOB) == [1, 3]
    assert ruled.call("insertOne", "posts", {"doc": {}}).code == "policy_denied"
    assert ruled.ok("updateMany", "posts", {"filter": {}, "update": {"$set": {"x": 1}}}, uid=ANN)[
        "matched"
    ] == 1  # fmt: skip


def test_the_secret_key_passes_unless_it_is_bound(ruled):
    assert ruled.call("find", "notes", service=True).status == 200
    assert ruled.call("find", "notes", service=True, uid=ANN).status == 200
    token = ruled.token(ANN)
    headers = {"authorization": f"Bearer {token}"}
    assert ruled.call("find", "nowhere", service=True, headers=headers).status == 200


def test_rules_change_in_every_worker_within_a_second(pg_cluster, documents, tmp_path_factory):
    from tests.wire.mongo.conftest import World

    folder = tmp_path_factory.mktemp("mongo-workers")
    world = World(pg_cluster, documents, folder, "control_mongo_two", workers=2)
    try:
        name = f"c{uuid.uuid4().hex[:8]}"
        assert world.call("find", name).code == "policy_denied"

        def change(rules, status):
            """The seconds until the rules are those of all workers."""
            world.rules(rules)
            began = time.monotonic()
            while statuses(world, name) != [status] * 8:
                assert time.monotonic() - began < 60
            return time.monotonic() - began

        def there_and_back():
            return max(change({name: {"read": True}}, 200), change({}, 403))

        assert quickest(there_and_back, 1) < 1
        world.rules({name: {"read": True}}, enforce_service_role=True)
        assert world.call("find", name, service=True).status == 200
        assert world.call("insertOne", name, {"doc": {}}, service=True).code == "policy_denied"
    finally:
        world.stop()


def test_a_mistake_is_refused_with_its_path_when_saved(world):
    from ichicore.errors import ApiError

    for rules, path in (
        ({"collections": {"notes": {"read": {"filter": {"a": {"$foo": 1}}}}}},
         "rules.collections.notes.read.filter.a.$foo"),
        ({"collections": {"notes": {"reed": True}}}, "rules.collections.notes.reed"),
        ({"collections": {"notes": {"read": {"filter": {"a": "${auth.nobody}"}}}}},
         "rules.collections.notes.read.filter.a"),
    ):  # fmt: skip
        with pytest.raises(ApiError, match=path.replace("$", r"\$")) as refused:
            world.settings(rules=rules)
        assert refused.value.status == 400


def test_an_object_in_a_rule_keeps_the_order_of_its_members(world):
    """The settings are kept as jsonb, which would put "no" before "street"."""
    name = f"c{uuid.uuid4().hex[:8]}"
    world.rules({name: {"read": {"filter": {"address": {"street": "x", "no": 1}}}}})
    docs = [{"_id": 1, "address": {"street": "x", "no": 1}},
            {"_id": 2, "address": {"no": 1, "street": "x"}}]  # fmt: skip
    world.service("insertMany", name, {"docs": docs})
    assert [d["_id"] for d in world.ok("find", name, uid=ANN)["docs"]] == [1]
    world.settings()
