"""The compiled reader of bodies and its twin give the same BSON, and refuse the same."""

from __future__ import annotations

import json
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.mongo import Caps, command
from ichicore.mongo.grammar import MEMBERS
from tests.oracle import mongo_command as twin
from tests.oracle.mongo_strategies import bodies

CAPS = Caps(max_docs=6, default_limit=4, max_doc_bytes=600)
SERVICE = Caps(max_docs=6, privileged=True)
OPTIONS: Any = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)


def again(data: bytes | None) -> bytes | None:
    """The same document as PyMongo writes it: it puts `_id` first."""
    return None if data is None else bson.encode(bson.decode(data, OPTIONS))


def outcome(module: Any, operation: str, body: bytes, caps: Caps) -> Any:
    try:
        parsed = module.parse(operation, body, caps)
    except ApiError as error:
        assert error.code in {
            "bad_request", "operator_not_allowed", "stage_not_allowed", "too_many_docs",
            "doc_too_large", "invalid_collection",
        }, error.code  # fmt: skip
        return error.status, error.code
    parts = []
    for part in parsed.parts:
        documents = [bson.decode(document, OPTIONS) for document in part.documents]
        made = [document.pop("_id") for document in documents]
        assert list(map(str, made)) == list(part.ids) or all(part.ids)
        part.documents = tuple(map(bson.encode, documents))
        part.ids = ()
        for name in ("filter", "projection", "sort", "update", "replacement"):
            setattr(part, name, again(getattr(part, name)))
        for name in ("pipeline", "array_filters"):
            setattr(part, name, tuple(map(again, getattr(part, name))))
        parts.append(part)
    return parsed.ordered, parts


def same(operation: str, body: bytes, caps: Caps) -> None:
    first, second = outcome(command, operation, body, caps), outcome(twin, operation, body, caps)
    if isinstance(first[1], str) and isinstance(second[1], str):
        assert first[0] == second[0]
        assert first[1] == second[1] or "bad_request" in (first[1], second[1]), (first, second)
    else:
        assert first == second


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(sorted(MEMBERS)).flatmap(
    lambda name: st.tuples(st.just(name), bodies(name))), st.booleans())  # fmt: skip
def test_bodies_are_read_like_their_twin(found, privileged):
    operation, body = found
    same(operation, json.dumps(body).encode(), SERVICE if privileged else CAPS)


@settings(max_examples=500, deadline=None)
@given(bodies("find"), st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_damaged_bodies_are_read_like_their_twin(body, place, byte, cut):
    text = bytearray(json.dumps(body, ensure_ascii=False).encode())
    if place < len(text):
        text[place] = byte
        if cut:
            del text[place + 1 :]
    same("find", bytes(text), CAPS)
