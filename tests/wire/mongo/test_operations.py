"""Every operation of the document API against the embedded server, as clients send them."""

from __future__ import annotations

import asyncio
import re
import uuid

import pytest

from server.control.lifecycle import Lifecycle

HEX = re.compile(r"[0-9a-f]{24}\Z")


@pytest.fixture
def name():
    """A collection of this test's own."""
    return f"c{uuid.uuid4().hex[:10]}"


def test_insert_and_find(world, name):
    made = world.service("insertOne", name, {"doc": {"title": "a", "n": 1}})
    assert HEX.match(made["insertedId"])
    many = world.service("insertMany", name, {"docs": [{"n": 2}, {"n": 3, "_id": 7}, {"n": 4}]})
    assert len(many["insertedIds"]) == 3
    assert many["insertedIds"][1] == "7"
    found = world.service("find", name, {"filter": {}, "sort": {"n": -1}, "limit": 2})
    assert [d["n"] for d in found["docs"]] == [4, 3]
    assert (found["count"], found["truncated"]) == (2, False)
    one = world.service("findOne", name, {"filter": {"_id": made["insertedId"]}})
    assert one["doc"] == {"_id": made["insertedId"], "title": "a", "n": 1}
    assert world.service("findOne", name, {"filter": {"n": 99}}) == {"doc": None}
    shown = world.service("find", name, {"filter": {"n": 1}, "projection": {"_id": 0, "n": 1}})
    assert shown["docs"] == [{"n": 1}]
    skipped = world.service("find", name, {"sort": {"n": 1}, "skip": 3})
    assert [d["n"] for d in skipped["docs"]] == [4]


def test_ids_in_filters(world, name):
    a, b = world.service("insertMany", name, {"docs": [{"n": 1}, {"n": 2}]})["insertedIds"]
    for filter in (
        {"_id": a}, {"_id": {"$eq": a}}, {"_id": {"$in": [a]}}, {"_id": {"$ne": b}},
        {"$and": [{"_id": a}]}, {"$or": [{"_id": a}, {"_id": "x"}]}, {"_id": {"$oid": a}},
        {"_id": {"$lt": b}}, {"$nor": [{"_id": b}]},
    ):  # fmt: skip
        docs = world.service("find", name, {"filter": filter})["docs"]
        assert [d["n"] for d in docs] == [1], filter
    newest = world.service("find", name, {"filter": {}, "sort": {"_id": -1}, "limit": 1})["docs"]
    assert newest[0]["_id"] == b


def test_a_stored_text_of_24_digits_is_found_too(world, name):
    text = "0123456789abcdef01234567"
    world.service("insertOne", name, {"doc": {"_id": text, "n": 1}})
    assert world.service("findOne", name, {"filter": {"_id": text}})["doc"]["n"] == 1


def test_values_go_in_and_come_out(world, name):
    doc = {
        "date": {"$date": "2024-02-29T12:00:00Z"}, "long": {"$numberLong": "9007199254740993"},
        "small": {"$numberLong": "5"}, "decimal": {"$numberDecimal": "1.50"},
        "binary": {"$binary": {"base64": "AQID", "subType": "00"}},
        "ref": {"$oid": "0123456789abcdef01234567"}, "null": None, "deep": {"a": [{"b": True}]},
        "text": "käse\n", "plain": "0123456789abcdef01234567", "f": 1.5,
    }  # fmt: skip
    world.service("insertOne", name, {"doc": doc | {"_id": 1}})
    assert world.service("findOne", name, {"filter": {}})["doc"] == {
        "_id": 1, "date": "2024-02-29T12:00:00.000Z", "long": "9007199254740993", "small": 5,
        "decimal": "1.50", "binary": "AQID", "ref": "0123456789abcdef01234567", "null": None,
        "deep": {"a": [{"b": True}]}, "text": "käse\n", "plain": "0123456789abcdef01234567",
        "f": 1.5,
    }  # fmt: skip


