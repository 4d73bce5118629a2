"""What attackers try at the document API's core, each by its name."""

from __future__ import annotations

import json
import time
from typing import Any

import bson
import pytest
from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import Caps, apply, parse, reply
from ichicore.mongo.grammar import EXPRESSIONS, STAGES
from ichicore.rules import (
    ALLOW,
    Context,
    Decision,
    FieldRule,
    RuleError,
    compile_match,
    decision_of,
)
from ichicore.rules.patterns import PatternError, check_pattern, compile_pattern
from ichicore.rules.policy import compile_policy

HEX = "65f000000000000000000001"
ANNA = Context("authenticated", "anna")
BEN = Context("authenticated", "ben", claims={"team": "red"})
NOBODY = Context()
CAPS = Caps()
SERVICE = Caps(privileged=True)
CODE = ({"body": "function() {}", "args": [], "lang": "js"}, "sleep(1000)")


def plan(operation: str, body: Any, decision: Any = ALLOW, caps: Caps = CAPS) -> Any:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    (made,) = apply(parse(operation, text, caps), decision)
    return made


def refused(operation: str, body: Any, decision: Any = ALLOW, caps: Caps = CAPS) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        plan(operation, body, decision, caps)
    return caught.value.status, caught.value.code


def decide(rules: Any, operation: str, identity: Context = ANNA, **options: Any) -> Decision:
    return compile_policy({"collections": {"notes": rules}}).decide(
        operation, "notes", identity, **options
    )


DENIED = (403, "policy_denied")
OPERATOR = (400, "operator_not_allowed")


@pytest.mark.parametrize(
    "value",
    [
        {"$gt": ""},
        {"a": {"$ne": None}},
        [{"$where": "1"}],
        {"a": [{"b": {"$in": [1]}}]},
        {"$oid": HEX, "$gt": ""},
        {"$code": "x"},
        {"$regularExpression": {"pattern": "a", "options": ""}},
        {"$dbPointer": {}},
    ],
    ids=str,
)
def test_operator_smuggling_in_values(value):
    for operation, body in (
        ("insertOne", {"doc": {"x": value}}),
        ("insertMany", {"docs": [{}, {"x": [value]}]}),
        ("replaceOne", {"filter": {}, "replacement": {"x": value}}),
        ("updateOne", {"filter": {}, "update": {"$set": {"x": value}}}),
        ("updateOne", {"filter": {}, "update": {"$push": {"x": {"$each": [value]}}}}),
        ("find", {"filter": {"x": {"$eq": value}}}),
        ("find", {"filter": {"x": {"$in": [value]}}}),
        ("find", {"filter": {"x": {"y": value}}}),
        ("find", {"filter": {"$or": [{"x": {"$all": [value]}}]}}),
    ):
        assert refused(operation, body) == OPERATOR


def test_operator_smuggling_in_the_values_of_a_token():
    rule = {"read": {"filter": {"team": "${auth.claims.team}"}}}
    for hostile in ({"$ne": None}, {"a": {"$gt": ""}}, [{"$where": "1"}], {"a.b": 1}):
        identity = Context("authenticated", "eve", claims={"team": hostile})
        decision = decide(rule, "find", identity)
        assert not decision.allow
    decision = decide(rule, "find", Context(claims={"team": "$$ROOT"}))
    assert bson.decode(plan("find", {}, decision).filter) == {"team": {"$eq": "$$ROOT"}}
    spelled = decide({"read": {"filter": {"a": {"$regex": "^${auth.claims.team}$"}}}}, "find",
                     Context(claims={"team": ".*"}))  # fmt: skip
    assert spelled.filter is not None
    assert spelled.filter.test({"a": ".*"})
    assert not spelled.filter.test({"a": "anything"})


