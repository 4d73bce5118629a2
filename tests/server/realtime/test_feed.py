"""The change feed over a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from ichicore.live.change import Change
from server.base.project import Project
from server.control import records
from server.node.embedded_pg import EmbeddedPostgres
from tests.server.realtime.feed_world import Kept, World, feeding, owner, run_sql


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


def test_old_values_by_replica_identity(project: Project) -> None:
    run_sql(
        project,
        "create table d (id int primary key, a text)",
        "create table f (id int primary key, a text)",
        "alter table f replica identity full",
        "create table i (id int primary key, code text not null, a text)",
        "create unique index by_code on i (code)",
        "alter table i replica identity using index by_code",
        "create table n (id int, a text)",
    )

    async def work() -> None:
        names = ("public.d", "public.f", "public.i", "public.n")
        async with feeding(project, *names) as (feed, kept):
            assert feed.states == {
                "public.d": "all", "public.f": "all", "public.i": "all", "public.n": "inserts",
            }  # fmt: skip
            run_sql(
                project,
                "insert into d values (1, 'x')", "update d set a = 'y'", "update d set id = 2",
                "delete from d",
                "insert into f values (1, 'x')", "update f set a = 'y'", "delete from f",
                "insert into i values (1, 'c', 'x')", "update i set a = 'y'",
                "update i set code = 'e'", "delete from i",
                "insert into n values (1, 'x')", "update n set a = 'y'", "delete from n",
                "insert into d values (9, 'end')",
            )  # fmt: skip
            await kept.until(lambda: bool(kept.changes) and kept.changes[-1].record == {
                "id": 9, "a": "end"})  # fmt: skip
            shown = [(c.source[7:], c.event[0], c.record, c.old) for c in kept.changes]
            assert shown == [
                ("d", "I", {"id": 1, "a": "x"}, None),
                ("d", "U", {"id": 1, "a": "y"}, {"id": 1}),
                ("d", "U", {"id": 2, "a": "y"}, {"id": 1}),
                ("d", "D", None, {"id": 2}),
                ("f", "I", {"id": 1, "a": "x"}, None),
                ("f", "U", {"id": 1, "a": "y"}, {"id": 1, "a": "x"}),
                ("f", "D", None, {"id": 1, "a": "y"}),
                ("i", "I", {"id": 1, "code": "c", "a": "x"}, None),
                ("i", "U", {"id": 1, "code": "c", "a": "y"}, {"code": "c"}),
                ("i", "U", {"id": 1, "code": "e", "a": "y"}, {"code": "c"}),
                ("i", "D", None, {"code": "e"}),
                ("n", "I", {"id": 1, "a": "x"}, None),
                ("d", "I", {"id": 9, "a": "end"}, None),
            ]

    asyncio.run(work())


def test_long_values_that_did_not_change(project: Project) -> None:
    long = "select string_agg(md5(i::text), '') from generate_series(1, 300) i"
    run_sql(
        project,
        "create table toast (id int primary key, long text, n int)",
        "alter table toast alter column long set storage external",
        "create table toast_full (id int primary key, long text, n int)",
        "alter table toast_full alter column long set storage external",
        "alter table toast_full replica identity full",
    )

    async def work() -> None:
        async with feeding(project, "public.toast", "public.toast_full") as (_, kept):
            for table in ("toast", "toast_full"):
                run_sql(
                    project,
                    f"insert into {table} select 1, ({long}), 1",
                    f"update {table} set n = 2",
                    f"update {table} set long = 'short'",
                )
            await kept.until(lambda: len(kept.changes) >= 6)
            inserted, updated, third, *full = kept.changes
            assert inserted.record is not None
            assert len(inserted.record["long"]) == 9600
            assert updated.record == {"id": 1, "n": 2}
            assert third.record == {"id": 1, "long": "short", "n": 2}
            assert full[1].record is not None
            assert len(full[1].record["long"]) == 9600
            assert full[1].old == {**full[1].record, "n": 1}

    asyncio.run(work())


def test_truncation_is_told(project: Project) -> None:
    run_sql(project, "create table t1 (id int primary key)", "create table t2 (id int primary key)")

    async def work() -> None:
        async with feeding(project, "public.t1", "public.t2") as (_, kept):
            run_sql(
                project, "insert into t1 values (1)", "truncate t1, t2", "insert into t1 values (2)"
            )
            await kept.until(lambda: len(kept.changes) == 2)
            assert sorted(kept.truncations) == [(1, "public.t1"), (1, "public.t2")]

    asyncio.run(work())


def test_the_schema_changes_under_way(project: Project) -> None:
    run_sql(
        project,
        "create type mood as enum ('sad')",
        "create type pair as (a int)",
        "create table s (id int primary key, a text)",
    )

    async def work() -> None:
        async with feeding(project, "public.s") as (feed, kept):
            run_sql(
                project,
                "insert into s values (1, 'x')",
                "alter table s add column m mood",
                "insert into s values (2, 'x', 'sad')",
                "alter table s add column p pair, drop column a",
                "insert into s values (3, 'sad', '(1)')",
                "alter table s alter column id type bigint",
                "alter table s rename column m to mood",
                "insert into s values (30000000000, 'sad', '(2)')",
            )
            await kept.until(lambda: len(kept.changes) >= 4)
            run_sql(
                project,
                "alter type pair add attribute b text",
                "alter type mood add value 'glad'",
                "insert into s values (5, 'glad', '(3,x)')",
            )
            await kept.until(lambda: len(kept.changes) >= 5)
            assert [c.record for c in kept.changes] == [
                {"id": 1, "a": "x"},
                {"id": 2, "a": "x", "m": "sad"},
                {"id": 3, "m": "sad", "p": {"a": 1}},
                {"id": 30000000000, "mood": "sad", "p": {"a": 2}},
                {"id": 5, "mood": "glad", "p": {"a": 3, "b": "x"}},
            ]
            # Without its key the table can still be written to; only inserts are told then.
            run_sql(
                project,
                "alter table s drop constraint s_pkey",
                "update s set mood = null where id = 1",
                "insert into s values (6, 'sad')",
            )
            await kept.until(lambda: len(kept.changes) >= 6)
            await kept.until(lambda: feed.states == {"public.s": "inserts"})
            run_sql(
                project,
                "alter table s add primary key (id)",
                "update s set mood = 'glad' where id = 6",
            )
            await kept.until(lambda: len(kept.changes) >= 7)
            assert [c.event for c in kept.changes[5:]] == ["INSERT", "UPDATE"]

    asyncio.run(work())


def test_partitions_are_told_as_their_table(project: Project) -> None:
    run_sql(
        project,
        "create table p (id int, k text, primary key (id, k)) partition by list (k)",
        "create table p_a partition of p for values in ('a')",
        "create table p_b partition of p for values in ('b')",
    )

    async def work() -> None:
        async with feeding(project, "public.p") as (feed, kept):
            assert feed.states == {"public.p": "all"}
            run_sql(
                project,
                "insert into p values (1, 'a')", "update p set k = 'b'",
                "create table p_c partition of p for values in ('c')",
                "insert into p values (2, 'c')", "update p set id = 3 where k = 'c'",
            )  # fmt: skip
            await kept.until(lambda: len(kept.changes) >= 5)
            assert {c.source for c in kept.changes} == {"public.p"}
            assert [c.event for c in kept.changes] == [
                "INSERT", "DELETE", "INSERT", "INSERT", "UPDATE",
            ]  # fmt: skip

    asyncio.run(work())


def test_generated_columns_are_told(project: Project, world: World) -> None:
    if world.postgres_version < 18:
        pytest.skip("PostgreSQL publishes generated columns from 18 on")
    run_sql(
        project,
        "create table g (id int primary key, n int, twice int generated always as (2 * n) stored)",
    )

    async def work() -> None:
        async with feeding(project, "public.g") as (_, kept):
            run_sql(project, "insert into g values (1, 4)")
            await kept.until(lambda: len(kept.changes) >= 1)
            assert kept.changes[0].record == {"id": 1, "n": 4, "twice": 8}

    asyncio.run(work())


def test_tables_that_cannot_be_told(project: Project, world: World) -> None:
    run_sql(
        project,
        "create view w as select 1 as a",
        "create unlogged table u (id int primary key)",
        'create table "q.x""y" (id int primary key)',
    )
    with world.admin(project) as admin:
        admin.execute("create table public.foreign_one (id int primary key)")

    async def work() -> None:
        names = ["w", "u", "nothing", 'q.x"y', "foreign_one"]
        async with feeding(
            project, *[f"public.{name}" for name in names], "auth.schema_migrations"
        ) as (feed, kept):
            assert feed.states == {
                "public.w": "unsupported", "public.u": "unsupported", "public.nothing": "missing",
                'public.q.x"y': "all", "public.foreign_one": "forbidden",
                "auth.schema_migrations": "forbidden",
            }  # fmt: skip
            run_sql(project, 'insert into "q.x""y" values (1)')
            await kept.until(lambda: len(kept.changes) == 1)
            assert kept.changes[0].source == 'public.q.x"y'
            run_sql(project, "create table nothing (id int primary key)")
            await kept.until(lambda: feed.states["public.nothing"] == "all")

    try:
        asyncio.run(work())
    finally:
        with world.admin(project) as admin:
            admin.execute("drop table public.foreign_one; drop view public.w")


def test_settings_decide_what_is_told(project: Project) -> None:
    run_sql(project, "create table x (id int primary key)", "create table y (id int primary key)")

    async def work() -> None:
        async with feeding(project, "public.x") as (feed, kept):
            run_sql(project, "insert into x values (1)", "insert into y values (1)")
            await kept.until(lambda: len(kept.changes) == 1)
            feed.configure(project, frozenset({"public.y"}))
            assert await feed.ready("public.y") == "all"
            run_sql(project, "insert into x values (2)", "insert into y values (2)")
            await kept.until(lambda: len(kept.changes) == 2)
            feed.configure(project, frozenset())
            await feed.ready()
            run_sql(project, "insert into x values (3)", "insert into y values (3)")
            feed.configure(project, frozenset({"public.x", "public.y"}))
            await feed.ready()
            run_sql(project, "insert into x values (4)", "insert into y values (4)")
            await kept.until(lambda: len(kept.changes) >= 4)
            assert [(c.source, c.record) for c in kept.changes] == [
                ("public.x", {"id": 1}), ("public.y", {"id": 2}),
                ("public.x", {"id": 4}), ("public.y", {"id": 4}),
            ]  # fmt: skip

    asyncio.run(work())


def test_a_large_transaction_in_bounded_memory(project: Project) -> None:
    rows = 100_000
    run_sql(project, "create table big (id int primary key, body text)")

    class Counting(Kept):
        biggest = 0

        def change(self, project_id: str, change: Change) -> bool:
            assert change.record is not None
            self.sum = getattr(self, "sum", 0) + change.record["id"]
            if len(self.changes) < 3 or change.record["id"] == rows:
                self.changes.append(change)
                self.told.set()
            return True

    async def work() -> None:
        kept = Counting()
        async with feeding(project, "public.big", kept=kept):
            before = psutil.Process().memory_info().rss
            insert = f"insert into big select g, repeat('x', 200) from generate_series(1, {rows}) g"
            await asyncio.to_thread(run_sql, project, insert)
            await kept.until(lambda: len(kept.changes) == 4, 60)
            assert kept.sum == rows * (rows + 1) // 2
            assert psutil.Process().memory_info().rss - before < 8 << 20

    asyncio.run(work())


def test_open_ddl_holds_nobody_up(project: Project) -> None:
    """A developer's transaction that has changed the schema and waits: others go on, the feed
    starts, and the locked table follows."""
    run_sql(
        project, "create table held (id int primary key)", "create table free (id int primary key)"
    )

    async def work() -> None:
        async with feeding(project, "public.held", "public.free", drop=False):
            pass  # a new slot would wait for the transaction
        with owner(project) as waiting, owner(project) as other:
            waiting.execute("begin")
            waiting.execute("alter table held drop constraint held_pkey, add unique (id)")
            waiting.execute("create table waiting_one (id int)")
            other.execute("set statement_timeout = '2s'")
            other.execute("create table quick (id int primary key)")
            other.execute("alter table free add column a int")
            async with feeding(project, "public.held", "public.free") as (feed, kept):
                assert feed.states["public.free"] == "all"
                other.execute("insert into free values (1)")
                await kept.until(lambda: len(kept.changes) == 1)
                waiting.execute("commit")
                await kept.until(lambda: feed.states["public.held"] == "inserts")
                other.execute("insert into held values (1)")
                other.execute("update held set id = 2")
                await kept.until(lambda: len(kept.changes) == 2)

    asyncio.run(work())


def test_what_the_login_of_the_feed_may_do(project: Project, world: World) -> None:
    """No more than read the log and call one function; other projects are closed to it."""
    other = world.project()
    assert project.feed_dsn is not None
    run_sql(project, "create table secret (id int primary key)")

    async def work() -> None:
        async with feeding(project):
            pass  # which makes the publications

    asyncio.run(work())
    with psycopg.connect(project.feed_dsn, autocommit=True) as connection:
        for statement in (
            "select * from public.secret", "insert into public.secret values (1)",
            "create table public.x (a int)", "set role service_role", "set role authenticated",
            f"set role ichi_{project.id}_owner",
            "create role more", "select pg_read_file('PG_VERSION')",
            "select realtime.publish('c', 'e', '1')", "create schema more",
            "alter publication ichibase_realtime add table public.secret",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        # Names of the project's owner alone are taken, whatever they look like.
        rows = connection.execute(
            "select * from ichibase.publish_tables(array['pg_catalog.pg_authid', "
            "'auth.users', 'public.secret; drop table secret', 'x', '.', ''])"
        ).fetchall()
        assert {state for _, state in rows} <= {"missing", "forbidden", "unsupported"}
        rows = connection.execute("select * from ichibase.publish_tables('{}')").fetchall()
        assert rows == []
    for database in (f"ichi_{other.id}", "postgres", world.cluster.database):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            psycopg.connect(project.feed_dsn, dbname=database)
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba|no pg_hba"):
        psycopg.connect(project.feed_dsn, replication="true")
    # Who has learned the password also needs the socket, which lies in a folder of the server's.
    if world.postgres_version >= 16:  # before, pg_hba.conf knew no patterns of names
        with pytest.raises(psycopg.OperationalError, match=r"pg_hba.conf rejects"):
            psycopg.connect(project.feed_dsn, host="127.0.0.1")


def test_workers_do_not_know_the_login_of_the_feed(project: Project, world: World) -> None:
    with psycopg.connect(world.dsn, cursor_factory=psycopg.RawCursor) as control:
        (password,) = control.execute(
            "select feed_password from projects where id = $1", (project.id,)
        ).fetchone() or ("",)
        ((one,),) = control.execute(records.WORKERS_ONE, (project.slug,)).fetchall()
        everything = control.execute(records.WORKERS_ACTIVE).fetchall()
    assert len(password) > 20
    for text in (one, *[row[0] for row in everything]):
        assert password not in text
        assert records.decode(text, world.config).feed_dsn is None
    worker = (Path(__file__).parents[3] / "server" / "app.py").read_text()
    assert "records.WORKERS_ONE" in worker
    assert "records.SELECT" not in worker


def test_owners_cannot_replicate(project: Project, world: World) -> None:
    """The log is the whole cluster's: the owner of one project must not read it, by no way."""
    other = world.project()
    assert project.owner_dsn is not None
    for dsn in (project.owner_dsn, project.system_dsn, project.authenticator_dsn):
        for kind in ("database", "true"):
            with pytest.raises(psycopg.OperationalError, match=r"(?i)replication|pg_hba"):
                psycopg.connect(dsn, replication=kind)
    feed, theirs = f"ichi_{project.id}_feed", f"ichi_{other.id}"
    owner = f"ichi_{project.id}_owner"

    async def work() -> None:
        async with feeding(project) as (reader, _):
            await asyncio.to_thread(attack, reader.slot_name)
            assert await reader.ready() == "all"  # it reads on

    def attack(slot: str) -> None:
        with psycopg.connect(project.owner_dsn, autocommit=True) as connection:
            for statement in (
                f"alter role {owner} replication", f"alter role {owner} superuser",
                "create role more replication login", f"grant {feed} to {owner}",
                f"set role {feed}", f"set session authorization {feed}",
                f"alter role {feed} password 'x'", f"alter role {feed} set search_path = public",
                f"drop role {feed}", "grant pg_read_all_data to current_user",
                "select pg_create_logical_replication_slot('mine', 'pgoutput')",
                "select pg_create_physical_replication_slot('mine')",
                f"select pg_drop_replication_slot('{slot}')",
                f"select pg_logical_slot_get_changes('{slot}', null, null)",
                f"select pg_logical_slot_peek_binary_changes('{slot}', null, null)",
                f"select pg_replication_slot_advance('{slot}', '0/1')",
                f"select pg_copy_logical_replication_slot('{slot}', 'copy')",
                "select pg_ls_waldir()", "select pg_backup_start('x')", "select pg_switch_wal()",
                "select pg_read_binary_file('global/pg_control')", "select pg_current_logfile()",
                "alter system set wal_level = minimal", "alter publication ichibase_realtime"
                " add table public.t", "drop publication ichibase_realtime",
                "select * from ichibase.publish_tables('{}')", "drop schema ichibase cascade",
                "alter event trigger ichibase_ddl disable", "create publication p for all tables",
                f"create subscription s connection 'dbname={theirs}' publication p",
                "select pg_terminate_backend(active_pid) from pg_replication_slots"
                " where active_pid is not null",
            ):  # fmt: skip
                with pytest.raises(psycopg.Error) as refused:
                    connection.execute(statement.encode())
                assert refused.value.sqlstate in ("42501", "42704", "0LP01", "42883"), statement
            # What the log says of other databases is not to be had by what a project may call.
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select sent_lsn from pg_stat_replication")

    asyncio.run(work())