def test_count_distinct_and_aggregate(world, name):
    docs = [{"tag": "ui", "n": 1}, {"tag": "api", "n": 2}, {"tag": "ui", "n": 3}]
    world.service("insertMany", name, {"docs": docs})
    assert world.service("count", name, {"filter": {"tag": "ui"}}) == {"count": 2}
    assert world.service("count", name) == {"count": 3}
    found = world.service("distinct", name, {"field": "tag"})
    assert (sorted(found["values"]), found["truncated"]) == (["api", "ui"], False)
    found = world.service("distinct", name, {"field": "n", "filter": {"tag": "ui"}})
    assert sorted(found["values"]) == [1, 3]
    pipeline = [{"$match": {"n": {"$gt": 0}}}, {"$group": {"_id": "$tag", "sum": {"$sum": "$n"}}},
                {"$sort": {"_id": 1}}]  # fmt: skip
    assert world.service("aggregate", name, {"pipeline": pipeline}) == {
        "docs": [{"_id": "api", "sum": 2}, {"_id": "ui", "sum": 4}], "count": 2,
        "truncated": False,
    }  # fmt: skip
    for absent in ("find", "count", "distinct", "aggregate"):
        body = {"pipeline": []} if absent == "aggregate" else {"field": "a"}
        body = body if absent in ("aggregate", "distinct") else {}
        assert world.call(absent, "nothing_here", body, service=True).status == 200


def test_update_and_upsert(world, name):
    world.service("insertMany", name, {"docs": [{"_id": 1, "n": 1}, {"_id": 2, "n": 1}]})
    done = world.service("updateOne", name, {"filter": {"n": 1}, "update": {"$inc": {"n": 5}}})
    assert (done["matched"], done["modified"]) == (1, 1)
    assert "upsertedId" not in done
    done = world.service("updateMany", name, {"filter": {}, "update": {"$set": {"x": True}}})
    assert (done["matched"], done["modified"]) == (2, 2)
    done = world.service("updateMany", name, {"filter": {}, "update": {"$set": {"x": True}}})
    assert (done["matched"], done["modified"]) == (2, 0)
    body = {"filter": {"_id": "new"}, "update": {"$set": {"n": 9}}, "upsert": True}
    assert world.service("updateOne", name, body)["upsertedId"] == "new"
    body["filter"] = {"k": 1}
    made = world.service("updateOne", name, body)["upsertedId"]
    assert HEX.match(made)
    assert world.service("findOne", name, {"filter": {"_id": made}})["doc"]["k"] == 1
    done = world.service("updateOne", name, {"filter": {"_id": 0}, "update": {"$set": {"n": 1}}})
    assert (done["matched"], done["modified"]) == (0, 0)


def test_replace(world, name):
    world.service("insertOne", name, {"doc": {"_id": 1, "a": 1}})
    body = {"filter": {"_id": 1}, "replacement": {"b": 2}}
    assert world.service("replaceOne", name, body) == {"matched": 1, "modified": 1, "upserted": 0}
    assert world.service("findOne", name)["doc"] == {"_id": 1, "b": 2}
    body = {"filter": {"_id": 5}, "replacement": {"b": 3}, "upsert": True}
    done = world.service("replaceOne", name, body)
    assert done == {"matched": 0, "modified": 0, "upserted": 1, "upserted_id": "5"}
    answer = world.call("replaceOne", name, {"filter": {}, "replacement": {"$set": {"a": 1}}},
                        service=True)  # fmt: skip
    assert answer.status == 400


def test_delete(world, name):
    world.service("insertMany", name, {"docs": [{"n": n} for n in (1, 1, 2)]})
    assert world.service("deleteOne", name, {"filter": {"n": 1}}) == {"deleted": 1}
    assert world.service("deleteMany", name, {"filter": {}}) == {"deleted": 2}
    assert world.service("deleteOne", name, {"filter": {"n": 1}}) == {"deleted": 0}


def test_find_one_and_update(world, name):
    world.service("insertMany", name, {"docs": [{"_id": n, "n": n, "k": "x"} for n in (1, 2)]})
    body = {"filter": {"k": "x"}, "update": {"$inc": {"n": 10}}, "sort": {"n": -1}}
    assert world.service("findOneAndUpdate", name, body)["doc"]["n"] == 12
    before = body | {"return_document": "before"}
    assert world.service("findOneAndUpdate", name, before)["doc"]["n"] == 12
    before["projection"] = {"n": 1}
    assert world.service("findOneAndUpdate", name, before)["doc"] == {"_id": 2, "n": 22}
    before["projection"] = {"k": 0}
    assert world.service("findOneAndUpdate", name, before)["doc"] == {"_id": 2, "n": 32}
    alias = body | {"return": "before", "projection": {"_id": 0, "n": 1}}
    assert world.service("findOneAndUpdate", name, alias)["doc"] == {"n": 42}
    after = body | {"projection": {"_id": 0, "n": 1}}
    assert world.service("findOneAndUpdate", name, after)["doc"] == {"n": 62}
    missing = {"filter": {"_id": 99}, "update": {"$set": {"n": 1}}}
    assert world.service("findOneAndUpdate", name, missing) == {"doc": None}
    assert world.service("findOneAndUpdate", name, missing | {"upsert": True}) == {"doc": None}
    assert world.service("findOne", name, {"filter": {"_id": 99}})["doc"]["n"] == 1


