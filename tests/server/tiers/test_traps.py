"""Nothing of a project's owner runs with more rights than the owner has."""

import asyncio

import psycopg
import pytest

from server.backup import content
from server.backup.jobs import Jobs
from server.base.events import Events
from server.base.metrics import Metrics
from server.base.usage import Usage
from server.control import provision, records
from server.control.database import connect
from server.control.lifecycle import Lifecycle
from server.control.projects import migrate
from server.maintenance import idle
from server.maintenance.quotas import Quotas
from tests.server.tiers import traps
from tests.server.tiers.shop import done


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def trapped(world):
    """A project full of traps: (record, project)."""
    record = run(world.fresh().create("trapper", owner="trapper"))
    project = records.to_project(record, world.config)
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        traps.lay(owner, record.database, record.role("owner"))
    yield record, project
    run(world.fresh().delete("trapper"))


def test_the_traps_are_sharp(world, trapped):
    """Whoever is careless runs into them."""
    record, _ = trapped
    careless = psycopg.conninfo.make_conninfo(
        world.cluster.admin_dsn, dbname=record.database,
        options="-c role=none -c default_transaction_read_only=off -c statement_timeout=0",
    )  # fmt: skip
    statements = (
        "select lower('A')", "select hashtextextended('a', 0)", "select 'a'::text = 'b'::text",
        "select count(*) from public.bait", "select b::text from public.bait b",
    )  # fmt: skip
    for statement in statements:
        with psycopg.connect(careless, autocommit=True) as session:
            with pytest.raises(psycopg.Error) as caught:
                session.execute(statement)
            assert caught.value.sqlstate == "TR000", statement


def job(world, what, project, **args):
    return done(Jobs(world.fresh(), Events(), Metrics()), what, project, **args)


def test_backups_and_restores_spring_none(world, trapped):
    _, project = trapped
    state, result, error = job(world, "backup", "trapper", kind="manual")
    assert state == "done", error
    backup = result["backup"]
    for kind, args in (("verify", {}), ("restore", {}), ("restore", {"into": "trapper-two"})):
        state, result, error = job(world, kind, "trapper", backup=backup, **args)
        assert state == "done", error
        assert not [one for one in result["warnings"] if "sprung" in one]
    run(world.fresh().delete("trapper-two"))
    with psycopg.connect(project.owner_dsn) as owner:
        owner.execute("set search_path = pg_catalog, pg_temp")
        assert owner.execute("select count(*) from public.coloured").fetchone() == (1,)


def test_the_upkeep_of_a_project_springs_none(world, trapped):
    record, project = trapped
    projects = world.fresh()
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        traps.defaults(owner, record.database, record.role("owner"))  # a restore takes them away

    async def work():
        await provision.provision(projects.cluster(record), record, projects.limits(record))
        await migrate(project)
        usage = Usage(world.dsn, Events())
        await Quotas(projects, usage, Events()).measure()
        await usage.stop()
        await idle.end_what_holds_up(projects, Events())
        life = Lifecycle(projects)
        for step in ("sleep", "wake", "suspend", "resume"):
            await life.step("trapper", step, "test")
        await life.change("trapper", {"tier": "pro"}, "test")
        for kind in ("system", "feed"):
            async with await connect(record.dsn(kind, getattr(record, f"{kind}_password"))) as own:
                await own.execute("select lower('A'), 'a'::text = 'b', now() - interval '1 day'")

    run(work())


def test_temporary_types_are_not_taken_for_others(trapped):
    """The functions that run with the rights of others, on behalf of the owner."""
    record, project = trapped
    with psycopg.connect(project.system_dsn, autocommit=True) as system:
        system.execute(f"grant usage on schema realtime to {record.role('owner')}")
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("set search_path = pg_catalog; set default_transaction_read_only = off; "
                      "set statement_timeout = 0; set lock_timeout = 0")  # fmt: skip
        owner.execute("create publication ichibase_realtime")
        owner.execute(traps.TEMPORARY)
        owner.execute("create table public.watched (n int)")  # event triggers look at it
        owner.execute("drop table public.watched")
        owner.execute("drop publication ichibase_realtime")
        owner.execute("select realtime.publish('news', 'said', '{}')")
        owner.execute("select realtime.to_user(gen_random_uuid(), 'said', '{}')")


