"""Reads that have nothing but a filter: the command is the one that the general way makes."""

import bson
import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.mongo import Caps, apply, message, parse
from ichicore.mongo.command import plain_filter
from ichicore.mongo.parts import EMPTY
from ichicore.mongo.plain import Place, PlainRead
from ichicore.rules import Context, compile_policy
from server.mongo import single

TAIL = bson.encode({"$db": "db"})[4:-1]
CAPS = Caps(max_docs=1000, default_limit=100)
RULES = {
    "own": {"filter": {"user_id": "${auth.uid}"}},
    "open": True,
    "either": {"filter": {"$or": [{"user_id": "${auth.uid}"}, {"public": True}]}},
}
WHO = Context("authenticated", "8d0f6a52-6f0e-4b0a-9d39-5a5b6f9b1c11", None, {}, 1.7e9)
scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8)
names = st.sampled_from(["_id", "user_id", "a", "a.b", "title", "public", "é"])
conditions = scalars | st.fixed_dictionaries({"$in": st.lists(scalars, max_size=3)}) | st.just(
    {"$gt": 3, "$lt": 9}
)  # fmt: skip
filters = st.dictionaries(names, conditions, max_size=3) | st.just(
    {"_id": "665f1f77bcf86cd799439011"}
)


def made(operation, rule):
    """(plan of the empty body, PlainRead) of a rule."""
    policy = compile_policy({"version": 1, "collections": {"notes": {"read": RULES[rule]}}})
    decision = policy.decide(operation, "notes", WHO)
    (plan,) = apply(parse(operation, b"{}", CAPS), decision)
    plan = msgspec.structs.replace(plan, filter=EMPTY)
    bound = EMPTY if decision.filter is None else decision.filter.bson
    elements = single.reading(plan, "notes", True)
    return decision, PlainRead(WHO, CAPS, plan, "notes", elements, bound, 10.0, TAIL)


def expected(operation, body, decision):
    (plan,) = apply(parse(operation, body, CAPS), decision)
    return message.sealed(single.reading(plan, "notes", True), 10.0, TAIL)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["find", "findOne", "count"]), st.sampled_from(list(RULES)), filters)
def test_the_command_is_the_one_of_the_general_way(operation, rule, filter):
    decision, read = made(operation, rule)
    body = orjson.dumps({"filter": filter})
    assert read.command(body) == expected(operation, body, decision)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"filter":null}', b'{"filter":{}}', b' { "filter" : {} } ']
)
@pytest.mark.parametrize("operation", ["find", "findOne", "count"])
def test_a_body_without_a_filter(operation, body):
    for rule in RULES:
        decision, read = made(operation, rule)
        assert read.command(body) == expected(operation, body, decision)


@pytest.mark.parametrize(
    "body",
    [
        b'{"filter":{},"limit":3}', b'{"limit":3,"filter":{}}', b'{"sort":{"a":1}}',
        b'{"projection":{"a":1},"filter":{"a":1}}', b'{"Filter":{}}', b'{"filte":{}}',
        b'{"filter2":{}}', b'{"":{}}',
    ],
)  # fmt: skip
def test_other_bodies_are_left_to_the_general_way(body):
    assert plain_filter(body, CAPS) is None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"7", b"{", b'{"filter":[]}', b'{"filter":{"$where":"1"}}',
        b'{"filter":{"a":{"$function":{}}}}', b'{"filter":{},"filter":{}}',
        b'{"filter":{"a":1e400}}',
        b'{"filter":{"$or":[{"$expr":{"$function":{}}}]}}', b'{"filter":' + b"[" * 500,
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_here_too(body):
    with pytest.raises(ApiError) as general:
        parse("findOne", body, CAPS)
    with pytest.raises(ApiError) as plain:
        plain_filter(body, CAPS)
    assert (plain.value.status, plain.value.code, plain.value.message) == (
        general.value.status, general.value.code, general.value.message,
    )  # fmt: skip


def test_a_place_forgets_when_it_knows_too_many():
    _, read = made("findOne", "own")
    place = Place("findOne", "notes")
    for _ in range(1025):
        place.keep(read)
    identities = [Context("anon") for _ in range(1500)]
    for who in identities:
        place.keep(PlainRead(who, CAPS, *_parts()))
    assert place.known <= 1024


def _parts():
    decision, _ = made("findOne", "open")
    (plan,) = apply(parse("findOne", b"{}", CAPS), decision)
    return plan, "notes", single.reading(plan, "notes", True), EMPTY, 10.0, TAIL