def test_find_one_and_delete(world, name):
    world.service("insertMany", name, {"docs": [{"_id": n, "n": n} for n in (1, 2, 3)]})
    body = {"filter": {}, "sort": {"n": -1}, "projection": {"n": 1, "_id": 0}}
    assert world.service("findOneAndDelete", name, body) == {"doc": {"n": 3}}
    assert world.service("findOneAndDelete", name, {"filter": {"n": 9}}) == {"doc": None}
    assert world.service("count", name) == {"count": 2}


def test_bulk_write(world, name):
    world.service("insertOne", name, {"doc": {"_id": 0, "n": 0}})
    ops = [
        {"op": "insertOne", "doc": {"_id": 1, "n": 1}},
        {"op": "insertOne", "doc": {"_id": 1, "n": 1}},
        {"op": "updateOne", "filter": {"_id": 1}, "update": {"$inc": {"n": 1}}},
        {"op": "updateMany", "filter": {}, "update": {"$set": {"x": 1}}},
        {"op": "updateOne", "filter": {"_id": "u"}, "update": {"$set": {"n": 1}}, "upsert": True},
        {"op": "replaceOne", "filter": {"_id": 0}, "replacement": {"n": 7}},
        {"op": "deleteOne", "filter": {"_id": 1}},
        {"op": "deleteMany", "filter": {"_id": {"$in": ["u", "v"]}}},
    ]
    done = world.service("bulkWrite", name, {"ops": ops})
    assert {k: v for k, v in done.items() if k != "errors"} == {
        "inserted": 1, "matched": 4, "modified": 4, "deleted": 2, "upserted": 1,
        "upserted_ids": {"4": "u"},
    }  # fmt: skip
    assert [(e["index"], e["code"]) for e in done["errors"]] == [(1, "duplicate_key")]
    assert world.service("find", name)["docs"] == [{"_id": 0, "n": 7}]
    stopped = world.service("bulkWrite", name, {"operations": ops, "ordered": True})
    assert (stopped["inserted"], len(stopped["errors"]), stopped["matched"]) == (1, 1, 0)
    answer = world.call("bulkWrite", name, {"ops": ops[:1]}, service=True)
    assert (answer.status, answer.code) == (409, "duplicate_key")


def test_limits_and_truncation(world, name):
    world.settings(max_docs=50)
    try:
        for start in (0, 50, 100):
            docs = [{"_id": start + n} for n in range(50)]
            world.service("insertMany", name, {"docs": docs})
        found = world.service("find", name, {"limit": 1000})
        assert (found["count"], found["truncated"]) == (50, True)
        found = world.service("find", name, {"limit": 20})
        assert (found["count"], found["truncated"]) == (20, False)
        found = world.service("aggregate", name, {"pipeline": [{"$match": {}}]})
        assert (found["count"], found["truncated"]) == (50, True)
        found = world.service("distinct", name, {"field": "_id"})
        assert (len(found["values"]), found["truncated"]) == (50, True)
        answer = world.call("insertMany", name, {"docs": [{} for _ in range(51)]}, service=True)
        assert (answer.status, answer.code) == (413, "too_many_docs")
        ops = [{"op": "insertOne", "doc": {}} for _ in range(51)]
        answer = world.call("bulkWrite", name, {"ops": ops}, service=True)
        assert (answer.status, answer.code) == (413, "too_many_docs")
    finally:
        world.settings()
    found = world.service("find", name)
    assert (found["count"], found["truncated"]) == (100, True)
    assert world.service("find", name, {"limit": 150})["truncated"] is False


def test_large_results_come_in_several_batches(world, name):
    doc = {"t": "x" * 900_000}
    for _ in range(2):
        world.service("insertMany", name, {"docs": [doc] * 10})
    found = world.service("find", name, {"limit": 20})
    assert found["count"] == 20


