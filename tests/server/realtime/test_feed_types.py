"""Every type as the feed tells it, byte for byte as the server's own to_json writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from server.node.embedded_pg import EmbeddedPostgres
from tests.server.realtime.feed_world import World, feeding, owner
from tests.server.test_rows_on_server import SLOW_OK, TYPES, VALUES_OF
from tests.servers import PROGRAMS

TYPES_HERE = {
    **{name: values for name, values in VALUES_OF.items() if name != "vote"},
    "hstore": st.sampled_from(['"a"=>"1", "b"=>NULL', "", '"q\\"\\\\"=>"é\\n"']),
    "deep": st.sampled_from(
        ['("(1,x)","{""(2,\\\\""y\\\\"")"",NULL}",sad)', "(,,)", '("(,"""")",{},"o""k")']
    ),
    "few": st.sampled_from(['{sad,NULL,"o\\"k"}', "{}"]),
    "box": st.just("(2,2),(1,1)"),
    "ltree": st.just("a.b.c"),
    "tstzrange": st.just('["2024-01-01 00:00:00+00","2024-01-02 00:00:00+00")'),
}
NAMES = list(TYPES_HERE)
OWN = """
create type deep as (p pair, list pair[], m mood);
create domain few as mood[];
"""
NO_ARRAYS = {"int2vector", "few"}


class Compared:
    """A table of all types, a feed of it, and a loop that keeps both."""

    def __init__(self, world: World) -> None:
        self.project = world.project()
        with world.admin(self.project) as admin:
            admin.execute("create extension hstore; create extension ltree")
        self.names = NAMES
        columns = []
        for number, name in enumerate(self.names):
            columns.append(f"s{number} {name}")
            if name not in NO_ARRAYS:
                columns.append(f"a{number} {name}[]")
        with owner(self.project) as connection:
            connection.execute(TYPES.encode())
            connection.execute(OWN.encode())
            connection.execute(
                f"create table v (id int generated always as identity,{','.join(columns)})".encode()
            )
            connection.execute("alter table v replica identity full")
        self.runner = asyncio.Runner()
        self.context = feeding(self.project, "public.v")
        self.feed, self.kept = self.runner.run(self.context.__aenter__())

    def close(self) -> None:
        self.runner.run(self.context.__aexit__(None, None, None))
        self.runner.close()

    def compare(self, values: dict[str, list[str | None]]) -> None:
        columns, shown, parameters = [], [], []
        for number, name in enumerate(self.names):
            columns.append(f"s{number}")
            shown.append(f"(%s::text[])[1]::{name}")
            parameters.append(values[name])
            if name not in NO_ARRAYS:
                columns.append(f"a{number}")
                shown.append(f"(select array_agg(x::{name}) from unnest(%s::text[]) x)")
                parameters.append(values[name])
        self.kept.changes.clear()
        with owner(self.project) as connection:
            try:
                connection.execute(
                    f"insert into v ({', '.join(columns)}) values ({', '.join(shown)})".encode(),
                    parameters,
                )
            except (
                psycopg.errors.InvalidDatetimeFormat, psycopg.errors.IntervalFieldOverflow,
            ):  # fmt: skip
                if PROGRAMS:  # an older server's intervals are shorter
                    reject()
                raise
            (expected,) = connection.execute("select to_json(v)::text from v").fetchall()[0]
            connection.execute("update v set s0 = s0")
            connection.execute("delete from v")
        self.runner.run(self.kept.until(lambda: len(self.kept.changes) >= 3))
        insert, update, delete = self.kept.changes
        self.same(insert.record_json, expected)
        self.same(update.record_json, expected)
        self.same(update.old_json, expected)
        self.same(delete.old_json, expected)

    @staticmethod
    def same(found: bytes | None, expected: str) -> None:
        assert found is not None
        assert found.decode() == expected


@pytest.fixture(scope="module")
def compared(
    pg_cluster: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compared]:
    made = Compared(World(pg_cluster, tmp_path_factory.mktemp("types")))
    yield made
    made.close()


def whole(name: str) -> st.SearchStrategy[list[str | None]]:
    return st.lists(st.none() | TYPES_HERE[name], min_size=1, max_size=3)


@SLOW_OK
@given(st.fixed_dictionaries({name: whole(name) for name in NAMES}))
def test_equal_to_json(compared: Compared, values: dict[str, list[str | None]]) -> None:
    compared.compare(values)
