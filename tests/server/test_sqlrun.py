"""The owner's SQL over a real database: values, limits, deadlines, what is refused."""

import asyncio
import time

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.control import sqlrun
from tests.timing import within


def run(dsn, text, **options):
    return asyncio.run(sqlrun.execute(dsn, text, **options))


def refused(dsn, text, **options):
    with pytest.raises(ApiError) as caught:
        run(dsn, text, **options)
    return caught.value


def test_values_are_json_where_it_has_them_and_text_otherwise(pg_database):
    found = run(
        pg_database,
        "create type mood as enum ('well'); "
        "select 1::int2, 9007199254740993::int8, 0.1::float4, 'NaN'::float8, '-Infinity'::float8,"
        """ true, null::bool, '{"a":[1]}'::jsonb, 1.50::numeric, '{1,2}'::int[], 'well'::mood,"""
        " '\\x00'",
    )
    assert [result["command"] for result in found] == ["CREATE TYPE", "SELECT 1"]
    assert found[1]["rows"] == [
        [1, "9007199254740993", 0.1, "NaN", "-Infinity", True, None, {"a": [1]}, "1.50", "{1,2}",
         "well", "\\x00"]
    ]  # fmt: skip
    assert [c["type"] for c in found[1]["columns"]][-3:] == ["_int4", "mood", "text"]


def test_an_empty_result_still_has_its_columns(pg_database):
    assert run(pg_database, "select 1 as a where false")[0] == {
        "command": "SELECT 0", "row_count": 0, "columns": [{"name": "a", "type": "int4"}],
        "rows": [], "truncated": False,
    }  # fmt: skip
    assert run(pg_database, "") == []
    assert run(pg_database, ";;") == []


def test_long_and_wide_results_are_cut_but_counted(pg_database):
    found = run(pg_database, "select g from generate_series(1, 10005) g; select 1")
    assert (len(found[0]["rows"]), found[0]["row_count"]) == (10_000, 10_005)
    assert found[0]["truncated"] is True
    assert found[1]["rows"] == [[1]]
    wide = run(pg_database, "select repeat('x', 10000000) from generate_series(1, 6)")[0]
    assert (len(wide["rows"]), wide["row_count"], wide["truncated"]) == (3, 6, True)


def test_an_error_takes_the_whole_text_back_and_names_its_place(pg_database):
    error = refused(pg_database, "create table a (id int);\n  select * from ünknown, nope")
    assert (error.status, error.code) == (400, "sql_error")
    assert (error.details["line"], error.details["column"]) == (2, 17)
    assert error.details["sqlstate"] == "42P01"
    assert run(pg_database, "select to_regclass('a')")[0]["rows"] == [[None]]


@pytest.mark.parametrize(
    "text",
    ["copy (select 1) to stdout", "create table c (id int); copy c from stdin"],
)
def test_copy_over_the_connection_is_refused(pg_database, text):
    assert refused(pg_database, text).code == "copy_not_supported"


@pytest.mark.parametrize(
    "text",
    ["select pg_sleep(30)", "set statement_timeout = 0; select pg_sleep(30)",
     "set statement_timeout = 0; select g from generate_series(1, 1000000000) g"],
)  # fmt: skip
def test_nothing_outlives_its_time(pg_database, text):
    began = time.monotonic()
    error = refused(pg_database, text, timeout_ms=300)
    assert (error.status, error.code) == (408, "statement_timeout")
    assert within(time.monotonic() - began, 8)
    with psycopg.connect(pg_database, autocommit=True) as admin:
        left = "select count(*) from pg_stat_activity where application_name = 'ichibase sql'"
        deadline = time.monotonic() + 60
        while admin.execute(left).fetchone() != (0,) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert admin.execute(left).fetchone() == (0,)


def test_a_session_that_the_server_ends_says_so(pg_database):
    error = refused(pg_database, "select pg_terminate_backend(pg_backend_pid())")
    assert (error.status, error.code) == (503, "session_ended")


def test_a_migration_that_ends_its_transaction_is_not_recorded(pg_database):
    with psycopg.connect(pg_database, autocommit=True) as admin:
        admin.execute("create schema ichibase")
        admin.execute(
            "create table ichibase.migrations (name text primary key, checksum text not null,"
            " applied_at timestamptz not null default now())"
        )
    with pytest.raises(ApiError) as caught:
        asyncio.run(sqlrun.migrate(pg_database, "001.sql", "create table x (id int); commit"))
    assert caught.value.code == "transaction_control"
    late = (
        "create table p (id int primary key); create table q (id int references p "
        "deferrable initially deferred); insert into q values (1)"
    )
    with pytest.raises(ApiError) as caught:
        asyncio.run(sqlrun.migrate(pg_database, "002.sql", late))
    assert (caught.value.status, caught.value.details["sqlstate"]) == (400, "23503")
    assert asyncio.run(sqlrun.applied(pg_database)) == []
    away = "create table y (id int); set search_path = pg_temp"
    assert asyncio.run(sqlrun.migrate(pg_database, "003.sql", away)) is True
    assert [m["name"] for m in asyncio.run(sqlrun.applied(pg_database))] == ["003.sql"]


def test_a_transaction_that_is_left_open_is_rolled_back_whatever_it_answered(pg_database):
    run(pg_database, "create table kept (id int primary key)")
    late = "create table late (id int references kept deferrable initially deferred)"
    run(pg_database, late)
    for text in (
        "begin; insert into kept values (1)",
        "begin; insert into kept values (1); select 1",
        "begin; insert into late values (2)",  # which could not be committed
    ):
        assert run(pg_database, text)[0]["command"] == "BEGIN"
    assert run(pg_database, "select * from kept")[0]["rows"] == []


@pytest.mark.parametrize("encoding", ["EUC_TW", "SQL_ASCII", "LATIN1"])
def test_a_text_may_change_the_encoding(pg_database, encoding):
    found = run(pg_database, f"set client_encoding = '{encoding}'; select 1 as one")
    assert found[1]["columns"] == [{"name": "one", "type": "int4"}]
    with psycopg.connect(pg_database, autocommit=True) as admin:
        admin.execute("create schema if not exists ichibase")
        admin.execute(
            "create table if not exists ichibase.migrations (name text primary key, checksum text "
            "not null, applied_at timestamptz not null default now())"
        )
    text = f"set client_encoding = '{encoding}'; create table encoded (id int)"
    assert asyncio.run(sqlrun.migrate(pg_database, "encoding.sql", text)) is True


def test_two_deployments_at_once_apply_a_migration_once(pg_database):
    with psycopg.connect(pg_database, autocommit=True) as admin:
        admin.execute("create schema ichibase")
        admin.execute(
            "create table ichibase.migrations (name text primary key, checksum text not null,"
            " applied_at timestamptz not null default now())"
        )

    async def both():
        text = "create table once (id int); select pg_sleep(0.2)"
        return await asyncio.gather(
            *(sqlrun.migrate(pg_database, "001.sql", text) for _ in range(4))
        )

    assert sorted(asyncio.run(both())) == [False, False, False, True]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.text(max_size=40), st.text("select 1;'\"$-/*(),:\\\n", max_size=30)))
def test_any_text_is_answered(pg_database, text):
    try:
        run(pg_database, text, timeout_ms=2000)
    except ApiError as error:
        assert 400 <= error.status < 500, error.message
