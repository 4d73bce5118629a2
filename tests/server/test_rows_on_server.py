"""The encoder against the server's own to_json, over every built-in type."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ichicore.rest.rows import TypeTable, read_in_place
from server.node.embedded_pg import EmbeddedPostgres
from server.postgres.pool import JSON, NONE, VALUES, Group, Pool, Spool, Statement

SLOW_OK = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)
DAYS = st.integers(-2451545 + 1, 106_000_000)
USECS = st.integers(-211_000_000_000_000_000, 9_200_000_000_000_000_000)

# type name -> values as SQL text, cast on the server
VALUES_OF: dict[str, st.SearchStrategy[str]] = {
    "boolean": st.sampled_from(["t", "f"]),
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "oid": st.integers(0, 2**32 - 1).map(str),
    "xid": st.integers(0, 2**32 - 1).map(str),
    "xid8": st.integers(0, 2**64 - 1).map(str),
    "real": st.floats(width=32).map(repr),
    "double precision": st.floats().map(repr),
    "numeric": st.one_of(
        st.decimals(allow_nan=True, allow_infinity=True)
        .filter(
            lambda d: (
                not d.is_snan()
                and not (d.is_nan() and d.is_signed())
                and (not d.is_finite() or abs(d.adjusted()) < 400)
            )
        )
        .map(str),
        st.tuples(st.integers(-(10**60), 10**60), st.integers(0, 30)).map(
            lambda p: f"{p[0]}.{'0' * p[1]}"
        ),
    ),
    "text": TEXT,
    "varchar": TEXT,
    "char(5)": TEXT.map(lambda t: t[:5]),
    "name": TEXT.map(lambda t: t.encode()[:60].decode("utf-8", "ignore")),
    '"char"': st.characters(min_codepoint=1, max_codepoint=127),
    "bytea": st.binary(max_size=30).map(lambda b: "\\x" + b.hex()),
    "uuid": st.uuids().map(str),
    "json": st.recursive(
        st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=3)
    ).map(lambda v: " " + repr(v).lower().replace("none", "null") + "\n"),
    "jsonb": TEXT.map(
        lambda t: (
            '{"a": [1, 2.50, null], "b":' + json.dumps("".join(c for c in t if c >= " ")) + "}"
        )
    ),
    "jsonpath": st.sampled_from(["$.a[*] ? (@ > 1)", 'strict $."x y"']),
    "date": DAYS.map(lambda d: f"J{d + 2451545}")
    | st.sampled_from(["infinity", "-infinity", "0001-01-01 BC", "4714-11-24 BC", "5874897-12-31"]),
    "time": st.times().map(str) | st.just("24:00:00"),
    "timetz": st.tuples(
        st.times(), st.sampled_from(["+00", "-08", "+05:30", "+00:00:17", "-15:59"])
    ).map(lambda p: f"{p[0]}{p[1]}"),
    "timestamp": st.datetimes().map(str)
    | st.sampled_from(
        [
            "infinity",
            "-infinity",
            "0044-03-15 12:00:00.5 BC",
            "294276-12-31 23:59:59.999999",
            "4714-11-24 00:00:00 BC",
        ]
    ),
    "timestamptz": st.datetimes().map(lambda d: f"{d}+00")
    | st.sampled_from(["infinity", "-infinity", "0044-03-15 12:00:00.5+00 BC"]),
    "interval": st.tuples(
        st.integers(-(10**4), 10**4), st.integers(-(10**5), 10**5), st.integers(-(10**15), 10**15)
    ).map(lambda p: f"{p[0]} months {p[1]} days {p[2]} microseconds")
    | st.sampled_from(
        ["infinity", "-infinity", "0", "-1 mons +1 day -00:00:00.000001", "1 year -1 mon 1 day"]
    ),
    "inet": st.ip_addresses().map(str)
    | st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda p: f"{p[0]}/{p[1]}")
    | st.sampled_from(
        ["::", "::1", "::ffff:1.2.3.4", "::1.2.3.4", "::2:0", "1::", "10.1.2.3/8", "0:0:1::"]
    ),
    "cidr": st.ip_addresses().map(str) | st.sampled_from(["10.0.0.0/8", "::/0", "2001:db8::/32"]),
    "macaddr": st.binary(min_size=6, max_size=6).map(bytes.hex),
    "macaddr8": st.binary(min_size=8, max_size=8).map(bytes.hex),
    "bit varying": st.text("01", max_size=20),
    "bit(7)": st.text("01", min_size=7, max_size=7),
    # left to Postgres
    "money": st.integers(-(10**9), 10**9).map(str),
    "int4range": st.sampled_from(["[1,5)", "empty", "(,7]"]),
    "daterange": st.just("[2020-01-01,infinity)"),
    "nummultirange": st.just("{[1,2),[5,)}"),
    "point": st.just("(1.5,-2)"),
    "tsvector": st.just("'a':1 'b''c'"),
    "pg_lsn": st.just("0/16B3748"),
    "int2vector": st.just("1 2 3"),
    "regclass": st.just("pg_class"),
    "mood": st.sampled_from(["sad", 'o"k', "happy é"]),
    "score": st.integers(-100, 100).map(str),
    "moodish": st.sampled_from(["sad", "happy é"]),
    "pair": st.sampled_from(['(1,"a b")', "(,)", '(7,"q""\\\\")']),
    "vote": st.sampled_from(["yes", "no"]),
}

TYPES = """
create type mood as enum ('sad', 'o"k', 'happy é');
create domain score as integer check (value between -100 and 100);
create domain moodish as mood;
create type pair as (a integer, b text);
create type vote as enum ('yes', 'no');
create function vote_json(vote) returns json immutable language sql as
  $$select json_build_object('vote', $1::text)$$;
