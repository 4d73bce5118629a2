"""Bodies of the document API: what is refused, what is sent, and what a policy adds."""

from __future__ import annotations

import json

import bson
import pytest
from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import Caps, apply, parse
from ichicore.rules import ALLOW, Context, Decision, FieldRule, compile_policy

HEX = "65f000000000000000000001"
ANNA = Context("authenticated", "anna")
CAPS = Caps()


def plan(operation, body, decision=ALLOW, caps=CAPS):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    (made,) = apply(parse(operation, text, caps), decision)
    return made


def refused(operation, body, decision=ALLOW, caps=CAPS):
    with pytest.raises(ApiError) as caught:
        plan(operation, body, decision, caps)
    return caught.value.status, caught.value.code


def decide(rules, operation, identity=ANNA, **options):
    policy = compile_policy({"collections": {"notes": rules}})
    return policy.decide(operation, "notes", identity, **options)


def test_an_identifier_matches_as_identifier_and_as_text():
    made = plan("find", {"filter": {"_id": HEX, "other": HEX}})
    assert bson.decode(made.filter) == {"_id": {"$in": [ObjectId(HEX), HEX]}, "other": HEX}
    made = plan("find", {"filter": {"$or": [{"_id": {"$ne": HEX}}, {"_id": {"$gt": HEX}}]}})
    assert bson.decode(made.filter) == {
        "$or": [{"_id": {"$nin": [ObjectId(HEX), HEX]}}, {"_id": {"$gt": ObjectId(HEX)}}]
    }


def test_the_policy_is_anded_and_cannot_be_overridden():
    decision = decide({"read": {"filter": {"by": "${auth.uid}"}}}, "find")
    made = plan("find", {"filter": {"by": "ben", "$and": [{"by": "cy"}]}}, decision)
    assert bson.decode(made.filter) == {
        "$and": [{"by": "ben", "$and": [{"by": "cy"}]}, {"by": {"$eq": "anna"}}]
    }
    piped = plan("aggregate", {"pipeline": [{"$match": {"a": 1}}]}, decision)
    assert [bson.decode(stage) for stage in piped.pipeline] == [
        {"$match": {"by": {"$eq": "anna"}}},
        {"$match": {"a": 1}},
        {"$limit": 1001},
    ]


def test_stamps_overwrite_inserts_and_refuse_conflicts():
    decision = decide(
        {"write": {"set": {"by": "${auth.uid}", "meta.by": "${auth.uid}"}}}, "insertOne"
    )
    made = plan("insertOne", {"doc": {"by": "ben", "meta": {"x": 1}}}, decision)
    (document,) = map(bson.decode, made.documents)
    assert made.ids == (str(document.pop("_id")),)
    assert document == {"by": "anna", "meta": {"x": 1, "by": "anna"}}
    for path in ("by", "by.x", "meta", "meta.by", "meta.by.z"):
        body = {"filter": {}, "update": {"$set": {path: 1}}}
        assert refused("updateOne", body, decision) == (403, "policy_denied")
    made = plan("updateOne", {"filter": {}, "update": {"$inc": {"n": 1}}}, decision)
    assert made.update is not None
    assert bson.decode(made.update) == {"$inc": {"n": 1}, "$set": {"by": "anna", "meta.by": "anna"}}


def test_denied_fields_are_neither_read_nor_probed():
    decision = Decision(True, read=FieldRule(deny=("secret", "items.cost")))
    for body in (
        {"filter": {"secret": 1}},
        {"filter": {"secret.x": 1}},
        {"filter": {"items": {"$elemMatch": {"cost": {"$gt": 1}}}}},
        {"filter": {"items.0.cost": 1}},
        {"filter": {"items": []}},
        {"filter": {"$or": [{"a": 1}, {"secret": {"$exists": True}}]}},
        {"filter": {"$expr": {"$eq": ["$a", 1]}}},
        {"filter": {}, "sort": {"secret": 1}},
        {"filter": {}, "projection": {"items": 1}},
    ):
        assert refused("find", body, decision) == (403, "policy_denied")
    assert refused("distinct", {"field": "secret"}, decision) == (403, "policy_denied")
    made = plan("find", {"filter": {"items.name": 1}}, decision)
    assert made.projection is not None
    assert bson.decode(made.projection) == {"secret": 0, "items.cost": 0}


def test_an_update_is_checked_afterwards_only_when_it_could_fail():
    decision = decide({"update": {"filter": {"by": "${auth.uid}"}}}, "updateOne")
    assert plan("updateOne", {"filter": {}, "update": {"$set": {"a": 1}}}, decision).check is None
    assert plan("updateOne", {"filter": {}, "update": {"$set": {"by": 1}}}, decision).check
    body = {"filter": {}, "replacement": {"by": "ben"}}
    assert refused("replaceOne", body, decision) == (403, "policy_denied")


@pytest.mark.parametrize(
    ("operation", "body", "code"),
    [
        ("find", b"[]", "bad_request"),
        ("find", b'{"filter":{"a":1,"a":2}}', "bad_request"),
        ("find", b'{"filter":{"a":NaN}}', "bad_request"),
        ("find", b'{"filter":' + b'{"a":' * 200 + b"1" + b"}" * 201, "bad_request"),
        ("find", {"filter": {"$where": "1"}}, "operator_not_allowed"),
        ("find", {"filter": {"a": {"$where": "1"}}}, "operator_not_allowed"),
        ("find", {"filter": {"a": {"b": {"$gt": 1}}}}, "operator_not_allowed"),
        ("find", {"filter": {"__proto__": 1}}, "bad_request"),
        ("find", {"filter": {"a": {"$regex": "(a+)+$"}}}, "bad_request"),
        ("find", {"filter": {"$expr": {"$function": {"body": "x"}}}}, "operator_not_allowed"),
        ("insertOne", {"doc": {"$set": 1}}, "operator_not_allowed"),
        ("insertOne", {"doc": {"a": {"b.c": 1}}}, "bad_request"),
        ("updateOne", {"filter": {}, "update": [{"$set": {"a": 1}}]}, "bad_request"),
        ("updateOne", {"filter": {}, "update": {"a": 1}}, "bad_request"),
        ("updateOne", {"update": {"$set": {"a": 1}}}, "bad_request"),
        ("aggregate", {"pipeline": [{"$out": "x"}]}, "stage_not_allowed"),
        ("aggregate", {"pipeline": [{"$lookup": {"from": "x"}}]}, "stage_not_allowed"),
        ("aggregate", {"pipeline": [{"$facet": {"a": [{"$merge": "x"}]}}]}, "stage_not_allowed"),
        ("nope", {}, "unknown_operation"),
    ],
)
def test_what_is_refused(operation, body, code):
    assert refused(operation, body)[1] == code
