"""What one project's logins can see of others, take from the machine, and not give themselves."""

import asyncio

import psycopg
import pytest

from server.base.events import Events
from server.control import records
from server.control.lifecycle import Lifecycle
from server.maintenance import idle


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def pair(world):
    """(the attacker's project on the free tier, a neighbour whose name is telling)."""
    projects = world.fresh()
    mine = run(projects.create("noisy", tier="free", owner="mallory"))
    other = run(projects.create("secretive-neighbour", owner="victim@example.com"))
    yield records.to_project(mine, world.config), records.to_project(other, world.config), other
    for slug in ("noisy", "secretive-neighbour"):
        run(world.fresh().delete(slug))


def refused(dsn, *statements):
    """SQLSTATE of what stopped the statements, None when nothing did."""
    with psycopg.connect(dsn, autocommit=True) as session:
        try:
            for statement in statements:
                session.execute(statement)
        except psycopg.Error as error:
            return error.sqlstate
    return None


LOGINS = ["owner_dsn", "authenticator_dsn", "system_dsn"]


@pytest.mark.parametrize("login", LOGINS)
def test_no_catalog_names_another_project_or_its_owner(pair, login):
    mine, other, record = pair
    with (
        psycopg.connect(other.owner_dsn, application_name="a telling program") as busy,
        psycopg.connect(getattr(mine, login), autocommit=True) as session,
    ):
        busy.execute("alter role current_user set search_path = a_telling_schema")
        busy.execute(f"alter database {busy.info.dbname} set search_path = a_telling_schema")
        busy.commit()
        busy.execute("select 'a very private literal', pg_advisory_xact_lock(99)")
        relations = session.execute(
            "select format('%I.%I', n.nspname, c.relname) from pg_class c "
            "join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('pg_catalog', "
            "'information_schema', 'public', 'ichibase') and c.relkind in ('r', 'v', 'm')"
        ).fetchall()
        looked = 0
        for (relation,) in relations:
            try:
                rows = session.execute(f"select t::text from {relation} t").fetchall()
            except psycopg.Error:
                continue
            looked += 1
            text = " ".join(row[0] or "" for row in rows)
            for word in ("secretive-neighbour", "victim@example.com", "very private literal",
                         "a telling program", "a_telling_schema",
                         record.owner_password, record.storage_secret):  # fmt: skip
                assert word not in text, relation
            if relation not in ("pg_catalog.pg_database", "pg_catalog.pg_stat_database",
                                "pg_catalog.pg_stat_database_conflicts"):  # fmt: skip
                assert other.id not in text, relation
        assert looked > 100
        own = session.execute("select a.query, d.setconfig from pg_stat_activity a, pg_roles r, "
            "lateral (select r.rolconfig) d (setconfig) where a.pid = pg_backend_pid() "
            "and r.rolname = current_user").fetchall()  # fmt: skip
        assert own[0][0].startswith("select a.query")


def test_settings_show_nothing_of_the_machine(world, pair):
    hidden = ("data_directory", "config_file", "hba_file", "ident_file", "external_pid_file",
              "unix_socket_directories", "primary_conninfo", "log_directory")  # fmt: skip
    with psycopg.connect(pair[0].owner_dsn, autocommit=True) as session:
        for name in hidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(f"show {name}")
        shown = session.execute("select name, setting, boot_val, reset_val from pg_settings")
        text = repr(shown.fetchall())
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        (folder,) = admin.execute("show data_directory").fetchone()
    for word in (folder, world.cluster.socket_dir):
        assert word not in text


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(
    "statement",
    [
        "set temp_file_limit = -1", "alter role current_user connection limit -1",
        "alter role current_user set temp_file_limit = -1", "set max_connections = 1000",
        "set huge_pages = on", "set zero_damaged_pages = on", "set allow_system_table_mods = on",
        "load '/tmp/x.so'", "select pg_read_binary_file('PG_VERSION')",
        "select pg_ls_logdir()", "select pg_ls_waldir()", "select pg_current_logfile()",
        "select pg_switch_wal()", "select pg_create_restore_point('x')", "checkpoint",
        "select pg_promote()", "select pg_rotate_logfile()", "select pg_stat_reset_shared('io')",
        "select lo_export(1, '/tmp/x')", "copy pg_class to program 'cat'",
        "create subscription s connection 'host=127.0.0.1' publication p",
        "create server s foreign data wrapper postgres_fdw", "create extension plperlu",
        "select pg_create_logical_replication_slot('s', 'pgoutput')",
        "create access method m type table handler heap_tableam_handler",
        "create operator class c for type int using btree as operator 1 <(int, int)",
        "update pg_database set datname = 'x'", "delete from pg_authid",
        "alter role current_user replication", "grant pg_read_all_data to current_user",
        "grant pg_execute_server_program to current_user", "grant pg_signal_backend to anon",
        "set role postgres", "reset session authorization; set session authorization postgres",
        "create event trigger t on ddl_command_end execute function nothing()",
        "alter database postgres set work_mem = '1GB'", "select pg_reload_conf()",
        "begin; prepare transaction 'x'", "select pg_replication_origin_create('x')",
        "alter role anon login", "alter role service_role createrole", "set event_triggers = off",
        "grant service_role to anon", "select pg_replication_slot_advance('s', '0/1')",
        "lock table pg_authid", "select * from pg_stat_get_wal_senders()",
        "create text search dictionary d (template = pg_catalog.simple, stopwords = '../passwd')",
    ],
)  # fmt: skip
def test_no_login_raises_itself_above_its_limits(pair, login, statement):
    found = refused(getattr(pair[0], login), *statement.split("; "))
    assert found is not None
    assert found[:2] in ("42", "22", "0A", "55", "58", "F0", "25", "57", "3F"), found


