"""The JSON body scanner against json, and the reading of bodies."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.rest import payload
from server.postgres import payloads
from tests.oracle import payload as oracle

SAFE_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    SAFE_TEXT,
)  # fmt: skip
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(SAFE_TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)
KEY = st.sampled_from(["a", "b", "é", 'q"', "\n"])
ROWS = st.lists(
    st.one_of(
        st.dictionaries(KEY, VALUE, max_size=3),
        st.fixed_dictionaries({"a": VALUE, "b": VALUE}),
        VALUE,
    ),
    max_size=4,
)  # fmt: skip
BODY = st.tuples(
    st.one_of(VALUE, ROWS, st.lists(st.fixed_dictionaries({"a": VALUE, "é": VALUE}))),
    st.booleans(),
    st.sampled_from([None, 1]),
).map(lambda t: json.dumps(t[0], ensure_ascii=t[1], indent=t[2]).encode())


@settings(max_examples=500, deadline=None)
@given(BODY)
def test_scan_of_valid_json(body: bytes) -> None:
    assert payload.scan(body) == oracle.scan(body)


@settings(max_examples=700, deadline=None)
@given(
    BODY,
    st.integers(0, 200),
    st.sampled_from(list(b'{}[]",:\\0a-+.eEtnu\x00\x1f\x80\xc3 ')),
    st.booleans(),
)
def test_scan_of_damaged_json(body: bytes, place: int, byte: int, insert: bool) -> None:
    place %= len(body)
    damaged = body[:place] + bytes((byte,)) + body[place + (not insert) :]
    assert payload.scan(damaged) == oracle.scan(damaged)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=30))
def test_scan_of_any_bytes(body: bytes) -> None:
    assert payload.scan(body) == oracle.scan(body)


def test_nesting_is_bounded() -> None:
    assert payload.scan(b"[" * 1000 + b"]" * 1000) is not None
    assert payload.scan(b"[" * 100_000 + b"]" * 100_000) is None
    assert payload.scan(b'{"a":' * 100_000) is None


def test_many_keys() -> None:
    row = {f"k{n}": n for n in range(200)}
    turned = dict(reversed(row.items()))
    found = payload.scan(orjson.dumps([row, turned]))
    assert found == ("array", tuple(row), True)
    turned.pop("k3")
    found = payload.scan(orjson.dumps([row, turned]))
    assert found is not None
    assert not found[2]


def refused(body: bytes, content_type: str | None, *, rpc: bool = False) -> str:
    with pytest.raises(ApiError) as caught:
        payloads.read(body, content_type, None, rpc=rpc)
    assert (caught.value.status, caught.value.code) == (400, "PGRST102")
    return caught.value.message


def test_refusals() -> None:
    assert refused(b"}{ x = 2", None) == "Empty or invalid json"
    assert refused(b"", "application/json") == "Empty or invalid json"
    assert refused(b'[{"a":1},2]', None) == "All object keys must match"
    assert refused(b'[{"a":1},{"b":2}]', None) == "All object keys must match"
    assert refused(b'{"\\ud800":1}', None) == "Empty or invalid json"
    assert refused(b"a,b\nfoo,bar\nbaz", "text/csv") == "All lines must have same number of fields"
    assert refused(b"", "text/csv").startswith("parse error")
    assert refused(b'a\n"x', "text/csv").startswith("parse error")
    assert refused(b"\xff", "text/csv") == "The CSV text is not UTF-8"
    assert refused(b"a,b", "text/csv") == "parse error (not enough input)"
    for line in (b'x"y,1', b'{"a":1},1', b'"x"y,1', b' "x",1', b'1,x"', b'"a","b"""c'):
        assert refused(b"a,b\n" + line, "text/csv").startswith("parse error"), line
    assert refused(b"x", "text/plain") == "Content-Type not acceptable: text/plain"
    assert refused(b"a=%ff", "application/x-www-form-urlencoded") == "The form is not UTF-8"


def test_bodies() -> None:
    csv = payloads.read(
        b'a,b\r\n1,NULL\r\n"x,""y",\r\n', "text/csv; charset=utf-8", None, rpc=False
    )
    assert csv.names == ("a", "b")
    assert payloads.read(b"a,b\n", "text/csv", None, rpc=False).body == b"[]"
    quoted = payloads.read(b'a,b\n"","x ""y"", z"\n"l\n""",\n', "text/csv", None, rpc=False)
    assert quoted.body == b'[{"a":"","b":"x \\"y\\", z"},{"a":"l\\n\\"","b":""}]'
    assert csv.body == b'[{"a":"1","b":null},{"a":"x,\\"y","b":""}]'
    form = payloads.read(b"a=1&b=x+y&a=2", "application/x-www-form-urlencoded", None, rpc=False)
    assert (form.body, form.is_object) == (b'{"a":"2","b":"x y"}', True)
    call = payloads.read(b"a=1&a=2", "application/x-www-form-urlencoded", None, rpc=True)
    assert call.arguments == (("a", "1", -1), ("a", "2", -1))
    assert payloads.read(b"", None, None, rpc=True).body == b"{}"
    assert payloads.read(b"7", None, None, rpc=True).body == b"[]"
    raw = payloads.read(b"\x00\xff", "application/octet-stream", None, rpc=True)
    assert (raw.body, raw.media) == (b"\x00\xff", "application/octet-stream")
    assert payloads.read(b"{broken", None, ("b", "a"), rpc=False).names == ("a", "b")
