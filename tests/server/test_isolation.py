"""Two projects of one cluster, attacked by the owner of one with all that SQL gives him."""

import asyncio

import psycopg
import pytest

from server.base.context import NodeConfig
from server.control import records
from server.control.database import prepare
from server.control.projects import Projects
from tests.clusters import cluster_of

SHARED = ("anon", "authenticated", "service_role")


@pytest.fixture(scope="module")
def three(pg_cluster, tmp_path_factory):
    """(ours, theirs, record of theirs, wild): the attacker's project, the other one, and one of the
    attacker's that may be left in disorder."""
    cluster = cluster_of(pg_cluster, "control_isolation")
    dsn = asyncio.run(prepare(cluster, "control password"))
    config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
    projects = Projects(dsn, {cluster.id: cluster}, config)
    mine, other, wild = (asyncio.run(projects.create(name)) for name in ("mine", "other", "wild"))
    with psycopg.connect(records.to_project(other, config).owner_dsn, autocommit=True) as theirs:
        theirs.execute("create table secrets (id int); insert into secrets values (1)")
    made = (records.to_project(record, config) for record in (mine, other, wild))
    ours, theirs, disorder = made
    return ours, theirs, other, disorder


@pytest.fixture(scope="module")
def two(three):
    return three[:3]


def attempt(dsn, *statements):
    """Runs statements one by one as far as they go; gives the SQLSTATE that stopped them."""
    with psycopg.connect(dsn, autocommit=True) as session:
        try:
            for statement in statements:
                session.execute(statement)
        except psycopg.Error as error:
            return error.sqlstate
    return None


def test_the_owner_can_do_his_work(two):
    assert attempt(
        two[0].owner_dsn,
        "create extension pg_trgm", "create extension hstore", "create schema app",
        "create table app.t (id uuid default gen_random_uuid(), who uuid default auth.uid())",
        "create view v as select 1 as a", "create type mood as enum ('well')",
        "create function now_text() returns text language plpgsql as 'begin return now(); end'",
        "create table p (id int primary key)", "alter table p enable row level security",
        "create policy p on p for select to anon using (auth.uid() is null)",
        "create publication feed for table p", "set role authenticated", "table p", "reset role",
        "comment on schema public is 'ours'", "create temp table scratch (id int)", "vacuum p",
        "alter role current_user set search_path = public, app",
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "select * from pg_authid", "select * from pg_shadow", "alter role {owner} superuser",
        "alter role {owner} createrole", "alter role {owner} bypassrls",
        "alter role {owner} replication", "create role intruder", "create database more",
        "grant service_role to {owner} with admin option", "set role {other}_owner",
        "set session authorization postgres", "alter role {other}_owner password 'x'",
        "drop role {other}_owner", "drop database {other}", "grant {other}_owner to {owner}",
        "alter database {other} owner to {owner}",
        "copy (select 1) to program 'true'", "copy (select 1) to '/tmp/x'",
        "create temp table t (l text); copy t from '/etc/passwd'",
        "select pg_read_file('/etc/passwd')", "select pg_ls_dir('.')", "select pg_stat_file('.')",
        "select lo_import('/etc/passwd')", "select lo_export(lo_create(0), '/tmp/x')",
        "create extension dblink", "create extension postgres_fdw", "create extension file_fdw",
        "create function f() returns int language c as 'libc', 'getpid'",
        "create function f() returns int language internal as 'pg_backend_pid'",
        "create language plperlu", "alter system set work_mem = '1GB'",
        "select pg_reload_conf()", "select * from pg_stat_get_activity(null)",
        "create event trigger e on sql_drop execute function ichibase.schema_changed_by_drop()",
        "drop event trigger ichibase_ddl", "set event_triggers = off",
        "create publication everything for all tables", "create tablespace t location '/tmp'",
        "select pg_create_physical_replication_slot('s')", "select * from pg_hba_file_rules",
        "drop schema auth cascade", "alter schema auth owner to {owner}",
        "create table auth.mine (id int)", "alter function auth.uid() owner to {owner}",
        "drop function auth.uid()", "delete from ichibase.migrations",
        "set session_replication_role = replica", "set log_statement = 'all'",
        "select set_config('log_min_messages', 'debug5', false)",
        "alter default privileges for role {other}_owner grant all on tables to {owner}",
        "reassign owned by {other}_owner to {owner}", "drop owned by {other}_owner",
        "drop owned by postgres", "comment on role anon is 'x'",
    ],
)  # fmt: skip
def test_the_owner_is_refused(two, statement):
    mine, _, other = two
    names = {"owner": f"ichi_{mine.id}_owner", "other": other.database}
    assert attempt(mine.owner_dsn, statement.format(**names)) in {
        "42501", "0A000", "22023", "58P01", "42704", "55000", "2BP01", "42601", "XX000", "0LP01",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["owner_dsn", "authenticator_dsn", "system_dsn"])