@pytest.mark.parametrize("code", CODE, ids=["object", "text"])
@pytest.mark.parametrize("name", ["$where", "$function", "$accumulator", "$eval", "$jsonSchema"])
def test_code_at_any_depth(name, code):
    call = {name: code}
    bodies = [
        call,
        {"$and": [{"$or": [{"$nor": [call]}]}]},
        {"a": {"$not": call}},
        {"a": {"$elemMatch": call}},
        {"a": {"$all": [{"$elemMatch": {"b": call}}]}},
        {"$expr": call},
        {"$expr": {"$and": [True, {"$cond": [{"$eq": [call, 1]}, 1, 2]}]}},
        {"$expr": {"$let": {"vars": {"x": call}, "in": "$$x"}}},
        {"$expr": {"$reduce": {"input": "$a", "initialValue": 0, "in": call}}},
    ]
    for filter_ in bodies:
        for caps in (CAPS, SERVICE):
            assert refused("find", {"filter": filter_}, ALLOW, caps) == OPERATOR
            assert (
                refused("aggregate", {"pipeline": [{"$match": filter_}]}, ALLOW, caps) == OPERATOR
            )
            facet = [{"$facet": {"x": [{"$match": filter_}]}}]
            assert refused("aggregate", {"pipeline": facet}, ALLOW, caps) == OPERATOR
    for stage in (
        {"$group": {"_id": None, "x": call}},
        {"$group": {"_id": call}},
        {"$project": {"x": {"y": call}}},
        {"$addFields": {"x": [call]}},
        {"$replaceRoot": {"newRoot": {"$mergeObjects": ["$a", call]}}},
        {"$bucket": {"groupBy": "$a", "boundaries": [1], "output": {"n": call}}},
        {"$redact": {"$cond": {"if": call, "then": "$$KEEP", "else": "$$PRUNE"}}},
    ):
        assert refused("aggregate", {"pipeline": [stage]}) == OPERATOR
    assert refused("updateOne", {"filter": {}, "update": {"$pull": {"a": call}}}) == OPERATOR
    body = {"filter": {}, "update": {"$set": {"a.$[e]": 1}}, "array_filters": [{"e": call}]}
    assert refused("updateOne", body) == OPERATOR
    assert name not in EXPRESSIONS


def test_other_collections_are_out_of_reach():
    for stage in (
        {"$lookup": {"from": "other", "as": "x", "localField": "a", "foreignField": "b"}},
        {"$unionWith": "other"},
        {"$graphLookup": {"from": "other"}},
        {"$out": "other"},
        {"$merge": {"into": "other"}},
        {"$currentOp": {}},
        {"$collStats": {}},
        {"$documents": [{}]},
    ):
        for pipeline in ([stage], [{"$match": {}}, stage], [{"$facet": {"x": [stage]}}]):
            assert refused("aggregate", {"pipeline": pipeline}) == (400, "stage_not_allowed")
    for stage in (
        {"$lookup": {"from": "other", "as": "x", "pipeline": [{"$out": "y"}]}},
        {"$unionWith": {"coll": "other", "pipeline": [{"$merge": "y"}]}},
        {"$facet": {"x": [{"$facet": {"y": []}}]}},
        {"$graphLookup": {"from": "other"}},
    ):
        assert refused("aggregate", {"pipeline": [stage]}, ALLOW, SERVICE) == (
            400,
            "stage_not_allowed",
        )
    for name in ("system.users", "_policy", "a$b", "other.$cmd"):
        stage = {"$unionWith": name}
        found = refused("aggregate", {"pipeline": [stage]}, ALLOW, SERVICE)
        assert found == (400, "invalid_collection")
    for text in ("$$USER_ROLES", "$$CLUSTER_TIME", "$$SEARCH_META.x"):
        assert refused("aggregate", {"pipeline": [{"$set": {"x": text}}]}) == OPERATOR
    assert not STAGES & {"$out", "$merge", "$lookup", "$unionWith"}


@pytest.mark.parametrize("name", ["__proto__", "a.b", "$set", "$", "a\0b", "a."])
def test_names_of_fields_that_mean_something_else(name):
    for operation, body in (
        ("insertOne", {"doc": {name: 1}}),
        ("insertOne", {"doc": {"a": {"b": [{name: 1}]}}}),
        ("replaceOne", {"filter": {}, "replacement": {"a": {name: 1}}}),
        ("updateOne", {"filter": {}, "update": {"$set": {"a": {name: 1}}}}),
        ("updateOne", {"filter": {}, "update": {"$push": {"a": {name: 1}}}}),
        ("find", {"filter": {"a": {"$eq": {name: 1}}}}),
    ):
        assert refused(operation, body)[0] == 400
    if name != "a.b":
        for operation, body in (
            ("find", {"filter": {name: 1}}),
            ("find", {"projection": {name: 1}}),
            ("find", {"sort": {name: 1}}),
            ("distinct", {"field": name}),
            ("updateOne", {"filter": {}, "update": {"$set": {name: 1}}}),
            ("updateOne", {"filter": {}, "update": {"$set": {f"x.{name}.y": 1}}})
            if name != "$" else ("find", {"sort": {"x.$": 1}}),
            ("updateOne", {"filter": {}, "update": {"$rename": {"a": name}}}),
            ("aggregate", {"pipeline": [{"$unwind": f"$x.{name}"}]}),
            ("aggregate", {"pipeline": [{"$project": {name: 1}}]}),
        ):  # fmt: skip
            assert refused(operation, body)[0] == 400
    with pytest.raises(RuleError):
        compile_match({"a": {"$eq": {name: 1}}})