def test_only_trusted_extensions_can_be_made(pair):
    with psycopg.connect(pair[0].owner_dsn, autocommit=True) as session:
        listed = session.execute(
            "select v.name, bool_or(v.trusted) from pg_available_extension_versions v "
            "where not v.installed group by 1 order by 1"
        ).fetchall()
        for name, trusted in listed:
            try:
                session.execute(f'create extension "{name}"')
                made = True
            except psycopg.Error:
                made = False
            assert not made or trusted, name
            if made:
                session.execute(f'drop extension "{name}" cascade')
    assert any(trusted for _, trusted in listed)


def test_sessions_of_others_are_not_ended(pair):
    mine, other, _ = pair
    with psycopg.connect(other.owner_dsn, autocommit=True) as victim:
        pid = victim.info.backend_pid
        for call in ("pg_terminate_backend", "pg_cancel_backend"):
            assert refused(mine.owner_dsn, f"select {call}({pid})") == "42501"
        assert victim.execute("select 1").fetchone() == (1,)


def test_a_snapshot_or_lock_of_another_project_is_of_no_use(pair):
    mine, other, _ = pair
    with psycopg.connect(other.owner_dsn) as victim:
        (snapshot,) = victim.execute("select pg_export_snapshot()").fetchone()
        found = refused(
            mine.owner_dsn, "begin isolation level repeatable read",
            f"set transaction snapshot '{snapshot}'",
        )  # fmt: skip
        assert found in ("0A000", "22023")


def test_temporary_files_are_bounded(world, pair):
    life = Lifecycle(world.fresh())
    run(life.change("noisy", {"limits": {"temp_bytes": 4 << 20}}, "test"))
    found = refused(
        pair[0].owner_dsn, "set work_mem = '64kB'",
        "select count(*) from (select repeat('x', 100) || a from generate_series(1, 200000) a "
        "order by 1) s",
    )  # fmt: skip
    run(life.change("noisy", {"limits": {}}, "test"))
    assert found == "53400"


def test_who_holds_others_up_is_ended_whatever_the_session_has_set(world, pair, monkeypatch):
    life = Lifecycle(world.fresh())
    small = {"idle_transaction_ms": 50, "owner_statement_ms": 50}
    run(life.change("noisy", {"limits": small}, "test"))
    monkeypatch.setattr(idle, "OLDEST", 0.05)
    projects, events = world.fresh(), Events()
    told = []
    events.listeners.append(told.append)
    dsn = pair[0].owner_dsn
    waiting = psycopg.connect(dsn, options="-c idle_in_transaction_session_timeout=0")
    waiting.execute("select 1")
    running = psycopg.connect(dsn, options="-c statement_timeout=0", autocommit=True)
    with psycopg.connect(pair[1].owner_dsn) as neighbour:
        neighbour.execute("select 1")  # its own limits are far away
        running.pgconn.send_query(b"select pg_sleep(30)")

        async def later():
            ended = 0
            for _ in range(100):
                await asyncio.sleep(0.3)
                ended += await idle.end_what_holds_up(projects, events)
                if ended >= 2:
                    break
            return ended

        assert run(later()) == 2
        assert neighbour.execute("select 2").fetchone() == (2,)
    for session in (waiting, running):
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
        session.close()
    assert len(told) == 2
    with psycopg.connect(projects.config.control_dsn) as control:
        found = control.execute(
            "select distinct detail ->> 'state' from audit where project = 'noisy' "
            "and action = 'project.sessions_ended' and detail ->> 'reason' = 'time'"
        ).fetchall()
    assert sorted(found) == [("active",), ("idle in transaction",)]
    run(life.change("noisy", {"limits": {}}, "test"))
