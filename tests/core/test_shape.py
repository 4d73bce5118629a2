"""The shape scanner against the parser: same values, and equal shapes mean equal nodes."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.rest import query, shape
from tests.core.test_query import QUERY
from tests.oracle import rest_query, rest_shape

TEXT = st.text("ab 1*%.,()\"\\é+&=;'\x00\x01<>{}", max_size=6)
NAME = st.sampled_from(["id", "name", "a-b", "data->>k", "rel.id", "x y", "a.b.c"])
OPERATOR = st.sampled_from(
    [
        "eq",
        "neq",
        "gt",
        "like",
        "ilike(any)",
        "not.eq",
        "fts",
        "fts(english)",
        "cs",
        "isdistinct",
        "eq(all)",
        "match",
    ]
)
FILTER = st.one_of(
    st.tuples(NAME, OPERATOR, TEXT).map(lambda t: (t[0], f"{t[1]}.{t[2]}")),
    st.tuples(NAME, st.lists(TEXT, max_size=3)).map(lambda t: (t[0], f"in.({','.join(t[1])})")),
    st.tuples(NAME, st.sampled_from(["is.null", "not.is.true", "is.NULL", "is.nullx"])),
)
LEAF = st.one_of(
    st.tuples(NAME, OPERATOR, st.text("ab1 *é", max_size=4)).map(".".join),
    st.sampled_from(["id.in.(1,2)", "x.is.null", "b.cs.{a,b}", 'c.eq."x,y"', "d.in.(a) "]),
)
TREE = st.recursive(
    LEAF,
    lambda inner: st.tuples(
        st.sampled_from(["and", "or", "not.and", "not.or"]), st.lists(inner, min_size=1, max_size=3)
    ).map(lambda t: f"{t[0]}({','.join(t[1])})"),
    max_leaves=5,
)
LOGIC = st.tuples(
    st.sampled_from(["or", "and", "rel.or", "not.and"]), st.lists(TREE, min_size=1, max_size=3)
).map(lambda t: (t[0], f"({','.join(t[1])})"))
OTHER = st.one_of(
    st.tuples(st.just("select"), st.sampled_from(["id,rel(*)", "a:b::text", "*"])),
    st.tuples(st.sampled_from(["limit", "offset", "rel.limit"]), st.sampled_from(["1", "20", "x"])),
    st.tuples(st.just("order"), st.sampled_from(["id.desc", "a,b.asc.nullslast"])),
    st.tuples(st.just("on_conflict"), st.just("a,b")),
    st.tuples(NAME, TEXT),
)
PAIRS = st.lists(st.one_of(FILTER, LOGIC, OTHER), min_size=1, max_size=5)
ENCODED = st.one_of(
    PAIRS.map(lambda pairs: urllib.parse.urlencode(pairs, safe=".,()->:*").encode()), QUERY
)


def parsed(raw: bytes, rpc: bool) -> query.Query | None:
    try:
        return query.parse(raw, rpc=rpc, mutation=True)
    except ApiError:
        return None


@settings(max_examples=800, deadline=None)
@given(ENCODED, st.booleans())
def test_values_are_the_parsers(raw: bytes, rpc: bool) -> None:
    scanned = shape.scan(raw, rpc=rpc)
    assert scanned == rest_shape.scan(raw, rpc=rpc)
    found = parsed(raw, rpc)
    if scanned is not None and found is not None:
        assert scanned[1] == [value.encode() for value in found.values]


@settings(max_examples=600, deadline=None)
@given(PAIRS, st.data(), st.booleans())
def test_equal_shapes_are_equal_nodes(
    pairs: list[tuple[str, str]], data: st.DataObject, rpc: bool
) -> None:
    first = urllib.parse.urlencode(pairs, safe=".,()->:*").encode()
    scanned = shape.scan(first, rpc=rpc)
    if scanned is None or not scanned[1]:
        return
    other = [(key, data.draw(st.one_of(st.just(value), changed(value)))) for key, value in pairs]
    second = urllib.parse.urlencode(other, safe=".,()->:*").encode()
    again = shape.scan(second, rpc=rpc)
    if again is None or again[0] != scanned[0]:
        return
    one, two = parsed(first, rpc), parsed(second, rpc)
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        assert rest_query.without_values(one) == rest_query.without_values(two)


def changed(value: str) -> st.SearchStrategy[str]:
    head, dot, _ = value.rpartition(".")
    return st.text("ab1,. *", max_size=5).map(lambda new: head + dot + new)


def test_usual_requests_are_taken() -> None:
    for raw in (
        b"select=id,name,rel(id)&id=eq.5",
        b"a=eq.1&b=like.*x*&c=in.(1,2,3)&d=is.null&e=not.gt.4&order=a.desc&limit=10&offset=20",
        b"meta-%3E%3Ek=eq.x%20y%2Bz&t=plfts(english).cat%20dog",
        b"or=(and(status.eq.paid%2Ctotal.gt.100)%2Cuser_id.eq.42)",
    ):
        assert shape.scan(raw) is not None
    assert shape.scan(b"a=1&b=hello", rpc=True) == (b"a=\x02&b=\x02", [b"1", b"hello"])


@pytest.mark.parametrize(
    "raw",
    [b"a=xx.1", b"a", b"a;b=eq.1", b"limit=1&limit=2", b'a=in.("x")', b"a=eq.%00", b"a=eq.%FF",
     b"\xc3\xa4=eq.1", b"a=is.maybe", b"limit=01", b"or=(a.cs.{1})"],
)  # fmt: skip
def test_unusual_requests_are_not_taken(raw: bytes) -> None:
    assert shape.scan(raw) is None
