"""Answers are encoded from BSON as the slow twin does it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import bson
import pytest
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.mongo import reply
from ichicore.rules import FieldRule
from tests.oracle import mongo_reply as twin

NAMES = st.sampled_from(["a", "b", "c", "_id", "x y", 'q"', "ü", "secret"]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.integers(-(1 << 63), (1 << 63) - 1).map(Int64)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(min_size=12, max_size=12).map(ObjectId)
    | st.integers(-(10**16), 10**16).map(DatetimeMS)
    | st.binary(max_size=20).map(lambda data: Binary(data, 0))
    | st.binary(min_size=16, max_size=16).map(Decimal128.from_bid)
    | st.decimals(allow_nan=True, places=5, min_value=-(10**20), max_value=10**20).map(Decimal128)
    | st.builds(Regex, st.text('ab.*\\/"', max_size=5))
    | st.builds(Timestamp, st.integers(0, (1 << 32) - 1), st.integers(0, 100))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=6)
PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "secret"]), min_size=1, max_size=3).map(".".join),
    min_size=1,
    max_size=4,
).map(tuple)
RULES = st.none() | st.builds(lambda p: FieldRule(deny=p), PATHS) | st.builds(FieldRule, PATHS)


def same_json(first: bytes, second: bytes) -> None:
    def exact(text: bytes) -> object:
        return json.loads(text, parse_float=lambda number: ("float", float(number)))

    assert exact(first) == exact(second)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, RULES)
def test_a_document_is_encoded_like_its_twin(document, rule):
    data = bson.encode(document)
    same_json(reply.to_json(data, rule), twin.to_json(data, rule))


@settings(max_examples=100, deadline=None)
@given(st.lists(DOCUMENTS, max_size=5), st.lists(DOCUMENTS, max_size=3), st.integers(0, 7), RULES)
def test_replies_are_encoded_like_their_twins(first, more, limit, rule):
    replies = [
        bson.encode({"cursor": {"firstBatch": first, "id": Int64(7), "ns": "x"}, "ok": 1.0}),
        bson.encode({"ok": 1.0, "cursor": {"id": Int64(0), "ns": "x", "nextBatch": more}}),
    ]
    same_json(reply.find_reply(replies, limit, rule), twin.find_reply(replies, limit, rule))
    same_json(reply.doc_reply(replies[0], rule), twin.doc_reply(replies[0], rule))
    assert reply.documents(replies[1]) == twin.documents(replies[1])
    assert [reply.cursor_id(one) for one in replies] == [7, 0]
    values = bson.encode({"values": [list(one.values()) for one in first], "ok": 1.0})
    same_json(reply.distinct_reply(values, limit), twin.distinct_reply(values, limit))
    for document in first:
        data = bson.encode(document)
        value = bson.encode({"value": document})
        same_json(reply.one_reply(data, rule), twin.one_reply(data, rule))
        same_json(reply.doc_reply(value, rule), twin.doc_reply(value, rule))


def test_the_forms_of_values():
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    document = {
        "_id": ObjectId("65f000000000000000000001"),
        "at": moment,
        "before": DatetimeMS(-62198755200001),
        "safe": Int64(1 << 53),
        "big": Int64((1 << 53) + 1),
        "price": Decimal128("12.50"),
        "tiny": Decimal128("1E-7"),
        "whole": 5.0,
        "nan": float("nan"),
        "data": b"hi",
    }
    assert json.loads(reply.to_json(bson.encode(document))) == {
        "_id": "65f000000000000000000001",
        "at": "2026-01-02T03:04:05.678Z",
        "before": "-000002-12-31T23:59:59.999Z",
        "safe": 1 << 53,
        "big": str((1 << 53) + 1),
        "price": "12.50",
        "tiny": "1E-7",
        "whole": 5.0,
        "nan": None,
        "data": "aGk=",
    }
    assert b'"whole":5.0' in reply.to_json(bson.encode(document))
    assert reply.id_text(bson.encode(document)) == "65f000000000000000000001"
    assert reply.id_text(bson.encode({"_id": 5})) == "5"
    assert reply.id_text(bson.encode({"_id": 'x"y'})) == 'x"y'


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), DOCUMENTS, st.integers(0, 60), st.integers(0, 255))
def test_bytes_that_are_no_bson_are_refused(junk, document, place, byte):
    damaged = bytearray(bson.encode(document))
    if place < len(damaged):
        damaged[place] = byte
    for data in (junk, bytes(damaged), bytes(damaged[:place])):
        try:
            reply.to_json(data)
        except ValueError:
            pass


def test_nesting_is_bounded():
    document: dict[str, object] = {}
    for _ in range(400):
        document = {"a": document}
    with pytest.raises(ValueError, match="deep"):
        reply.to_json(bson.encode(document))