def test_text_identifiers_of_24_hexadecimal_digits():
    made = plan("insertOne", {"doc": {"_id": HEX}})
    assert bson.decode(made.documents[0]) == {"_id": HEX}
    assert made.ids == (HEX,)
    found = plan("findOne", {"filter": {"_id": HEX}})
    assert bson.decode(found.filter) == {"_id": {"$in": [ObjectId(HEX), HEX]}}
    found = plan("findOne", {"filter": {"_id": {"$in": [HEX, 5]}, "a._id": HEX}})
    assert bson.decode(found.filter) == {"_id": {"$in": [ObjectId(HEX), HEX, 5]}, "a._id": HEX}
    made = plan("updateOne", {"filter": {"_id": HEX}, "update": {"$set": {"a": 1}}, "upsert": True})
    assert bson.decode(made.filter) == {"_id": ObjectId(HEX)}
    rule = compile_match({"_id": "${auth.claims.doc}"})
    bound = rule.bind(Context(claims={"doc": HEX}))
    assert bound is not None
    assert bound.test({"_id": ObjectId(HEX)})
    assert bound.test({"_id": HEX})
    assert not bound.test({"_id": ObjectId()})
    assert reply.to_json(bson.encode({"_id": ObjectId(HEX)})) == b'{"_id":"%s"}' % HEX.encode()


def test_path_prefix_conflicts_between_set_and_update():
    rules = {"write": {"set": {"owner.id": "${auth.uid}"}}}
    decision = decide(rules, "updateOne")
    for operator, value in (
        ("$set", 1), ("$unset", ""), ("$inc", 1), ("$push", 1), ("$min", 1), ("$currentDate", True),
        ("$setOnInsert", 1), ("$bit", {"or": 1}), ("$pullAll", []), ("$rename", "zz"),
    ):  # fmt: skip
        for path in ("owner", "owner.id", "owner.id.x", "owner.0.id", "owner.$[].id"):
            body = {"filter": {}, "update": {operator: {path: value}}}
            assert refused("updateOne", body, decision) == DENIED
    assert refused(
        "updateOne", {"filter": {}, "update": {"$rename": {"a": "owner.id"}}}, decision
    ) == (DENIED)
    assert refused(
        "updateOne", {"filter": {}, "update": {"$rename": {"a": "owner"}}}, decision
    ) == (DENIED)
    made = plan("updateOne", {"filter": {}, "update": {"$set": {"owner_name": 1}}}, decision)
    assert bson.decode(made.update) == {"$set": {"owner_name": 1, "owner.id": "anna"}}
    inserted = plan("insertOne", {"doc": {"owner": "ben"}}, decide(rules, "insertOne"))
    assert bson.decode(inserted.documents[0])["owner"] == {"id": "anna"}


HIDING = Decision(
    True,
    read=FieldRule(deny=("salary", "items.cost", "profile.ssn")),
    write=FieldRule(deny=("role", "items.price", "profile.level")),
)


@pytest.mark.parametrize(
    "path",
    ["items.$.price", "items.$[].price", "items.$[e].price", "items.0.price", "items", "items.$",
     "items.$[]", "items.$[e]", "items.0", "items.$[].price.x", "role", "profile", "role.x"],
)  # fmt: skip
def test_positions_and_array_filters_past_denied_fields(path):
    body: dict[str, Any] = {"filter": {}, "update": {"$set": {path: 1}}}
    if "[e]" in path:
        body["array_filters"] = [{"e.name": "x"}]
    assert refused("updateOne", body, HIDING) == DENIED


def test_array_filters_do_not_probe_hidden_fields():
    body = {
        "filter": {},
        "update": {"$set": {"items.$[e].seen": True}},
        "array_filters": [{"e.cost": {"$gt": 100}}],
    }
    assert refused("updateOne", body, HIDING) == DENIED
    body["array_filters"] = [{"e.name": "x"}]
    assert plan("updateOne", body, HIDING).array_filters