create cast (vote as json) with function vote_json(vote);
"""


@pytest.fixture(scope="module")
def typed_database(pg_cluster: EmbeddedPostgres) -> str:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
    with psycopg.connect(pg_cluster.dsn(name), autocommit=True) as connection:
        connection.execute(TYPES)
    return pg_cluster.dsn(name)


class Comparison:
    """A pool in a loop of its own, which keeps the statements prepared from case to case."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._pool = Pool(dsn, max_size=1, statements=2000)

    def close(self) -> None:
        self._runner.run(self._pool.close())
        self._runner.close()

    def check(self, cases: dict[str, bytes], before: str = "") -> None:
        """Runs each type's values through both writers and compares text with text."""
        self._runner.run(self._check(cases, before))

    async def _check(self, cases: dict[str, bytes], before: str) -> None:
        for name, literal in cases.items():
            source = f"(select v::{name} as v from unnest($1::text[]) as t(v)) as s"
            arrays = f"(select array_agg(v) as v from {source}) as s"
            nested = f"(select array[v, v] as v from {arrays}) as s"
            if name == "int2vector":  # has no arrays of arrays
                arrays = nested = source
            for origin in (source, arrays, nested):
                group = Group("x")
                if before:
                    group.add(Statement(before, result=NONE))
                group.add(Statement(f"select v as v from {origin}", result=JSON), (literal,))
                group.add(
                    Statement(f"select to_json(v)::text from {origin}", result=VALUES), (literal,)
                )
                *_, ours, theirs = await self._pool.run(group)
                rows = [b'{"v":%s}' % (b"null" if v is None else v) for (v,) in theirs.values]
                assert ours.body == b"[" + b",".join(rows) + b"]", name


@pytest.fixture(scope="module")
def comparison(typed_database: str) -> Iterator[Comparison]:
    made = Comparison(typed_database)
    yield made
    made.close()