def test_error_codes(world, name):
    world.service("insertOne", name, {"doc": {"_id": 1}})
    answer = world.call("insertOne", name, {"doc": {"_id": 1}}, service=True)
    assert (answer.status, answer.code) == (409, "duplicate_key")
    answer = world.call("frobnicate", name, service=True)
    assert (answer.status, answer.code) == (404, "unknown_operation")
    answer = world.call("find", "_private", service=True)
    assert (answer.status, answer.code) == (400, "invalid_collection")
    answer = world.call("find", "system.users", service=True)
    assert (answer.status, answer.code) == (400, "invalid_collection")
    answer = world.call("find", name, raw=b"{nope", service=True)
    assert (answer.status, answer.code) == (400, "bad_request")
    answer = world.call("find", name, service=True, method="GET")
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    answer = world.call("find", name, headers={"apikey": "ich_pub_x"})
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    answer = world.call("find", name, uid="u", exp=1)
    assert (answer.status, answer.code) == (401, "token_expired")
    answer = world.call("find", f"{name}/more", service=True)
    assert answer.status == 404
    pipeline = [{"$merge": {"into": "other"}}]
    answer = world.call("aggregate", name, {"pipeline": pipeline}, service=True)
    assert (answer.status, answer.code) == (400, "stage_not_allowed")
    for op in ("updateOne", "deleteMany", "replaceOne"):
        answer = world.call(op, name, {"update": {"$set": {"a": 1}}, "replacement": {}}
                            if op != "deleteMany" else {}, service=True)  # fmt: skip
        assert (answer.status, answer.code) == (400, "bad_request"), op


def test_a_project_without_documents_says_so(world):
    world.make("tables", "postgres")
    answer = world.call("find", "things", slug="tables", service=True)
    assert (answer.status, answer.code) == (404, "mongo_not_enabled")


def test_a_project_of_documents_alone_has_no_tables(world):
    world.make("papers", "mongo")
    world.service("insertOne", "things", {"doc": {"_id": 1}}, slug="papers")
    assert world.service("count", "things", slug="papers") == {"count": 1}
    assert world.service("count", "things") == {"count": 0}


def test_slow_operations_end(world, name):
    world.service("insertMany", name, {"docs": [{"n": n} for n in range(1000)]})
    world.settings(operation_ms=20)
    try:
        add = {"$add": ["$$value", {"$multiply": ["$$this", "$n"]}]}
        inner = {"$reduce": {"input": {"$range": [0, 2000]}, "initialValue": 0, "in": add}}
        body = {"pipeline": [{"$addFields": {"x": inner}}]}
        answer = world.call("aggregate", name, body, service=True)
        assert (answer.status, answer.code) == (504, "timeout")
    finally:
        world.settings()


def test_the_projects_limits_hold(world, name):
    life = Lifecycle(world.projects)

    def limit(**own):
        asyncio.run(life.change("default", {"limits": own}, "test"))

    docs = [{"_id": n, "n": n} for n in range(1000)]
    world.service("insertMany", name, {"docs": docs})
    try:
        limit(max_documents=50, document_bytes=2_000)
        # Settings of the project's own may only be stricter.
        world.settings(max_docs=500, operation_ms=60_000)
        world.until(lambda: world.service("find", name, {"limit": 1000})["count"] == 50)
        answer = world.call("insertMany", name, {"docs": [{} for _ in range(51)]}, service=True)
        assert (answer.status, answer.code) == (413, "too_many_docs")
        answer = world.call("insertOne", name, {"doc": {"t": "x" * 2_000}}, service=True)
        assert answer.status == 413
        world.service("insertOne", name, {"doc": {"t": "x" * 1_900}})
        limit(max_documents=50, document_bytes=2_000, operation_ms=20)
        add = {"$add": ["$$value", {"$multiply": ["$$this", "$n"]}]}
        inner = {"$reduce": {"input": {"$range": [0, 2000]}, "initialValue": 0, "in": add}}
        body = {"pipeline": [{"$addFields": {"x": inner}}, {"$sort": {"x": 1}}]}
        world.until(lambda: world.call("aggregate", name, body, service=True).code == "timeout")
        answer = world.call("aggregate", name, body, service=True)
        assert (answer.status, answer.code) == (504, "timeout")
    finally:
        limit()
        world.settings()
    world.until(lambda: world.service("find", name, {"limit": 1000})["count"] == 1000)
