"""The pure planner: what SQL a query string becomes, against a catalog made by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.rest.ast import Field, Filter, JsonStep, Logic, Query, SelectField
from ichicore.rest.call import CALLED, Call, choose
from ichicore.rest.catalog import (
    Catalog,
    Column,
    Junction,
    Param,
    Relationship,
    Routine,
    Table,
)
from ichicore.rest.ident import literal, qualify, quote, type_name
from ichicore.rest.mutate import CHANGED, Mutation, payload_fields
from ichicore.rest.query import parse
from ichicore.rest.select import count_sql, read_sql
from ichicore.rest.sql import bind
from ichicore.rest.tree import read_tree
from tests.oracle.rest_filters import Sql


def _table(name: str, columns: dict[str, str], key: tuple[str, ...] = ("id",)) -> Table:
    return Table(
        schema="api",
        name=name,
        primary_key=key,
        columns={
            column: Column(name=column, type=type_, nominal_type=type_, type_oid=0)
            for column, type_ in columns.items()
        },
    )


def _link(source: str, target: str, kind: str, name: str, *pair: str) -> Relationship:
    return Relationship(
        table=("api", source), foreign=("api", target), kind=kind, constraint=name, columns=(pair,)
    )


TABLES = [
    _table("films", {"id": "integer", "title": "text", "info": "jsonb", "director_id": "integer"}),
    _table("directors", {"id": "integer", "name": "text", "born": "date"}),
    _table("actors", {"id": "integer", "name": "text"}),
    _table("roles", {"film_id": "integer", "actor_id": "integer"}, ("film_id", "actor_id")),
    _table("shades", {"id": "integer", "color": "color"}),
]
LINKS = [
    _link("films", "directors", "m2o", "films_director", "director_id", "id"),
    _link("directors", "films", "o2m", "films_director", "id", "director_id"),
    Relationship(
        table=("api", "films"),
        foreign=("api", "actors"),
        kind="m2m",
        junction=Junction(
            table=("api", "roles"),
            constraint1="roles_film",
            constraint2="roles_actor",
            source_columns=(("id", "film_id"),),
            target_columns=(("id", "actor_id"),),
        ),
    ),
]
CATALOG = Catalog(
    schemas=("api",),
    tables={(table.schema, table.name): table for table in TABLES},
    relationships={
        (origin, "api"): tuple(link for link in LINKS if link.table == origin)
        for origin in {link.table for link in LINKS}
    },
    routines={
        ("api", "add"): (
            Routine(
                schema="api",
                name="add",
                params=(Param(name="a", type="integer"), Param(name="b", type="integer")),
                return_type=("pg_catalog", "int4"),
            ),
        )
    },
    representations={("color", "json"): "api.color_out", ("text", "color"): "api.color_in"},
)


def _read(query: str, table: str = "films", **facts: object) -> tuple[str, list[object]]:
    tree = read_tree(parse(query), CATALOG, "api", table, **facts)  # type: ignore[arg-type]
    sql, layout = read_sql(tree)
    return sql, list(layout)


def test_reads_all_columns() -> None:
    assert _read("") == ('SELECT "api"."films".* FROM "api"."films"', [])


def test_reads_by_key() -> None:
    sql, layout = _read("select=title&id=eq.5")
    assert sql == 'SELECT "api"."films"."title" FROM "api"."films" WHERE "api"."films"."id" = $1'
    assert layout == [0]


def test_embeds_one_row_as_an_object() -> None:
    sql, _ = _read("select=title,directors(name)")
    assert sql == (
        'SELECT "api"."films"."title", row_to_json("films_directors_1".*) AS "directors" '
        'FROM "api"."films" LEFT JOIN LATERAL (SELECT "directors_1"."name" '
        'FROM "api"."directors" AS "directors_1" '
        'WHERE "directors_1"."id" = "api"."films"."director_id") AS "films_directors_1" ON TRUE'
    )


def test_embeds_many_rows_as_an_array_and_filters_them_inside() -> None:
    sql, layout = _read("select=name,films(title)&films.id=gt.1&films.limit=2", "directors")
    assert 'COALESCE("directors_films_1"."directors_films_1", \'[]\') AS "films"' in sql
    assert 'WHERE "films_1"."id" > $1 AND "films_1"."director_id" = "api"."directors"."id"' in sql
    assert sql.count("LIMIT $2") == 1
    assert layout == [0, 1]


def test_embeds_through_a_junction() -> None:
    sql, _ = _read("select=title,actors(name)")
    assert 'FROM "api"."actors", "api"."roles" WHERE' in sql
    assert '"api"."films"."id" = "api"."roles"."film_id"' in sql


def test_an_inner_embed_without_rows_drops_the_parent() -> None:
    sql, _ = _read("select=name,films!inner(title)", "directors")
    assert "INNER JOIN LATERAL" in sql
    assert 'ON "directors_films_1"."directors_films_1" IS NOT NULL' in sql


def test_a_spread_gives_its_columns_to_the_parent() -> None:
    sql, _ = _read("select=title,...directors(director:name)")
    assert sql.startswith('SELECT "api"."films"."title", "films_directors_1"."director" FROM')


def test_a_spread_of_many_rows_gives_arrays_in_order() -> None:
    sql, _ = _read("select=name,...films(title)&films.order=id.desc", "directors")
    assert 'json_agg("directors_films_1"."title" ORDER BY' in sql
    assert '"films_1"."id" AS "directors_films_1_id_1"' in sql


def test_an_aggregate_groups_by_everything_else() -> None:
    sql, _ = _read("select=director_id,id.sum()", aggregates=True)
    assert sql == (
        'SELECT "api"."films"."director_id", SUM("api"."films"."id") FROM "api"."films" '
        'GROUP BY "api"."films"."director_id"'
    )


def test_an_aggregate_of_a_spread_is_made_by_the_parent() -> None:
    sql, _ = _read("select=title,...directors(born.max())", aggregates=True)
    assert 'MAX("films_directors_1"."max") AS "max"' in sql
    assert 'GROUP BY "api"."films"."title"' in sql


def test_a_null_filter_on_an_embed_tests_the_joined_row() -> None:
    sql, _ = _read("select=title,directors(name)&directors=not.is.null")
    assert 'WHERE "films_directors_1" IS DISTINCT FROM NULL' in sql


def test_the_count_leaves_joins_out() -> None:
    tree = read_tree(
        parse("select=title,directors!inner(name)&directors.name=eq.x"), CATALOG, "api", "films"
    )
    sql, layout = count_sql(tree)
    assert "JOIN" not in sql
    assert sql.startswith('SELECT count(*) FROM (SELECT 1 FROM "api"."films" WHERE EXISTS (SELECT')
    assert list(layout) == [0]


def test_representations_apply_to_columns_and_values() -> None:
    sql, _ = _read("color=eq.red", "shades")
    assert 'api.color_out("api"."shades"."color") AS "color"' in sql
    assert 'WHERE "api"."shades"."color" = api.color_in($1)' in sql


def test_a_row_cap_holds_on_every_level() -> None:
    sql, layout = _read("select=name,films(title)&films.limit=9", "directors", max_rows=5)
    assert sql.endswith("LIMIT $2 OFFSET $3")
    assert layout[0] == (0, 5)
    assert bind(layout, [b"9"], None, 5, 0) == (b"5", b"5", b"0")
    assert bind(layout, [b"3"], None, 5, 0)[0] == b"3"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("select=producers(name)", "PGRST200"),
        ("directors.name=eq.x", "PGRST108"),
        ("select=actors(name)&order=actors(name)", "PGRST118"),
        ("select=id.sum()", "PGRST123"),
    ],
)
def test_refuses(query: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        _read(query)
    assert caught.value.code == code
    assert 300 <= caught.value.status < 500


def test_long_alias_stays_within_what_postgres_keeps() -> None:
    sql, _ = _read(f"select={'x' * 80}:directors(name)")
    assert all(len(name) <= 63 for name in re.findall(r'AS "([^"]+)" ON TRUE', sql))


def test_inserts_from_one_parameter() -> None:
    table = CATALOG.table("api", "directors")
    fields = payload_fields(CATALOG, table, ("id", "name"))
    sql, layout = Mutation(CATALOG, table, "insert", fields=fields, is_object=True).silent()
    assert sql == (
        'INSERT INTO "api"."directors"("id", "name") SELECT "pgrst_body"."id", "pgrst_body"."name" '
        'FROM json_to_record($1::json) AS "pgrst_body"("id" integer, "name" text)'
    )
    assert list(layout) == [-1]
    assert "RETURNING" not in sql  # which would need the right to read


def test_updates_and_returns_what_was_selected() -> None:
    table = CATALOG.table("api", "directors")
    query = parse("select=name&id=eq.1", mutation=True)
    mutation = Mutation(
        CATALOG,
        table,
        "update",
        fields=payload_fields(CATALOG, table, ("name",)),
        conditions=[condition for _, condition in query.filters],
        is_object=True,
    )
    tree = read_tree(
        query, CATALOG, "api", "directors", filter_root=False, ranges=False,
        source=(CHANGED, "directors"),
    )  # fmt: skip
    prefix, sql, layout = mutation.rows(tree)
    assert prefix is None
    assert sql == (
        'UPDATE "api"."directors" SET "name" = "pgrst_body"."name" '
        'FROM json_to_record($1::json) AS "pgrst_body"("name" text) '
        'WHERE "api"."directors"."id" = $2 RETURNING "api"."directors"."name"'
    )
    assert list(layout) == [-1, 0]


def test_returned_embeds_read_from_the_changed_rows() -> None:
    table = CATALOG.table("api", "films")
    tree = read_tree(
        parse("select=title,directors(name)"), CATALOG, "api", "films", filter_root=False,
        ranges=False, source=(CHANGED, "films"),
    )  # fmt: skip
    prefix, sql, _ = Mutation(CATALOG, table, "delete").rows(tree)
    assert prefix == (
        '"pgrst_source" AS (DELETE FROM "api"."films" '
        'RETURNING "api"."films"."director_id", "api"."films"."title")'
    )
    assert 'FROM "pgrst_source" AS "films"' in sql
    assert '"directors_1"."id" = "films"."director_id"' in sql


def test_an_unknown_column_of_a_payload() -> None:
    with pytest.raises(ApiError) as caught:
        payload_fields(CATALOG, CATALOG.table("api", "films"), ("nope",))
    assert (caught.value.status, caught.value.code) == (400, "PGRST204")


def test_calls_with_arguments_of_the_url() -> None:
    query = parse("a=1&b=2", rpc=True)
    arguments = [(k, v, slot) for (k, v), slot in zip(query.params, query.param_slots, strict=True)]
    routine = choose(
        CATALOG, "api", "add", {"a", "b"}, is_post=False, content_type="application/json"
    )
    sql, layout = Call(CATALOG, routine, names={"a", "b"}, arguments=arguments).value()
    assert sql == (
        'SELECT coalesce(to_json("api"."add"("a" := $1::integer, "b" := $2::integer))::text, '
        "'null')"
    )
    assert list(layout) == query.param_slots


def test_calls_with_arguments_of_the_payload() -> None:
    routine = CATALOG.functions("api", "add")[0]
    tree = read_tree(parse("select=x"), CATALOG, "api", "add", source=(CALLED, "add"))
    prefix, sql, total, layout = Call(CATALOG, routine, names={"a", "b"}).rows(tree)
    assert "LATERAL" in prefix
    assert sql == 'SELECT "add"."x" FROM "pgrst_call" AS "add"'
    assert total == "null"
    assert list(layout) == [-1]


@given(st.text())
def test_a_quoted_name_is_one_token(name: str) -> None:
    text = quote(name)
    assert text[0] == text[-1] == '"'
    assert '"' not in text[1:-1].replace('""', "")
    assert text[1:-1].replace('""', '"') == name.split("\0")[0]
    assert qualify("", name) == text


@given(st.text())
def test_a_literal_is_one_token(text: str) -> None:
    made = literal(text).strip()
    body = made[made.index("'") + 1 : -1].replace("''", "")
    assert "'" not in body
    if "\\" in body:
        assert made.startswith("E'")
        assert "\\" not in body.replace("\\\\", "")


@given(st.text(max_size=20))
def test_a_cast_is_a_type_name_or_refused(text: str) -> None:
    try:
        assert type_name(text) == text
    except ApiError as error:
        assert error.status == 400
    else:
        assert not set(text) & set("\"'();,:-/*\\\0")


def test_a_value_with_a_nul_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        bind([0], [b"a\0b"], None, None, None)
    assert (caught.value.status, caught.value.code) == (400, "22021")


# --- against the slow twin ---------------------------------------------------------------------

NAMES = st.sampled_from(["id", "title", "info", "director_id", "no such", 'qu"ote'])
STEPS = st.builds(JsonStep, st.booleans(), st.sampled_from(["a", "b c", "-1", "7"]), st.booleans())
FIELDS = st.builds(Field, NAMES, st.lists(STEPS, max_size=2).map(tuple))
COMPARISONS = ["eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch"]


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    op = draw(
        st.sampled_from(
            [*COMPARISONS, "isdistinct", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj", "in",
             "is", "fts", "plfts", "phfts", "wfts"]
        )
    )  # fmt: skip
    quantifier = draw(st.sampled_from([None, "any", "all"])) if op in COMPARISONS else None
    config = draw(st.sampled_from([None, "english"])) if op.endswith("fts") else None
    value = draw(st.sampled_from(["null", "not_null", "true", "false", "unknown"]))
    slot = -1 if op == "is" else draw(st.integers(0, 99))
    return Filter(
        draw(FIELDS), op, value, negated=draw(st.booleans()), quantifier=quantifier,
        config=config, slot=slot,
    )  # fmt: skip


TREES = st.recursive(
    filters(),
    lambda inner: st.builds(
        Logic, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(TREES, min_size=1, max_size=4))
def test_conditions_equal_the_twin(parts: list[Filter | Logic]) -> None:
    query = Query(
        select=(SelectField(Field("*")),),
        filters=[((), part) for part in parts if isinstance(part, Filter)],
        logic=[((), part) for part in parts if isinstance(part, Logic)],
    )
    tree = read_tree(query, CATALOG, "api", "films")
    sql, layout = read_sql(tree)
    columns = CATALOG.table("api", "films").columns
    twin = Sql('"api"."films"', {name: column.type for name, column in columns.items()})
    ordered = sorted(parts, key=lambda part: isinstance(part, Logic))
    expected = " AND ".join(twin.logic(part) for part in ordered)
    assert sql == f'SELECT "api"."films".* FROM "api"."films" WHERE {expected}'
    assert list(layout) == twin.layout
