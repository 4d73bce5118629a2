"""Targets of the document API: bodies, rules and the database's replies."""

from __future__ import annotations

import json

from ichicore.mongo import reply
from ichicore.mongo.grammar import MEMBERS, OPERATIONS
from ichicore.rules import Context, FieldRule, RuleError, compile_match, compile_policy
from tests.oracle.mongo_outcome import CAPS, SERVICE, same

NAMES = sorted(MEMBERS)
ANNA = Context("authenticated", "anna", "a@b", {"teams": ["x"], "n": 1, "o": {"a": 1}}, 5.0)
HIDING = FieldRule(deny=("secret", "a.b"))
SHOWING = FieldRule(allow=("a", "b.c"))


def body(data: bytes) -> None:
    """The first byte chooses the operation and the role."""
    if data:
        same(NAMES[data[0] % len(NAMES)], data[1:], SERVICE if data[0] & 128 else CAPS)


def rules(data: bytes) -> None:
    try:
        policy = compile_policy(data)
    except RuleError:
        return
    for collection in (*policy.collections, "other"):
        for operation in OPERATIONS:
            for identity in (ANNA, Context()):
                decision = policy.decide(operation, collection, identity, upsert=True)
                for bound in (decision.filter, decision.check):
                    if bound is not None:
                        bound.test({"a": [1, {"b": "x"}], "by": "anna"})
                        bound.test_raw(bound.bson)


def match(data: bytes) -> None:
    try:
        expression = json.loads(data)
    except (ValueError, RecursionError):
        return
    for loose in (False, True):
        try:
            found = compile_match(
                expression, roots=("auth", "record", "old"), loose=loose, interpolate=not loose
            )
        except RuleError:
            continue
        found.index()
        found.test({"a": [1, "1", {"b": None}], "n": 5}, ANNA, {"a": 1})


def answer(data: bytes) -> None:
    for rule in (None, HIDING, SHOWING):
        for work in (
            lambda read: reply.to_json(data, read),
            lambda read: reply.find_reply([data], 3, read),
            lambda read: reply.doc_reply(data, read),
            lambda read: reply.distinct_reply(data, 3),
            lambda read: reply.documents(data),
            lambda read: reply.cursor_id(data),
            lambda read: reply.id_text(data),
        ):
            try:
                work(rule)
            except ValueError:
                pass


SEEDS: dict[str, tuple[bytes, ...]] = {
    "body": (
        b'\x07{"filter":{"_id":"65f000000000000000000001","a":{"$gt":1,"$in":[1,"x"]}},"limit":5}',
        b'\x00{"pipeline":[{"$match":{"a":1}},{"$group":{"_id":"$a","n":{"$sum":1}}}]}',
        b'\x0e{"filter":{},"update":{"$set":{"a.$[e].b":1},"$push":{"c":{"$each":[1]}}}}',
        b'\x01{"ops":[{"op":"insertOne","doc":{"a":1.5}},{"op":"deleteOne","filter":{}}]}',
    ),
    "rules": (
        b'{"version":1,"collections":{"notes":{"read":[{"when":{"auth.role":"anon"},"filter":'
        b'{"public":true}},{"filter":{"by":"${auth.uid}"}}],"write":{"set":{"by":"${auth.uid}"},'
        b'"check":{"n":{"$gt":0}},"write_fields":{"deny":["role"]}}},"*":{"read":false}}}',
    ),
    "match": (
        b'{"$or":[{"a":"$auth.uid"},{"auth.role":{"$in":["x"]}}],"old.a":{"$exists":true}}',
        b'{"a.b":{"$elemMatch":{"$gt":1}},"n":{"$not":{"$regex":"^a","$options":"i"}}}',
    ),
    "answer": (
        b"\x10\x00\x00\x00\x02a\x00\x04\x00\x00\x00abc\x00\x00",
        b"6\x00\x00\x00\x03cursor\x00)\x00\x00\x00\x04firstBatch\x00\r\x00\x00\x00\x030\x00"
        b"\x05\x00\x00\x00\x00\x00\x12id\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ),
}
TARGETS = {"body": body, "rules": rules, "match": match, "answer": answer}