@pytest.mark.parametrize("database", ["other", "postgres", "template1", "control_isolation"])
def test_no_login_reaches_another_database(two, kind, database):
    mine, _, other = two
    # A mere warning says that this had no effect.
    attempt(mine.owner_dsn, f"grant connect on database {other.database} to public")
    name = other.database if database == "other" else database
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(getattr(mine, kind), dbname=name)


@pytest.mark.parametrize("kind", ["owner_dsn", "authenticator_dsn", "system_dsn"])
def test_no_login_may_replicate(two, kind):
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(getattr(two[0], kind), replication="true")


def test_the_activity_of_others_shows_no_statement(two):
    mine, theirs, _ = two
    with (
        psycopg.connect(theirs.owner_dsn, autocommit=True) as busy,
        psycopg.connect(mine.owner_dsn, autocommit=True) as session,
    ):
        busy.execute("select 'a secret literal'")
        seen = session.execute("select string_agg(a::text, ' ') from pg_stat_activity a").fetchone()
        assert theirs.id not in seen[0]
        assert mine.id in seen[0]


@pytest.mark.parametrize("role", SHARED)
def test_what_an_owner_does_to_a_shared_role_stays_at_home(three, role):
    _, theirs, other, mine = three
    # He may become the role, so these are allowed; they must not reach the other project.
    attempt(
        mine.owner_dsn, f"set role {role}", f"drop owned by {role}",
        f"alter role {role} in database {other.database} set search_path = nowhere",
        f"alter role {role} set statement_timeout = 1", f"alter role {role} password 'known'",
    )  # fmt: skip
    with psycopg.connect(theirs.authenticator_dsn, autocommit=True) as session:
        session.execute(f"set role {role}")
        assert session.execute("select id from secrets").fetchall() == [(1,)]
        assert session.execute("show statement_timeout").fetchone() == ("0",)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(theirs.owner_dsn, user=role, password="known")


def test_the_authenticator_holds_no_right_of_its_own(two):
    _, theirs, other = two
    with psycopg.connect(theirs.authenticator_dsn, autocommit=True) as session:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("select * from public.secrets")
        for role in ("owner", "system"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(f"set role {other.database}_{role}")
        for role in SHARED:
            session.execute(f"set role {role}")


def test_large_objects_and_locks_do_not_cross(two):
    mine, theirs, _ = two
    with (
        psycopg.connect(mine.owner_dsn, autocommit=True) as a,
        psycopg.connect(theirs.owner_dsn, autocommit=True) as b,
    ):
        a.execute("select lo_from_bytea(424242, 'mine')")
        assert b.execute("select count(*) from pg_largeobject_metadata").fetchone() == (0,)
        a.execute("select pg_advisory_lock(7)")
        assert b.execute("select pg_try_advisory_lock(7)").fetchone() == (True,)
        b.execute("listen shared")
        a.execute("notify shared, 'x'")
        assert list(b.notifies(timeout=0.2)) == []