@pytest.mark.parametrize(
    "update",
    [
        {"$pull": {"items": {"cost": {"$gt": 5}}}},
        {"$pull": {"salary": {"$gt": 5}}},
        {"$min": {"salary": 5}},
        {"$max": {"profile.ssn": 5}},
        {"$addToSet": {"salary": 5}},
        {"$pullAll": {"salary": [5]}},
        {"$bit": {"salary": {"and": 1}}},
        {"$mul": {"salary": 0}},
        {"$push": {"items": {"$each": [], "$sort": {"cost": 1}}}},
    ],
    ids=str,
)
def test_updates_do_not_tell_of_hidden_fields(update):
    decision = Decision(True, read=HIDING.read)
    assert refused("updateOne", {"filter": {}, "update": update}, decision) == DENIED


def test_rename_into_and_out_of_denied_fields():
    for old, new in (
        ("salary", "public"), ("profile", "public"), ("profile.ssn", "x"), ("items", "public"),
        ("public", "role"), ("public", "profile"), ("public", "profile.level"), ("role", "public"),
        ("role", "salary"),
    ):  # fmt: skip
        assert refused("updateOne", {"filter": {}, "update": {"$rename": {old: new}}}, HIDING) == (
            DENIED
        )


def test_hidden_fields_stay_hidden_while_writing():
    """The rule for writing names no hidden fields: those of the rule for reading hold."""
    rules = {
        "read": {"read_fields": {"deny": ["salary"]}},
        "write": True,
    }
    for operation, body in (
        ("updateOne", {"filter": {"salary": {"$gt": 5}}, "update": {"$set": {"a": 1}}}),
        ("deleteOne", {"filter": {"salary": 5}}),
        ("findOneAndUpdate", {"filter": {}, "sort": {"salary": 1}, "update": {"$set": {"a": 1}}}),
        ("findOneAndDelete", {"filter": {}, "projection": {"salary": 1}}),
    ):
        assert refused(operation, body, decide(rules, operation)) == DENIED
    partly = {"find": {"read_fields": {"deny": ["salary"]}}, "update": True}
    body = {"filter": {"salary": 5}, "update": {"$set": {"a": 1}}}
    assert refused("updateOne", body, decide(partly, "updateOne")) == DENIED
    made = plan("findOneAndDelete", {"filter": {}}, decide(rules, "findOneAndDelete"))
    answer = reply.one_reply(bson.encode({"a": 1, "salary": 5}), made.read)
    assert answer == b'{"doc":{"a":1}}'


def test_hidden_fields_in_pipelines():
    decision = decide({"read": {"read_fields": {"deny": ["salary", "items.cost"]}}}, "aggregate")
    made = plan("aggregate", {"pipeline": [{"$set": {"x": "$salary", "y": "$$ROOT"}}]}, decision)
    first = bson.decode(made.pipeline[0])
    assert first == {"$project": {"salary": 0, "items.cost": 0}}


def test_rules_for_nobody_do_not_match_missing_fields():
    rule = {"filter": {"user_id": "${auth.uid}"}, "set": {"user_id": "${auth.uid}"}}
    for operation in ("find", "updateOne", "deleteMany"):
        assert not decide({operation: rule}, operation, NOBODY).allow
    assert not decide({"insert": {"set": {"by": "${auth.uid}"}}}, "insertOne", NOBODY).allow
    check = {"insert": {"check": {"by": "${auth.uid}"}}}
    assert not decide(check, "insertOne", NOBODY).allow
    for expression in (
        {"user_id": "${auth.uid}"},
        {"user_id": {"$in": ["${auth.uid}"]}},
        {"user_id": {"$ne": "${auth.uid}"}},
        {"$or": [{"public": True}, {"user_id": "${auth.uid}"}]},
        {"$nor": [{"user_id": "${auth.email}"}]},
        {"team": {"$in": "${auth.claims.teams}"}},
    ):
        for nobody in (NOBODY, Context(uid="", email="", claims={"teams": None})):
            assert compile_match(expression).bind(nobody) is None
            assert not compile_match(expression).test({"public": True}, nobody)
            assert not compile_match(expression).test({}, nobody)


