"""The change feed over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from server.base.project import Project
from server.node.embedded_pg import EmbeddedPostgres
from tests.server.realtime.feed_world import World, feeding, owner, run_sql


@pytest.fixture(scope="module")
def world(pg_cluster: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(pg_cluster, tmp_path_factory.mktemp("feed"))


@pytest.fixture(scope="module")
def shared(world: World) -> Project:
    return world.project()


@pytest.fixture
def project(shared: Project) -> Iterator[Project]:
    """The module's project, emptied afterwards."""
    yield shared
    with owner(shared) as connection:
        rows = connection.execute(
            "select format('drop table %I cascade', relname) from pg_class"
            " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
            " and not relispartition"
        ).fetchall()
        for (statement,) in rows:
            connection.execute(statement)


def test_changes_in_commit_order(project: Project) -> None:
    run_sql(project, "create table a (id int primary key, t text)")

    async def work() -> None:
        async with feeding(project, "public.a") as (feed, kept):
            assert feed.states == {"public.a": "all"}
            with owner(project) as one, owner(project) as two:
                one.execute("begin")
                one.execute("insert into a values (1, 'first begun')")
                two.execute("insert into a values (2, 'first committed')")
                one.execute("update a set t = 'x' where id = 1")
                two.execute("begin")
                two.execute("insert into a values (3, 'never')")
                two.execute("rollback")
                one.execute("commit")
                one.execute("delete from a where id = 1")
            await kept.until(lambda: len(kept.changes) >= 4)
            assert [(c.event, c.record, c.old) for c in kept.changes] == [
                ("INSERT", {"id": 2, "t": "first committed"}, None),
                ("INSERT", {"id": 1, "t": "first begun"}, None),
                ("UPDATE", {"id": 1, "t": "x"}, {"id": 1}),
                ("DELETE", None, {"id": 1}),
            ]
            positions = [c.position for c in kept.changes]
            assert positions == sorted(set(positions))
            assert {c.source for c in kept.changes} == {"public.a"}

    asyncio.run(work())


def test_messages_belong_to_their_transaction(project: Project) -> None:
    run_sql(project, "create table m (id int primary key)")

    async def work() -> None:
        async with feeding(project, "public.m") as (_, kept):
            with owner(project) as connection:
                connection.execute("begin")
                connection.execute("insert into m values (1)")
                connection.execute("""select realtime.publish('room:1', 'chat', '{"é": "\\n"}')""")
                connection.execute("insert into m values (2)")
                connection.execute("commit")
                connection.execute("begin")
                connection.execute("select realtime.publish('room:1', 'never')")
                connection.execute("rollback")
                connection.execute(
                    "select realtime.to_user('11111111-1111-4111-8111-111111111111', 'hi', '3')"
                )
            await kept.until(lambda: len(kept.all) >= 4)
            first, message, second, personal = kept.all
            assert (first, second) == tuple(kept.changes)
            assert (message, personal) == tuple(kept.messages)
            assert (message.channel, message.event) == ("room:1", "chat")
            assert message.payload_json == '{"é": "\\n"}'.encode()
            assert personal.channel == "user:11111111-1111-4111-8111-111111111111"
            assert personal.payload_json == b"3"
            assert first.position < message.position < second.position < personal.position

    asyncio.run(work())


def test_who_may_publish_and_what(project: Project) -> None:
    call = "select realtime.publish({}, {}, {})"
    bad = [
        ("'a b'", "'e'", "'1'"), ("''", "'e'", "'1'"), ("null", "'e'", "'1'"),
        (f"'{'a' * 129}'", "'e'", "'1'"), ("'c'", "''", "'1'"), ("'c'", "E'a\\nb'", "'1'"),
        ("'c'", "'e'", "to_jsonb(repeat('x', 40000))"),
    ]  # fmt: skip
    with owner(project) as connection:
        for values in bad:
            with pytest.raises((psycopg.errors.InvalidParameterValue,
                                psycopg.errors.ProgramLimitExceeded)):  # fmt: skip
                connection.execute(call.format(*values).encode())
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            connection.execute("select realtime.to_user(null, 'e')")
        for role in ("anon", "authenticated"):
            connection.execute(f"set role {role}")
            for statement in (
                call.format("'c'", "'e'", "'1'"),
                "select realtime.to_user(gen_random_uuid(), 'e')",
                "select pg_logical_emit_message(true, 'ichibase', 'c')",
                "select ichibase.publish_tables(null)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
            connection.execute("reset role")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select pg_logical_emit_message(true, 'ichibase', 'c')")
        connection.execute("set role service_role")
        connection.execute(call.format("'c'", "'e'", "null").encode())


def test_nothing_is_kept_for_nobody(project: Project) -> None:
    slots = "select slot_name from pg_replication_slots where slot_name like %s"

    async def work() -> None:
        async with feeding(project) as (feed, kept):
            with owner(project) as connection:
                connection.execute("select realtime.publish('c', 'e', '1')")
                assert connection.execute(slots, (feed.slot_name,)).fetchall()
            await kept.until(lambda: len(kept.messages) == 1)
        with owner(project) as connection:
            assert not connection.execute(slots, (feed.slot_name,)).fetchall()

    asyncio.run(work())