def test_an_administrator_who_is_no_superuser(
    pg_cluster: EmbeddedPostgres, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As on a managed server: the rights that the documentation names are enough."""
    if world.postgres_version < 16:
        pytest.skip("before PostgreSQL 16 only a superuser makes roles that may replicate")
    world.project()  # makes the shared roles, as the manager would on a server of its own
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(
            "create role manager login password 'x' createdb createrole bypassrls replication"
        )
        admin.execute("grant connect on database postgres to manager")
        for role in ("anon", "authenticated", "service_role", "ichibase_control"):
            admin.execute(f"grant {role} to manager with admin option")
    try:
        managed = World(
            pg_cluster, tmp_path_factory.mktemp("managed"),
            admin_dsn=f"{pg_cluster.dsn(user='manager')} password=x", database="control_managed",
        )  # fmt: skip
        project = managed.project()
        run_sql(project, "create table t (id int primary key)")

        async def work() -> None:
            async with feeding(project, "public.t", "public.later") as (feed, kept):
                assert feed.states == {"public.t": "all", "public.later": "missing"}
                run_sql(
                    project, "insert into t values (1)", "select realtime.publish('c', 'e', '1')"
                )
                await kept.until(lambda: len(kept.all) == 2)

        asyncio.run(work())
        asyncio.run(managed.projects.delete(project.slug))
    finally:
        with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
            admin.execute("drop database if exists control_managed with (force)")
            admin.execute("drop owned by manager; drop role manager")