EVIL = [
    "(a+)+$", "(a*)*b", "(a|a)*b", "(a|aa)+$", "(.*a){20}", "([a-z]+)*=", "(?:a?){50}a{50}",
    "a?" * 40 + "a" * 40, "(a|b|ab)" * 12, "a{0,200}" * 5, ".*" * 8 + "x", "(?=a+)+b", r"(a+)\1+",
    "((a{1,9}){1,9}){1,9}", "x" * 5000, "a{1,100000}", "(?P<n>a)(?P=n)", "(?<=a)b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EVIL)
def test_regular_expressions_that_deny_service(pattern):
    with pytest.raises(PatternError):
        check_pattern(pattern)
    assert refused("find", {"filter": {"a": {"$regex": pattern}}}) == (400, "bad_request")
    match = {"$regexMatch": {"input": "$a", "regex": pattern}}
    assert refused("aggregate", {"pipeline": [{"$set": {"x": match}}]}) == (400, "bad_request")
    with pytest.raises(RuleError):
        compile_match({"a": {"$regex": pattern}})


@pytest.mark.parametrize(
    "pattern", [".*a.*b.*c$", "a*b*c*x", r"(\w+)@(\w+)\.(\w+)$", "^(a|b|c)+?x"]
)
def test_an_evaluated_pattern_takes_linear_time(pattern):
    search = compile_pattern(pattern)
    text = "a" * 300_000
    began = time.process_time()
    assert not search(text)
    assert time.process_time() - began < 2


def test_patterns_from_documents_are_refused():
    for pattern in ("$pattern", "$$ROOT.pattern"):
        match = {"$regexMatch": {"input": "$a", "regex": pattern}}
        assert refused("aggregate", {"pipeline": [{"$set": {"x": match}}]})[0] == 400
    match = {"$regexMatch": {"input": "$a", "regex": {"$concat": ["(a+", ")+$"]}}}
    assert refused("aggregate", {"pipeline": [{"$set": {"x": match}}]})[0] == 400


def nested(text: str, depth: int) -> bytes:
    opened, closed = text.split("…")
    return (opened * depth + "1" + closed * depth).encode()


@pytest.mark.parametrize("depth", [150, 1000, 100_000])
def test_deep_nesting(depth):
    inner = nested('{"a":…}', depth), nested("[…]", depth), nested('{"$not":…}', depth)
    for value in inner:
        assert refused("insertOne", b'{"doc":{"x":' + value + b"}}")[0] == 400
        assert refused("find", b'{"filter":{"x":' + value + b"}}")[0] == 400
        assert refused("aggregate", b'{"pipeline":[{"$set":{"x":' + value + b"}}]}")[0] == 400
    clauses = nested('{"$and":[…]}', depth)
    assert refused("find", b'{"filter":' + clauses + b"}")[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"filter":{"by":"anna","by":"ben"}}',
        b'{"filter":{},"filter":{"a":1}}',
        b'{"filter":{"a":{"$eq":1,"$eq":2}}}',
        b'{"filter":{"a":1,"\\u0061":2}}',
        b'{"filter":{' + b",".join(b'"k%d":1' % n for n in range(50)) + b',"k7":2}}',
    ],
    ids=["field", "member", "operator", "escaped", "many"],
)
def test_duplicate_names(body):
    assert refused("find", body) == (400, "bad_request")


@pytest.mark.parametrize(
    "number",
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9223372036854775808", b"01", b"+1",
     b"1.", b".5", b"0x10", b"1e", b"--1", b"1" * 400],
)  # fmt: skip
def test_numbers_that_are_none(number):
    assert refused("insertOne", b'{"doc":{"a":' + number + b"}}") == (400, "bad_request")
    assert refused("find", b'{"filter":{"a":{"$gt":' + number + b"}}}") == (400, "bad_request")


@pytest.mark.parametrize(
    "text",
    [b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\x01"',
     b'"\\x41"', b'"a', b"'a'", b'"\\u12"', b'"\xf5\x80\x80\x80"'],
)  # fmt: skip
def test_texts_that_are_none(text):
    assert refused("insertOne", b'{"doc":{"a":' + text + b"}}") == (400, "bad_request")


