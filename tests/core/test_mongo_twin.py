"""The compiled reader of bodies and its twin give the same BSON, and refuse the same."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.mongo.grammar import MEMBERS
from tests.oracle.mongo_outcome import CAPS, SERVICE, same
from tests.oracle.mongo_strategies import bodies


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