def test_a_view_in_the_place_of_a_table_is_not_read(world, trapped):
    record, project = trapped
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("set search_path = pg_catalog; set default_transaction_read_only = off; "
                      "set statement_timeout = 0")  # fmt: skip
        owner.execute("create table public.turncoat (n int)")

        async def look():
            async with await connect(world.cluster.dsn(record.database)) as admin:
                await content.prepare(admin)
                await admin.execute("begin transaction isolation level repeatable read read only")
                await admin.execute("select 1")
                owner.execute("drop table public.turncoat; create view public.turncoat as "
                              "select public.known(1) as n")  # fmt: skip
                await content.tables(admin)

        with pytest.raises(psycopg.errors.WrongObjectType):
            run(look())
        owner.execute("drop view public.turncoat")


def test_an_owner_cannot_keep_its_database_from_being_replaced_or_removed(world):
    record = run(world.fresh().create("stubborn", owner="stubborn"))
    project = records.to_project(record, world.config)

    def close():
        with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
            for change in ("is_template true", "set local_preload_libraries = 'nothing'",
                           "connection limit 0"):  # fmt: skip
                owner.execute(f"alter database {record.database} {change}")

    close()
    state, result, error = job(world, "backup", "stubborn", kind="manual")
    assert state == "failed"  # the project's own logins are shut out: settled at the next change
    run(Lifecycle(world.fresh()).change("stubborn", {"limits": {}}, "test"))
    state, result, error = job(world, "backup", "stubborn", kind="manual")
    assert state == "done", error
    with psycopg.connect(world.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f"alter database {record.database} is_template true")
    state, result, error = job(world, "restore", "stubborn", backup=result["backup"])
    assert state == "done", error
    close()
    run(world.fresh().delete("stubborn"))
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        left = admin.execute("select datname from pg_database where datname like %s",
                             (f"{record.database}%",)).fetchall()  # fmt: skip
    assert left == []


ELSEWHERE = {
    "default_tablespace": "nothing", "default_table_access_method": "nothing",
    "work_mem": "1TB", "hash_mem_multiplier": "1000",
    "maintenance_work_mem": "1TB", "temp_buffers": "1GB", "logical_decoding_work_mem": "1TB",
    "wal_sender_timeout": "1ms", "debug_print_parse": "on", "debug_print_rewritten": "on",
    "debug_print_plan": "on", "log_parameter_max_length_on_error": "-1",
    "gin_fuzzy_search_limit": "1", "local_preload_libraries": "nothing",
}  # fmt: skip


def test_sessions_of_ours_begin_with_none_of_the_owners_defaults(world):
    """Where tables are made, memory without bounds, what is logged, and who the session is."""
    record = run(world.fresh().create("generous", owner="generous"))
    project = records.to_project(record, world.config)
    dsns = [world.cluster.dsn(record.database), project.system_dsn, project.feed_dsn]
    logged = psycopg.conninfo.make_conninfo(project.feed_dsn, replication="database")
    shown = [f"show {name}" for name in ELSEWHERE] + ["select session_user", "select current_user"]

    def seen(dsn):
        with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as session:
            return [session.execute(one).fetchone()[0] for one in shown]

    before = [seen(dsn) for dsn in (*dsns, logged)]
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        for name, value in ELSEWHERE.items():
            owner.execute(f"alter database {record.database} set {name} = '{value}'")
        for name in ("session_authorization", "role"):
            who = record.role("owner")
            owner.execute(f"alter database {record.database} set {name} = '{who}'")
    try:
        assert [seen(dsn) for dsn in (*dsns, logged)] == before
        with psycopg.connect(project.system_dsn) as system:
            system.execute("create table auth.later (id int primary key)")
            system.execute("create temporary table for_now (id int) on commit drop")
        run(provision.provision(world.cluster, record))
        run(migrate(project))
        state, _, error = job(world, "backup", "generous", kind="manual")
        assert state == "done", error
    finally:
        run(world.fresh().delete("generous"))


