"""Documents put together as bytes are what decoding, changing and encoding them gives."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson.codec_options import CodecOptions, DatetimeConversion
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.mongo import splice
from ichicore.rules.encode import encode
from tests.core.test_mongo_reply import DOCUMENTS, VALUES
from tests.oracle import mongo_splice as twin

OPTIONS: Any = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)


def plain(data: bytes) -> Any:
    return sorted(map(repr, bson.decode(data, OPTIONS).items()))


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS)
def test_values_are_encoded_as_pymongo_does(document):
    document.pop("_id", None)  # PyMongo puts it first
    assert encode(document) == bson.encode(document)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.dictionaries(PATHS, VALUES, max_size=3))
def test_splices_are_like_their_twins(first, second, values):
    a, b = encode(first), encode(second)
    assert splice.both(a, b) == twin.both(a, b)
    assert splice.under(b"$match", a) == twin.under(b"$match", a)
    for name in (*first, "zz"):
        assert plain(splice.without(a, name)) == plain(twin.without(a, name))
    if not any(one != other and one.startswith(f"{other}.") for one in values for other in values):
        assert plain(splice.overwrite(a, values)) == plain(twin.overwrite(a, values))
    update = encode({"$inc": {"n": 1}, "$set": {"x.y": 1}, "$unset": {"z": ""}})
    for operator in ("$set", "$setOnInsert"):
        made = splice.merge_operator(update, operator, values)
        assert plain(made) == plain(twin.merge_operator(update, operator, values))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_bson_are_refused(junk):
    for work in (
        lambda: splice.without(junk, "a"),
        lambda: splice.overwrite(junk, {"a": 1}),
        lambda: splice.merge_operator(junk, "$set", {"a": 1}),
    ):
        try:
            work()
        except ValueError:
            pass


def test_a_number_beyond_64_bits_is_refused():
    with pytest.raises(OverflowError):
        encode({"a": 1 << 64})
