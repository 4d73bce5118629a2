"""What a project's logins see of another project in what all databases of a server share."""

import asyncio
import re

import psycopg
import pytest

from server.base.context import NodeConfig
from server.control import records
from server.control.database import prepare
from server.control.projects import Projects
from tests.clusters import cluster_of

# Lists of databases, roles' numbers and memberships, which Postgres has no way to close, and
# samples of their columns' values once they are analyzed.
OPEN = {"pg_database", "pg_auth_members"}
SAMPLED = tuple(f"(pg_catalog,{name}," for name in OPEN)


@pytest.fixture(scope="module")
def others(pg_cluster, tmp_path_factory):
    """(our project, what would name the other one: its id, numbers and process, the process)."""
    cluster = cluster_of(pg_cluster, "control_hidden")
    dsn = asyncio.run(prepare(cluster, "control password"))
    config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
    projects = Projects(dsn, {cluster.id: cluster}, config)
    record, other = (asyncio.run(projects.create(name)) for name in ("ours", "theirs"))
    mine, theirs = (records.to_project(one, config) for one in (record, other))
    with (
        psycopg.connect(theirs.owner_dsn, autocommit=True) as busy,
        psycopg.connect(pg_cluster.dsn(other.database), autocommit=True) as admin,
    ):
        with psycopg.connect(pg_cluster.dsn(record.database), autocommit=True) as here:
            here.execute("analyze")  # as the server does by itself sooner or later
        slot = f"ichi_{other.id}_x"
        admin.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
        busy.execute("create table secrets (n int)")
        busy.execute("begin; lock table secrets; insert into secrets values (2)")
        busy.execute("select pg_advisory_xact_lock(1)")
        rows = admin.execute(
            "select oid::text from pg_roles where rolname like %s union all select oid::text "
            "from pg_database where datname = %s", (f"ichi_{other.id}%", other.database),
        ).fetchall()  # fmt: skip
        process = str(busy.info.backend_pid)
        yield mine, {other.id, process, *(row[0] for row in rows)}, process
        busy.execute("rollback")
        admin.execute("select pg_drop_replication_slot(%s)", (slot,))


def mentions(text, names):
    return set(re.findall(r"[0-9A-Za-z]+", (text or "").replace("_", " "))) & names


@pytest.mark.parametrize("kind", ["owner_dsn", "authenticator_dsn", "system_dsn"])
def test_no_relation_tells_of_another_project(others, kind):
    mine, names, process = others
    read = {}
    with psycopg.connect(getattr(mine, kind), autocommit=True) as session:
        relations = session.execute(
            "select c.oid::regclass::text, c.relname, exists (select from pg_attribute where "
            "attrelid = c.oid and attname like '%pid') from pg_class c where relkind in ('r', 'v') "
            "and relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
        ).fetchall()
        for relation, name, processes in relations:
            try:
                rows = session.execute(f"select x::text from {relation} x").fetchall()
            except psycopg.errors.InsufficientPrivilege:
                continue
            sought = names if processes else names - {process}  # it may be the number of a type
            told = [row[0] for row in rows if mentions(row[0], sought)]
            read[name] = [row for row in told if name != "pg_stats" or not row.startswith(SAMPLED)]
    assert {name: rows for name, rows in read.items() if rows and name not in OPEN} == {}
    for name in (
        "pg_locks", "pg_stat_activity", "pg_stat_database", "pg_replication_slots", "columns",
        "pg_stat_progress_vacuum", "pg_prepared_xacts", "pg_roles",
    ):  # fmt: skip
        assert name in read  # still to be read


def test_no_function_tells_of_another_project(others):
    mine, names, _ = others
    told = {}
    with psycopg.connect(mine.owner_dsn, autocommit=True) as session:
        functions = session.execute(
            "select p.proname from pg_proc p where pronamespace = 'pg_catalog'::regnamespace "
            "and pronargs = 0 and prokind = 'f' and has_function_privilege(p.oid, 'execute')"
            "and prorettype <> all ('{trigger,event_trigger,internal,language_handler}'::regtype[])"
        ).fetchall()
        for (name,) in functions:
            try:
                rows = session.execute(f"select x::text from pg_catalog.{name}() x").fetchall()
            except psycopg.Error:
                continue
            if found := [row[0] for row in rows if mentions(row[0], names)]:
                told[name] = found
    assert told == {}


def test_a_function_in_a_query_sees_no_more_than_the_view(others):
    mine, names, _ = others
    seen = []
    with psycopg.connect(mine.owner_dsn, autocommit=True) as session:
        session.add_notice_handler(lambda notice: seen.append(notice.message_primary))
        session.execute(
            "create function pg_temp.leak(name) returns bool language plpgsql cost 0.0000001 as "
            "$$ begin raise notice '%', $1; return true; end $$"
        )
        for view, column in (("pg_roles", "rolname"), ("pg_user", "usename"),
                             ("pg_stat_activity", "usename"), ("pg_locks", "mode::name"),
                             ("pg_stat_database", "datname")):  # fmt: skip
            session.execute(f"select count(*) from {view} where pg_temp.leak({column})")
    assert seen
    assert [one for one in seen if mentions(one, names)] == []


@pytest.mark.parametrize(
    "call",
    ["pg_stat_get_activity(null)", "pg_lock_status()", "pg_prepared_xact()",
     "pg_get_replication_slots()", "pg_stat_get_wal_senders()", "pg_stat_get_backend_idset()",
     "pg_stat_get_backend_pid(1)", "pg_stat_get_backend_dbid(1)", "pg_stat_get_backend_userid(1)",
     "pg_stat_get_progress_info('COPY')", "pg_stat_get_db_numbackends(1)",
     "pg_tablespace_size('pg_default')", "pg_tablespace_databases(1663)"],
)  # fmt: skip
def test_what_tells_of_all_is_closed(others, call):
    with (
        psycopg.connect(others[0].owner_dsn, autocommit=True) as session,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        session.execute(f"select {call}")


def test_what_is_its_own_is_shown(others):
    mine = others[0]
    with psycopg.connect(mine.owner_dsn) as session:
        session.execute("create table public.held (n int); lock table public.held")
        one = "select count(*) from pg_locks where relation = 'public.held'::regclass"
        assert session.execute(one).fetchone()[0] > 0
        one = "select numbackends from pg_stat_database where datname = current_database()"
        assert session.execute(one).fetchone()[0] > 0
        session.rollback()