def test_large_bodies():
    caps = Caps(max_docs=10_000, max_doc_bytes=16 << 20)
    text = b'"' + b"x" * (15 << 20) + b'"'
    made = plan("insertOne", b'{"doc":{"a":' + text + b"}}", ALLOW, caps)
    assert len(made.documents[0]) > 15 << 20
    assert refused("insertOne", b'{"doc":{"a":' + text + b"}}") == (413, "doc_too_large")
    many = b"[" + b"1," * 2_500_000 + b"1]"
    assert refused("insertOne", b'{"doc":{"a":' + many + b"}}", ALLOW, caps) == (
        413,
        "payload_too_large",
    )
    docs = {"docs": [{} for _ in range(1001)]}
    assert refused("insertMany", docs) == (413, "too_many_docs")
    ops = {"ops": [{"op": "deleteOne", "filter": {}} for _ in range(1001)]}
    with pytest.raises(ApiError) as caught:
        parse("bulkWrite", json.dumps(ops).encode(), CAPS)
    assert (caught.value.status, caught.value.code) == (413, "too_many_docs")


def test_dates_beyond_the_calendar():
    body = {"doc": {"at": {"$date": {"$numberLong": "9223372036854775807"}}, "by": "x"}}
    rules = {"insert": {"set": {"meta.by": "${auth.uid}"}, "check": {"at": {"$exists": True}}}}
    made = plan("insertOne", body, decide(rules, "insertOne"))
    assert b'"at":"+292278994-08-17T07:12:55.807Z"' in reply.to_json(made.documents[0])


def test_an_upsert_cannot_insert_for_another():
    rules = {"write": {"filter": {"by": "${auth.uid}"}, "set": {"by": "${auth.uid}"}}}
    decision = decide(rules, "updateOne", upsert=True)
    body = {"filter": {"by": "ben", "k": 1}, "update": {"$set": {"a": 1}}, "upsert": True}
    assert refused("updateOne", body, decision) == DENIED
    body["filter"] = {"by": "anna", "k": 1}
    made = plan("updateOne", body, decision)
    assert bson.decode(made.filter) == {"k": 1, "by": {"$eq": "anna"}}
    assert not decide({"update": True}, "updateOne", upsert=True).allow
    limited = {"write": {"write_fields": {"deny": ["role"]}}}
    body = {"filter": {"role": "admin"}, "update": {"$set": {"a": 1}}, "upsert": True}
    assert refused("updateOne", body, decide(limited, "updateOne", upsert=True)) == DENIED


def test_an_upsert_stays_within_what_a_function_allows():
    """A policy function gives no decision on the insertion: its filter holds for that as well."""
    decision = decision_of({"allow": True, "merge_filter": {"by": "anna"}})
    body = {"filter": {"k": 1}, "update": {"$set": {"by": "ben"}}, "upsert": True}
    made = plan("updateOne", body, decision)
    assert made.check is not None
    assert made.insert_check is not None
    assert not made.insert_check.test({"by": "ben"})
    body["update"] = {"$set": {"a": 1}}
    made = plan("updateOne", body, decision)
    assert bson.decode(made.update) == {"$set": {"a": 1}, "$setOnInsert": {"by": "anna"}}
    assert made.check is None
    assert made.insert_check is None
    decision = decision_of({"allow": True, "merge_filter": {"by": "anna", "n": {"$gt": 5}}})
    assert plan("updateOne", body, decision).insert_check is not None
    replaced = {"filter": {"k": 1}, "replacement": {"by": "ben"}, "upsert": True}
    assert refused("replaceOne", replaced, decision) == DENIED


def test_a_replacement_cannot_move_or_bare_a_document():
    rules = {"update": {"filter": {"by": "${auth.uid}"}}}
    decision = decide(rules, "replaceOne")
    assert refused("replaceOne", {"filter": {}, "replacement": {"by": "ben"}}, decision) == DENIED
    assert refused("replaceOne", {"filter": {}, "replacement": {}}, decision) == DENIED
    assert plan("replaceOne", {"filter": {}, "replacement": {"by": "anna"}}, decision).replacement
    limited = decide({"update": {"write_fields": {"deny": ["role"]}}}, "replaceOne")
    assert refused("replaceOne", {"filter": {}, "replacement": {"a": 1}}, limited) == DENIED


def test_a_batch_needs_the_right_to_each_of_its_operations():
    policy = compile_policy({"collections": {"notes": {"insert": True, "delete": False}}})
    found = policy.decide_bulk((("insertOne", False), ("deleteOne", False)), "notes", ANNA)
    assert isinstance(found, Decision)
    assert not found.allow
    found = policy.decide_bulk((("insertOne", False), ("updateOne", True)), "notes", BEN)
    assert isinstance(found, Decision)