def test_a_restore_does_not_take_the_owners_objects_for_its_own(world):
    """What is loaded as the owner could make a schema of the name that the server's own has."""
    projects = world.fresh()
    record = run(projects.create("imitator", owner="imitator"))
    project = records.to_project(record, world.config)
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("""
            create table public.said (what text);
            create function public.imitate(n int) returns bool language plpgsql immutable as $$
            begin
              perform public.really();
              return true;
            end $$;
            create function public.really() returns void language plpgsql as $$
            begin
              begin
                execute 'create schema ichibase';
                execute 'create table ichibase.migrations (name text primary key, checksum text, '
                  'applied_at timestamptz)';
              exception when others then null;
              end;
            end $$;
            create table public.first (n int check (public.imitate(n)));
            insert into public.first values (1);
        """)
    state, result, error = job(world, "backup", "imitator", kind="manual")
    assert state == "done", error
    state, result, error = job(world, "restore", "imitator", backup=result["backup"])
    assert state == "done", error
    with psycopg.connect(world.cluster.dsn(record.database)) as admin:
        mine = admin.execute(
            "select count(*) filter (where c.relowner <> n.nspowner), "
            "bool_and(pg_get_userbyid(n.nspowner) = current_user) from pg_namespace n "
            "left join pg_class c on c.relnamespace = n.oid where n.nspname = 'ichibase'"
        ).fetchone()
    assert mine == (0, True)
    run(world.fresh().delete("imitator"))


def restored(world, name, script):
    """The project after its owner has run the script, and a restore of a backup of it; what the
    job warned of."""
    record = run(world.fresh().create(name, owner=name))
    project = records.to_project(record, world.config)
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute(script)
    state, result, error = job(world, "backup", name, kind="manual")
    assert state == "done", error
    state, result, error = job(world, "restore", name, backup=result["backup"])
    assert state == "done", error
    return record, project, result["warnings"]


def test_a_name_over_lines_is_no_statement_of_its_own(world):
    """Lines of a script are run by themselves where the administrator makes an extension."""
    name = "a\nCREATE EXTENSION lo;alter role anon createdb--"
    record, _, warnings = restored(world, "liner", f"""
        create schema "{name}";
        create extension citext schema "{name}";
        create table "{name}"."b;\nGRANT x TO y;\n""c" (n int);
        grant select on "{name}"."b;\nGRANT x TO y;\n""c" to anon;
        alter default privileges in schema "{name}" grant insert on tables to authenticated;
    """)  # fmt: skip
    with psycopg.connect(world.cluster.dsn(record.database)) as admin:
        assert admin.execute(
            "select rolcreatedb from pg_roles where rolname = 'anon'"
        ).fetchone() == (False,)
        assert admin.execute(
            "select extname::text, extnamespace::regnamespace::text, extowner::regrole::text "
            "from pg_extension where extname <> 'plpgsql'"
        ).fetchall() == [("citext", f'"{name}"', record.role("owner"))]
        assert warnings == []
        assert admin.execute(
            "select has_table_privilege('anon', oid, 'select'), "
            "has_table_privilege('anon', oid, 'insert') from pg_class where relname like '%GRANT%'"
        ).fetchall() == [(True, False)]
        assert admin.execute(
            "select count(*) from pg_default_acl d join pg_namespace n on n.oid = defaclnamespace "
            "where nspname like '%EXTENSION%'"
        ).fetchone() == (1,)
    run(world.fresh().delete("liner"))


def test_a_schema_named_like_the_servers_own_is_the_owners(world):
    """Rows of the server's own tables are loaded by the administrator."""
    _, project, warnings = restored(world, "namesake", traps.SPRUNG + """
        create function trap.check(n int) returns bool language plpgsql immutable as
          'begin perform trap.sprung(); return true; end';
        create schema "ichibase x";
        create table "ichibase x".first (n int check (trap.check(n)));
        insert into "ichibase x".first values (1);
        create schema "DATA";
        create table "DATA"."ichibase x" (n int check (trap.check(n)));
        insert into "DATA"."ichibase x" values (2);
        create schema "UP";
        create table "UP"."ichibase y" (n int);
        create view "UP"."SCHEMA ichibase z" as select 1 as n;
    """)  # fmt: skip
    assert warnings == []
    with psycopg.connect(project.owner_dsn) as owner:
        for name in ('"ichibase x".first', '"DATA"."ichibase x"', '"UP"."SCHEMA ichibase z"'):
            assert owner.execute(f"select count(*) from {name}").fetchone() == (1,)
    run(world.fresh().delete("namesake"))