def as_literal(values: list[str | None]) -> bytes:
    """A one-dimensional text[] literal."""
    out = []
    for value in values:
        if value is None:
            out.append("NULL")
        else:
            out.append('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return ("{" + ",".join(out) + "}").encode()


@SLOW_OK
@given(
    st.fixed_dictionaries(
        {
            name: st.lists(st.none() | values, min_size=1, max_size=6).map(as_literal)
            for name, values in VALUES_OF.items()
        }
    )
)
def test_equal_to_json(comparison: Comparison, cases: dict[str, bytes]) -> None:
    comparison.check(cases)


@pytest.mark.parametrize("setting", [
    "set_config('TimeZone', 'Europe/Berlin', true)",
    "set_config('IntervalStyle', 'iso_8601', true)",
    "set_config('bytea_output', 'escape', true)",
    "set_config('extra_float_digits', '0', true)",
    "set_config('DateStyle', 'German', true)",
])  # fmt: skip
def test_settings_of_the_group(comparison: Comparison, setting: str) -> None:
    cases = {
        "timestamptz": b'{"2024-07-01 12:00:00+00","0044-03-15 12:00:00+00 BC"}',
        "interval": b'{"1 year 2 days 3 hours"}',
        "bytea": b'{"\\\\x00ff41"}',
        "double precision": b"{0.1,1e300}",
        "date": b"{2024-07-01}",
    }
    comparison.check(cases, before=f"select {setting}")


@pytest.mark.parametrize("options", [
    "-c timezone=America/St_Johns", "-c intervalstyle=sql_standard", "-c bytea_output=escape",
    "-c extra_float_digits=-5",
])  # fmt: skip
def test_settings_of_the_session(typed_database: str, options: str) -> None:
    cases = {
        "timestamptz": b'{"2024-07-01 12:00:00+00"}',
        "interval": b'{"1 year 2 days 3 hours"}',
        "bytea": b'{"\\\\x00ff41"}',
        "real": b"{0.1,1e30}",
    }
    comparison = Comparison(f"{typed_database} options='{options}'")
    comparison.check(cases)
    comparison.close()


def test_setting_as_a_parameter(pg_database: str) -> None:
    async def work() -> None:
        pool = Pool(pg_database)
        group = Group("x")
        group.add(
            Statement("select set_config($1, $2, true)", result=NONE), (b"TimeZone", b"Asia/Tokyo")
        )
        group.add(Statement("select '2024-01-01Z'::timestamptz as t", result=JSON))
        assert (await pool.run(group))[1].body == b'[{"t":"2024-01-01T09:00:00+09:00"}]'
        plain = Group("x")
        plain.add(Statement("select '2024-01-01Z'::timestamptz as t", result=JSON))
        assert (await pool.run(plain))[0].body == b'[{"t":"2024-01-01T00:00:00+00:00"}]'
        await pool.close()

    asyncio.run(work())


def test_values_asked_of_libpq_are_those_where_it_keeps_them(pg_database: str) -> None:
    wide = ", ".join(f"nullif(g, 5) as i{n}, nullif('', repeat('x', g - 4)) as \"t{n}\u00e9\""
                     for n in range(40))  # fmt: skip
    texts = (f"select {wide} from generate_series(1, 9) g", "select null as a where false",
             "select null as a, '' as b, 0 as c")  # fmt: skip

    async def bodies() -> list[bytes | Spool]:
        pool = Pool(pg_database)
        try:
            found = []
            for strip in (False, True):
                group = Group("r")
                for text in texts:
                    group.add(Statement(text, result=JSON, strip_nulls=strip))
                found += [result.body for result in await pool.run(group)]
            return found
        finally:
            await pool.close()

    assert read_in_place(True)
    direct = asyncio.run(bodies())
    try:
        assert not read_in_place(False)
        assert asyncio.run(bodies()) == direct
    finally:
        read_in_place(True)
    assert direct[2] == b'[{"a":null,"b":"","c":0}]'
    assert direct[5] == b'[{"b":"","c":0}]'


def test_strip_nulls(pg_database: str) -> None:
    sql = (
        'select 1 as a, null::int as b, \'{"x": null, "y":1}\'::json as c, '
        "'{\"x\": null}'::jsonb as d, array[null,2] as e, row(1,null) as f, null::json as g"
    )
    expected = f"select json_strip_nulls(to_json(r))::text from ({sql}) r"

    async def work() -> None:
        pool = Pool(pg_database)
        group = Group("x")
        group.add(Statement(sql, result=JSON, strip_nulls=True))
        group.add(Statement(expected, result=VALUES))
        group.add(Statement("select null as a", result=JSON, strip_nulls=True))
        group.add(Statement("select 1 as a where false", result=JSON))
        group.add(Statement("select", result=JSON))
        results = await pool.run(group)
        assert results[0].body == b"[" + results[1].values[0][0] + b"]"
        assert [r.body for r in results[2:]] == [b"[{}]", b"[]", b"[{}]"]
        await pool.close()

    asyncio.run(work())


def test_writes_that_are_wrapped(typed_database: str) -> None:
    with psycopg.connect(typed_database, autocommit=True) as connection:
        connection.execute("create table t (id int generated always as identity, p point, m mood)")
    statements = [
        "insert into t (p, m) values ('(1,2)', 'sad') returning id, p, m",
        '-- a remark\nupdate t set m = \'happy é\' returning p, m as "select ("""',
        "with x as (select 5 as id) update t set id = default from x where t.id < x.id "
        "returning t.p;",
        "with a as (insert into t (p) values (point(3, 4)) returning *), b as ( select ')' as q)\n"
        "select a.p, b.q /* ) select */ from a, b",
        "delete from t returning p",
    ]

    async def work() -> list[bytes]:
        pool = Pool(typed_database)
        bodies = []
        for sql in statements:
            group = Group("x")
            group.add(Statement(sql, result=JSON))
            (result,) = await pool.run(group)
            bodies.append(result.body)
        await pool.close()
        return bodies

    assert asyncio.run(work()) == [
        b'[{"id":1,"p":"(1,2)","m":"sad"}]',
        '[{"p":"(1,2)","select (\\"":"happy é"}]'.encode(),
        b'[{"p":"(1,2)"}]',
        b'[{"p":"(3,4)","q":")"}]',
        b'[{"p":"(1,2)"},{"p":"(3,4)"}]',
    ]


def test_float_borders_on_the_server(pg_database: str) -> None:
    """Values around powers of two and ten, where shortest digits are hardest."""
    bits = [
        struct.unpack("!q", struct.pack("!d", 2.0**e))[0] + d
        for e in range(-1074, 1024, 7)
        for d in (-1, 0, 1)
        if e > -1070
    ]
    bits += [struct.unpack("!q", struct.pack("!d", float(f"1e{e}")))[0] for e in range(-300, 309)]
    numbers = [struct.unpack("!d", struct.pack("!q", b))[0] for b in bits]
    types = TypeTable()
    literal = "{" + ",".join(map(repr, numbers)) + "}"
    with psycopg.connect(pg_database) as connection:
        rows = connection.execute(
            "select to_json(v)::text from unnest(%s::float8[]) v", (literal,)
        ).fetchall()
    ours = [types.encode(701, struct.pack("!d", n)).decode() for n in numbers]
    assert ours == [row[0] for row in rows]
