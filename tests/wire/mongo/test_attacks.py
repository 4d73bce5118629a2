"""What an attacker may try against the document API, one test for each way."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from tests.timing import slowness
from tests.wire.mongo.conftest import ANN, BOB

OWN = {"owner": "${auth.uid}"}
FILTER_OPS = ("find", "findOne", "count", "updateOne", "updateMany", "deleteOne", "deleteMany",
              "findOneAndUpdate", "findOneAndDelete", "replaceOne")  # fmt: skip


@pytest.fixture(scope="module")
def guarded(world):
    world.rules({
        "docs": {"read": {"filter": OWN}, "insert": {"set": OWN},
                 "update": {"filter": OWN, "set": {"meta.by": "${auth.uid}"}},
                 "delete": {"filter": OWN}},
        "grades": {"read": {"read_fields": {"deny": ["items.secret", "secret"]}},
                   "write": {"write_fields": {"deny": ["items.secret", "secret"]},
                             "read_fields": {"deny": ["items.secret", "secret"]}}},
        "team": {"read": {"filter": {"members": "${auth.uid}"}}},
        "tenant": {"read": {"filter": {"org": "${auth.claims.org}"}}},
        "open": {"read": True, "write": True},
    })  # fmt: skip
    yield world
    world.settings()


@pytest.fixture
def docs(guarded):
    guarded.service("deleteMany", "docs", {"filter": {}})
    guarded.service("insertMany", "docs", {"docs": [
        {"_id": "a", "owner": ANN, "n": 1}, {"_id": "b", "owner": BOB, "n": 2},
        {"_id": "none", "n": 3}, {"_id": "null", "owner": None, "n": 4}]})  # fmt: skip
    return guarded


def body_for(op, filter):
    body = {"filter": filter}
    if "pdate" in op:
        body["update"] = {"$set": {"x": 1}}
    if op == "replaceOne":
        body["replacement"] = {"x": 1}
    return body


@pytest.mark.parametrize("code", [
    {"$where": "sleep(1000) || true"},
    {"$expr": {"$function": {"body": "function(){return true}", "args": [], "lang": "js"}}},
    {"$expr": {"$gt": [{"$accumulator": {"init": "function(){}"}}, 1]}},
    {"a": {"$where": "1"}},
    {"$and": [{"$or": [{"$nor": [{"$where": "1"}]}]}]},
    {"a": {"$elemMatch": {"$where": "1"}}},
    {"a": {"$not": {"$where": "1"}}},
    {"$expr": {"$cond": [True, {"$let": {"vars": {"x": 1}, "in": {
        "$function": {"body": "1", "args": [], "lang": "js"}}}}, False]}},
    {"$text": {"$search": "x"}}, {"$jsonSchema": {}}, {"$comment": "x"},
    {"a": {"$geoWithin": {"$center": [[0, 0], 1]}}}, {"$alwaysTrue": 1},
])  # fmt: skip
def test_code_and_unknown_operators_never_pass_in_a_filter(docs, code):
    for op in FILTER_OPS:
        answer = docs.call(op, "docs", body_for(op, code), uid=ANN)
        assert (answer.status, answer.code) in (
            (400, "operator_not_allowed"), (400, "bad_request")), (op, answer.text)  # fmt: skip
        answer = docs.call(op, "docs", body_for(op, code), service=True)
        assert answer.status == 400, op
    ops = [{"op": "updateOne", "filter": code, "update": {"$set": {"x": 1}}}]
    assert docs.call("bulkWrite", "docs", {"ops": ops}, uid=ANN).status == 400
    answer = docs.call("aggregate", "docs", {"pipeline": [{"$match": code}]}, uid=ANN)
    assert answer.status == 400


FUNCTION = {"$function": {"body": "function(){return 1}", "args": [], "lang": "js"}}


@pytest.mark.parametrize("pipeline", [
    [{"$out": "stolen"}], [{"$merge": {"into": "stolen"}}],
    [{"$lookup": {"from": "docs", "localField": "a", "foreignField": "b", "as": "c"}}],
    [{"$graphLookup": {"from": "docs", "startWith": "$a", "connectFromField": "a",
                       "connectToField": "b", "as": "c"}}],
    [{"$unionWith": "docs"}], [{"$unionWith": {"coll": "docs", "pipeline": []}}],
    [{"$currentOp": {}}], [{"$collStats": {}}], [{"$indexStats": {}}], [{"$listSessions": {}}],
    [{"$planCacheStats": {}}], [{"$changeStream": {}}], [{"$documents": [{"a": 1}]}],
    [{"$facet": {"a": [{"$lookup": {"from": "docs", "as": "x", "pipeline": []}}]}}],
    [{"$facet": {"a": [{"$facet": {"b": [{"$match": {}}]}}]}}],
    [{"$facet": {"a": [{"$out": "stolen"}]}}],
    [{"$project": {"x": FUNCTION}}], [{"$addFields": {"x": {"$add": [1, FUNCTION]}}}],
    [{"$group": {"_id": None, "x": {"$accumulator": {"init": "function(){}", "lang": "js"}}}}],
    [{"$match": {"$where": "1"}}], [{"$match": {"$expr": FUNCTION}}],
    [{"$redact": {"$cond": [FUNCTION, "$$KEEP", "$$PRUNE"]}}],
    [{"$replaceRoot": {"newRoot": FUNCTION}}], [{"$sample": {"size": 1}, "$out": "x"}],
    [{"$project": {"x": "$$USER_ROLES"}}], [{"$project": {"x": "$$SEARCH_META"}}],
    "not a list", [1], [{}], [{"$unset": ["$x"]}],
])  # fmt: skip
def test_stages_that_reach_elsewhere_or_run_code_are_refused(docs, pipeline):
    answer = docs.call("aggregate", "open", {"pipeline": pipeline}, uid=ANN)
    assert answer.status == 400, answer.text
    assert answer.code in ("stage_not_allowed", "operator_not_allowed", "bad_request")


def test_operators_cannot_be_smuggled_in_values(docs):
    """Where a value is expected, an operator is not one; where one is stored, it is a value."""
    for value in ({"$gt": ""}, {"$ne": None}, {"$regex": ".*"}):
        answer = docs.call("insertOne", "docs", {"doc": {"owner": value}}, uid=ANN)
        assert answer.status == 400
        answer = docs.call("updateOne", "docs", {"filter": {"_id": "a"},
                           "update": {"$set": {"x": value}}}, uid=ANN)  # fmt: skip
        assert answer.status == 400
    for op in ("$set", "$inc", "$push", "$pull"):
        body = {"filter": {"_id": "a"}, "update": {op: {"$owner": 1}}}
        assert docs.call("updateOne", "docs", body, uid=ANN).status == 400
    for text in ("${auth.uid}", "$owner", "$$ROOT"):
        docs.ok("updateOne", "docs", {"filter": {"_id": "a"}, "update": {"$set": {"x": text}}},
                uid=ANN)  # fmt: skip
        assert docs.ok("findOne", "docs", {"filter": {"x": text}}, uid=ANN)["doc"]["x"] == text


def test_a_users_id_that_looks_like_an_operator_is_a_value(guarded):
    """Claims come from a token; whatever stands in them is compared, never obeyed."""
    guarded.service("insertOne", "tenant", {"doc": {"_id": uuid.uuid4().hex, "org": "acme"}})
    for org in ({"$ne": None}, {"$exists": True}, {"$gt": ""}, "$org", "${auth.uid}",
                ["x"], {"$regex": "."}, {"$where": "1"}):  # fmt: skip
        answer = guarded.call("find", "tenant", uid=ANN, org=org)
        assert answer.status == 403 or answer.json["docs"] == [], org
    assert guarded.ok("find", "tenant", uid=ANN, org="acme")["count"] == 1
    for uid in ('{"$ne":null}', "$owner", "", "null", "*"):
        answer = guarded.call("find", "docs", uid=uid or None)
        assert answer.status == 403 or answer.json["docs"] == [], uid


def test_a_missing_uid_never_matches_missing_fields(docs):
    for op in ("find", "count", "findOne"):
        answer = docs.call(op, "docs")
        assert (answer.status, answer.code) == (403, "policy_denied")
    assert docs.call("deleteMany", "docs", {"filter": {}}).code == "policy_denied"
    answer = docs.call("find", "tenant", uid=ANN)  # no claim org
    assert answer.code == "policy_denied"
    assert docs.call("find", "tenant", uid=ANN, org=None).code == "policy_denied"


@pytest.mark.parametrize("doc", [
    {"__proto__": {"owner": ANN}}, {"a": {"__proto__": 1}}, {"a.b": 1}, {"$set": {"a": 1}},
    {"a": {"$b": 1}}, {"a": {"b.c": 1}}, {"a\u0000b": 1}, {"": {"$x": 1}},
])  # fmt: skip
def test_dangerous_names_of_fields_are_refused(docs, doc):
    assert docs.call("insertOne", "docs", {"doc": doc}, uid=ANN).status == 400
    body = {"filter": {"_id": "a"}, "replacement": doc}
    assert docs.call("replaceOne", "docs", body, uid=ANN).status == 400
    body = {"filter": {"_id": "a"}, "update": {"$set": {"x": doc}}}
    assert docs.call("updateOne", "docs", body, uid=ANN).status == 400


@pytest.mark.parametrize("update", [
    {"$set": {"meta": {}}}, {"$set": {"meta.by": BOB}}, {"$set": {"meta.by.x": 1}},
    {"$unset": {"meta": 1}}, {"$unset": {"meta.by": 1}}, {"$rename": {"meta": "x"}},
    {"$rename": {"n": "meta.by"}}, {"$push": {"meta.by": 1}}, {"$min": {"meta.by": 1}},
    {"$setOnInsert": {"meta.by": BOB}}, {"$currentDate": {"meta.by": True}},
])  # fmt: skip
def test_an_update_cannot_touch_what_the_rule_stamps(docs, update):
    for op in ("updateOne", "updateMany", "findOneAndUpdate"):
        answer = docs.call(op, "docs", {"filter": {"_id": "a"}, "update": update}, uid=ANN)
        assert (answer.status, answer.code) == (403, "policy_denied"), answer.text


def test_the_stamp_is_set_with_every_update(docs):
    docs.ok("updateOne", "docs", {"filter": {"_id": "a"}, "update": {"$inc": {"n": 1}}}, uid=ANN)
    found = docs.service("findOne", "docs", {"filter": {"_id": "a"}})["doc"]
    assert found["meta"] == {"by": ANN}


@pytest.mark.parametrize("update", [
    {"$set": {"items.0.secret": 1}}, {"$set": {"items.$.secret": 1}},
    {"$set": {"items.$[].secret": 1}}, {"$set": {"items.$[x].secret": 1}},
    {"$set": {"items.0": {"secret": 1}}}, {"$set": {"items": []}}, {"$unset": {"items": 1}},
    {"$push": {"items": {"secret": 5}}}, {"$pull": {"items": {"secret": 5}}},
    {"$pop": {"items": 1}}, {"$rename": {"items": "shown"}}, {"$rename": {"secret": "shown"}},
    {"$rename": {"name": "secret"}}, {"$rename": {"secret.x": "name"}},
    {"$addToSet": {"items": {"secret": 1}}}, {"$max": {"secret": 3}},
    {"$bit": {"secret": {"or": 1}}},
])  # fmt: skip
def test_positions_and_renames_do_not_pass_denied_fields(guarded, update):
    guarded.service("deleteMany", "grades", {"filter": {}})
    doc = {"_id": 1, "name": "x", "secret": 7, "items": [{"k": 1, "secret": 2}]}
    guarded.service("insertOne", "grades", {"doc": doc})
    body = {"filter": {"_id": 1, "items.k": 1}, "update": update}
    if "$[x]" in json.dumps(update):
        body["array_filters"] = [{"x.k": 1}]
    for op in ("updateOne", "updateMany", "findOneAndUpdate"):
        answer = guarded.call(op, "grades", body, uid=ANN)
        assert answer.status in (400, 403), (op, answer.text)
    assert guarded.service("findOne", "grades")["doc"] == doc


def test_array_filters_cannot_probe_denied_fields(guarded):
    guarded.service("deleteMany", "grades", {"filter": {}})
    doc = {"_id": 1, "items": [{"k": 1, "secret": 2}]}
    guarded.service("insertOne", "grades", {"doc": doc})
    body = {"filter": {"_id": 1}, "update": {"$set": {"items.$[x].k": 9}},
            "array_filters": [{"x.secret": 2}]}  # fmt: skip
    answer = guarded.call("updateOne", "grades", body, uid=ANN)
    assert answer.status in (400, 403), answer.text
    assert guarded.service("findOne", "grades")["doc"] == doc


def test_hidden_fields_cannot_be_probed(guarded):
    guarded.service("deleteMany", "grades", {"filter": {}})
    guarded.service("insertOne", "grades", {"doc": {"_id": 1, "secret": 7, "items": [
        {"k": 1, "secret": 2}]}})  # fmt: skip
    for filter in ({"secret": {"$exists": True}}, {"items": {"$elemMatch": {"secret": 2}}},
                   {"items.0.secret": 2}, {"items": {"$elemMatch": {"k": 1, "secret": {"$gt": 1}}}},
                   {"$nor": [{"secret": 8}]}, {"items.secret": {"$in": [2]}},
                   {"secret": {"$regex": "7"}}, {"secret": {"$not": {"$eq": 8}}},
                   {"items": {"$all": [{"$elemMatch": {"secret": 2}}]}},
                   {"items": [{"k": 1, "secret": 2}]},
                   {"items.0": {"k": 1, "secret": 2}}):  # fmt: skip
        for op in ("find", "count", "deleteOne", "updateOne", "findOneAndDelete"):
            answer = guarded.call(op, "grades", body_for(op, filter), uid=ANN)
            assert answer.status == 403, (op, filter, answer.text)
    for sort in ({"secret": 1}, {"items.secret": -1}, {"items.0.secret": 1}, {"items": 1}):
        assert guarded.call("find", "grades", {"sort": sort}, uid=ANN).status == 403
    for projection in ({"x": "$secret"}, {"secret": {"$slice": 1}}, {"items": {"$elemMatch": {
            "secret": 2}}}, {"x": {"$add": ["$secret", 1]}}):  # fmt: skip
        answer = guarded.call("find", "grades", {"projection": projection}, uid=ANN)
        assert answer.status in (400, 403) or "7" not in answer.text, answer.text
    body = {"filter": {"_id": 1}, "update": {"$set": {"n": 1}}, "return_document": "before"}
    found = guarded.ok("findOneAndUpdate", "grades", body, uid=ANN)
    assert found["doc"] == {"_id": 1, "items": [{"k": 1}]}
    assert "secret" not in guarded.call("findOneAndDelete", "grades", {"filter": {}}, uid=ANN).text


def test_a_regular_expression_cannot_hang_the_server(docs):
    docs.service("insertOne", "open", {"doc": {"_id": uuid.uuid4().hex, "t": "a" * 40 + "!"}})
    for pattern in ("(a+)+$", "(a|a)*$", "(a|aa)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 100_000,
                    "(.*)*x", "(?:a{0,999}){999}$"):  # fmt: skip
        slow, began = slowness(), time.monotonic()
        answer = docs.call("find", "open", {"filter": {"t": {"$regex": pattern}}}, uid=ANN)
        assert answer.status in (200, 400, 504), answer.text
        assert time.monotonic() - began < 20 * slow, pattern
        pipeline = [{"$project": {"x": {"$regexMatch": {"input": "$t", "regex": pattern}}}}]
        answer = docs.call("aggregate", "open", {"pipeline": pipeline}, uid=ANN)
        assert answer.status in (200, 400, 504), answer.text
        assert time.monotonic() - began < 30 * slow, pattern
    assert docs.call("count", "open", uid=ANN).status == 200


def test_deep_nesting_is_refused(docs):
    for depth in (200, 5_000, 100_000):
        for text in (b'{"a":' * depth + b"1" + b"}" * depth, b"[" * depth + b"]" * depth):
            for member, op in ((b'{"filter":', "find"), (b'{"doc":', "insertOne"),
                               (b'{"pipeline":[{"$match":', "aggregate")):  # fmt: skip
                end = b"}]}" if op == "aggregate" else b"}"
                answer = docs.call(op, "open", raw=member + text + end, uid=ANN)
                assert answer.status == 400, (depth, op, answer.status)
    ands = {"a": 1}
    for _ in range(150):
        ands = {"$and": [ands]}
    assert docs.call("find", "open", {"filter": ands}, uid=ANN).status == 400


def test_large_bodies_are_refused(docs):
    from server.base.limits import PRO

    length = {"content-length": str(PRO.document_body + 1)}
    answer = docs.call("insertOne", "open", raw=b"", headers=length, uid=ANN)
    assert (answer.status, answer.code) == (413, "payload_too_large")
    docs.client.close()  # what was announced does not come


def test_a_document_above_the_tiers_size_is_refused(world):
    world.make("small", "mongo", "free")
    doc = {"t": "x" * (1 << 20)}
    answer = world.call("insertOne", "open", {"doc": doc}, slug="small", service=True)
    assert answer.status == 413
    doc = {"_id": 1, "t": "x" * 900_000}
    world.ok("insertOne", "open", {"doc": doc}, slug="small", service=True)


@pytest.mark.parametrize("raw", [
    b'{"filter":{"owner":"a","owner":"b"}}', b'{"filter":{},"filter":{"n":1}}',
    b'{"filter":{"n":NaN}}', b'{"filter":{"n":Infinity}}', b'{"filter":{"n":1e999}}',
    b'{"filter":{"n":123456789012345678901234567890}}', b'{"filter":{"a":{"$in":[NaN]}}}',
    b"", b"null", b"[]", b'"x"', b"1", b"{", b'{"filter":}', b"\xff\xfe", b'{"filter":"x"}',
    b'{"filter":[]}', b'{"filter":{},"limit":-1}', b'{"filter":{},"limit":1.5}',
    b'{"filter":{},"skip":"1"}', b'{"filter":{},"sort":{"a":2}}', b'{"filter":{},"sort":"a"}',
    b'{"filter":{},"projection":{"a":1,"b":0}}', b'{"filter":{},"unknown":1}',
    b'{"filter":{"_id":{"$oid":"zz"}}}', b'{"filter":{"d":{"$date":"never"}}}',
    b'{"filter":{"a":{"$in":1}}}', b'{"filter":{"$and":{}}}', b'{"filter":{"$or":[]}}',
    b'{"filter":{"a":{"$size":-1}}}', b'{"filter":{"a":{"$type":"nope"}}}',
    b'{"filter":{"a":{"$mod":[0,1]}}}', b'{"filter":{"a":"\xed\xa0\x80"}}',
    b'{"filter":{"a":{"$regex":"("}}}', b'{"filter":{"a":{"$regex":"a","$options":"q"}}}',
])  # fmt: skip
def test_malformed_bodies_are_coded_refusals(docs, raw):
    answer = docs.call("find", "open", raw=raw, uid=ANN)
    assert answer.status == 400, answer.text
    assert answer.json["code"]
    assert isinstance(answer.json["detail"], str)


@pytest.mark.parametrize("name", [
    "_mongo_policy", "system.users", "system.js", "$cmd", "a$b", "%24cmd", "a%00b", "..", "a%20b",
    "a" * 121, "1abc", "-a", ".a", "%F0%9F%92%A9",
])  # fmt: skip
def test_reserved_and_odd_collections_are_refused(docs, name):
    answer = docs.call("find", name, service=True)
    assert answer.status in (400, 404), answer.text


def test_another_projects_documents_are_out_of_reach(world, docs):
    world.make("neighbour", "mongo")
    world.service("insertOne", "open", {"doc": {"_id": "theirs"}}, slug="neighbour")
    key = world.records["neighbour"].service_key
    answer = docs.call("find", "open", headers={"apikey": key})
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    token = world.token(ANN, "neighbour")
    answer = docs.call("find", "open", headers={"authorization": f"Bearer {token}"})
    assert answer.status == 401
    found = docs.service("find", "open", {"filter": {"_id": "theirs"}})
    assert found["docs"] == []
    own = world.database()
    with own.client, pytest.raises(Exception, match="not authorized"):
        own.client[f"ichi_{world.records['neighbour'].id}"].open.find_one()


def test_errors_name_nothing_of_the_server(docs):
    docs.service("deleteMany", "open", {"filter": {}})
    docs.service("insertOne", "open", {"doc": {"_id": "dup"}})
    id = docs.records["default"].id
    for op, body in (("insertOne", {"doc": {"_id": "dup"}}),
                     ("updateOne", {"filter": {"_id": "dup"}, "update": {"$set": {"_id": 2}}}),
                     ("aggregate", {"pipeline": [{"$project": {"x": {"$divide": [1, 0]}}}]}),
                     ("updateOne", {"filter": {"_id": "dup"}, "update": {"$inc": {"_id": 1}}}),
                     ("find", {"filter": {"a": {"$mod": [1]}}})):  # fmt: skip
        answer = docs.call(op, "open", body, uid=ANN)
        assert 400 <= answer.status < 500, (op, answer.text)
        for word in (id, "ichi_", "secantus", "Traceback", "127.0.0.1"):
            assert word not in answer.text, answer.text
