"""The compiled query-string parser against the grammar, and the texts of its errors."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.http import target
from ichicore.rest import grammar, query
from tests.oracle import rest_query

FIELD = st.sampled_from(
    ["id", "name", "a-b", "größe", '"x.y"', "data->a->>b", "data->>-1", "data->0", "$x y", "and"]
)
OPERATOR = st.sampled_from(
    [
        "eq",
        "neq",
        "gt",
        "gte",
        "lt",
        "lte",
        "like",
        "ilike",
        "match",
        "imatch",
        "fts",
        "plfts",
        "phfts",
        "wfts(english)",
        "cs",
        "cd",
        "ov",
        "sl",
        "sr",
        "nxr",
        "nxl",
        "adj",
        "isdistinct",
        "eq(any)",
        "like(all)",
        "not.eq",
        "not.ilike(any)",
        "fts(ger",
        "man)",
        "eq(none)",
        "xyz",
        "is",
        "in",
        "not.in",
    ]
)
VALUE = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["null", "NULL", "not_null", "(1,2)", '("a,b",c)', "()", '("")', '("a\\"b",x)', "( 1 , 2 )",
         "{a,b}", '"q"', "*x*", "(", "unknown", '"a"b', "(a\\b)"]
    ),
)  # fmt: skip
FILTER = st.tuples(FIELD, OPERATOR, VALUE).map(lambda t: (t[0], f"{t[1]}.{t[2]}"))
LOGIC_LEAF = st.tuples(FIELD, OPERATOR, VALUE).map(lambda t: f"{t[0]}.{t[1]}.{t[2]}")
LOGIC = st.recursive(
    LOGIC_LEAF,
    lambda inner: st.tuples(
        st.sampled_from(["and", "or", "not.and", "not.or", "and ", "xor"]),
        st.lists(inner, min_size=1, max_size=3),
        st.sampled_from([",", ", ", " ,"]),
    ).map(lambda t: f"{t[0]}({t[2].join(t[1])})"),
    max_leaves=6,
)
LOGIC_PAIR = st.tuples(
    st.sampled_from(["and", "or", "not.or", "rel.or", "rel.not.and"]),
    st.lists(LOGIC, min_size=1, max_size=3).map(lambda items: f"({','.join(items)})"),
)
SELECT_LEAF = st.sampled_from(
    ["a,b,c,!", "x,y,count", "x,y,",
     "*", "id", "a:id", "id::text", "x.sum()", "x::int.avg()::text", "count()", "n:count()::int",
     " id ", "data->a", "d:data->>0::int", "", "a:*", "x.foo()", "id::", "n:count"]
)  # fmt: skip
SELECT = st.recursive(
    SELECT_LEAF,
    lambda inner: st.tuples(
        st.sampled_from(
            ["rel", "...rel", "a:rel", "rel!fk", "rel!inner", "rel!fk!left", "r!left!x!y", "count"]
        ),
        st.lists(inner, max_size=3),
        st.sampled_from([",", ", ", " , "]),
    ).map(lambda t: f"{t[0]}({t[2].join(t[1])})"),
    max_leaves=6,
)
ORDER = st.tuples(
    st.sampled_from(["id", "rel(id)", "data->a", "rel(data->>b)", "a b", "rel( id )"]),
    st.sampled_from(["", ".asc", ".desc", ".ascx", ".up"]),
    st.sampled_from(["", ".nullsfirst", ".nullslast", ".nulls"]),
).map("".join)
PAIR = st.one_of(
    FILTER,
    LOGIC_PAIR,
    st.tuples(st.just("select"), st.lists(SELECT, max_size=3).map(",".join)),
    st.tuples(st.sampled_from(["order", "rel.order"]), st.lists(ORDER, max_size=2).map(",".join)),
    st.tuples(
        st.sampled_from(["limit", "offset", "rel.limit", "rel.offset"]),
        st.sampled_from(["1", "10", "007", "-1", "x", "", "(3)", "0x10", "99999999999999999999"]),
    ),
    st.tuples(
        st.sampled_from(["columns", "on_conflict"]), st.sampled_from(["a,b", "a, b", "", "a"])
    ),
    st.tuples(
        st.sampled_from(["rel.id", "a.b.c", '"p.q".x', "", "a.", "id!x"]),
        FILTER.map(lambda t: t[1]),
    ),
    st.tuples(st.text(max_size=6), st.text(max_size=6)),
)  # fmt: skip
QUERY = st.tuples(
    st.lists(PAIR, max_size=5), st.sampled_from(["", "&select", "&", "&&x", ";a=eq.1"])
).map(lambda t: (urllib.parse.urlencode(t[0], errors="surrogatepass") + t[1]).encode())


def outcome(parser: object, raw: bytes, **options: bool) -> object:
    try:
        return rest_query.plain(parser(raw, **options))  # type: ignore[operator]
    except ApiError as error:
        return error.status, error.code, error.message, error.details


@settings(max_examples=800, deadline=None)
@given(QUERY, st.booleans(), st.booleans(), st.booleans())
def test_parser_equals_the_grammar(raw: bytes, rpc: bool, mutation: bool, add: bool) -> None:
    options = {"rpc": rpc, "mutation": mutation, "concatenate_order": add}
    assert outcome(query.parse, raw, **options) == outcome(rest_query.parse, raw, **options)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_give_a_query_or_a_coded_error(raw: bytes) -> None:
    first = outcome(query.parse, raw)
    assert first == outcome(rest_query.parse, raw)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), QUERY, st.lists(QUERY, max_size=20).map(b"&".join)))
def test_canonical_form(raw: bytes) -> None:
    assert target.canonical(raw) == grammar.canonical(raw)
    assert target.decode(raw) == grammar.unescape(raw)
    assert target.encode(raw) == grammar.reescape(raw)


ERRORS = [
    ("id=0", "failed to parse filter (0)", 1,
     'unexpected "0" expecting "not" or operator (eq, gt, ...)'),
    ("order=id.asc.nullslasttt", "failed to parse order (id.asc.nullslasttt)", 17,
     "unexpected 't' expecting \",\" or end of input"),
    ("or=()", "failed to parse logic tree (())", 4,
     'unexpected ")" expecting field name (* or [a..z0..9_$]), negation operator (not) '
     "or logic operator (and, or)"),
    ("columns=", "failed to parse columns parameter ()", 1,
     "unexpected end of input expecting field name (* or [a..z0..9_$])"),
    ("select=data->>--34", "failed to parse select parameter (data->>--34)", 9,
     'unexpected "-" expecting digit'),
    ("select=a(b", "failed to parse select parameter (a(b)", 4, None),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "what", "column", "details"), ERRORS)
def test_error_texts(raw: str, what: str, column: int, details: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        query.parse(raw)
    error = caught.value
    assert (error.status, error.code) == (400, "PGRST100")
    if details is not None:
        assert error.message == f'"{what}" (line 1, column {column})'
        assert error.details == details


def test_order_of_values_is_the_order_in_the_url() -> None:
    found = query.parse(b"a=eq.1&limit=5&or=(b.eq.2,not.and(c.in.(3,4),d.is.null))&offset=6&e=gt.7")
    assert found.values == ["1", "5", "2", '{"3","4"}', "6", "7"]
    assert found.limit_slots == {(): (1, 4)}


def test_repeated_parameters() -> None:
    raw = b"select=a&select=b&limit=10&limit=1&order=a.asc&order=b.desc"
    found = query.parse(raw)
    assert [item.field.name for item in found.select] == ["a"]  # type: ignore[union-attr]
    assert found.limits == {(): (1, None)}
    assert found.values == ["1"]
    assert [term.field.name for term in found.order[0][1]] == ["a"]
    added = query.parse(raw, concatenate_order=True)
    assert [term.field.name for term in added.order[0][1]] == ["a", "b"]


def test_function_arguments() -> None:
    found = query.parse(b"a=5&b=eq.5&c=hello.world&d=not&e=in", rpc=True)
    assert found.params == [("a", "5"), ("c", "hello.world"), ("d", "not"), ("e", "in")]
    assert [item.field.name for _, item in found.filters] == ["b"]
    assert [found.values[slot] for slot in found.param_slots] == ["5", "hello.world", "not", "in"]
    with pytest.raises(ApiError):
        query.parse(b"a=in.x", rpc=True)


@pytest.mark.parametrize("rest", ["", ")" * 2000])
def test_nesting_is_bounded(rest: str) -> None:
    for text in (
        "select=" + "a(" * 2000 + "b",
        "or=" + "(or" * 2000 + "(a.eq.1",
        "or=" + "(" * 3000,
    ):
        with pytest.raises(ApiError) as caught:
            query.parse(text + rest)
        assert caught.value.code == "PGRST100"
    allowed = "select=" + "a(" * 60 + "b" + ")" * 60
    assert query.parse(allowed).select


def test_long_texts_are_refused_in_bounded_time() -> None:
    for raw in ("select=" + "a ," * 10_000 + "!", "or=(" + "a.eq.1," * 4000 + "x"):
        with pytest.raises(ApiError) as caught:
            query.parse(raw)
        assert caught.value.details == "longer than 4096 characters and not in a usual form"
    assert len(query.parse("select=" + "a ," * 10_000 + "b").select) == 10_001
    assert len(query.parse("a=in.(" + "1," * 10_000 + "1)\t").values[0]) > 10_000
