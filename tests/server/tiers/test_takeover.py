"""Code of an owner that runs under one of the node's own logins gets no further than the owner."""

import asyncio

import psycopg
import pytest
from psycopg import sql

from server.backup.jobs import Jobs
from server.base.events import Events
from server.base.metrics import Metrics
from server.control import provision, records
from server.control.database import connect
from server.control.projects import migrate
from tests.server.tiers.shop import done
from tests.servers import PROGRAMS

pytestmark = pytest.mark.skipif(bool(PROGRAMS), reason="about the embedded server")


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def taken(world):
    """(record, project) of a free project."""
    record = run(world.fresh().create("taken", tier="free", owner="taker"))
    yield record, records.to_project(record, world.config)
    run(world.fresh().delete("taken"))


def logs_in(record, kind, *, tcp):
    """Whether somebody who has set the password gets in."""
    try:
        psycopg.connect(record.dsn(kind, "known", tcp=tcp)).close()
    except psycopg.OperationalError as error:
        assert "pg_hba.conf rejects" in str(error)
        return False
    return True


def test_a_function_in_a_request_does_not_open_the_requests_login(world, taken):
    record, project = taken
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("""
            create function take() returns text language plpgsql as $$
            begin
              execute 'reset role';
              execute $s$ alter role current_user password 'known' $s$;
              return current_user;
            end $$;
        """)
    with psycopg.connect(project.authenticator_dsn, autocommit=True) as session:
        session.execute("select set_config('role', 'anon', false)")
        (became,) = session.execute("select public.take()").fetchone()
    assert became == record.role("authenticator")  # Postgres has no way to keep it from that
    assert logs_in(record, "authenticator", tcp=True) is False
    assert logs_in(record, "authenticator", tcp=False)  # from the node's own folder alone
    run(provision.provision(world.cluster, record))  # the right one comes back
    psycopg.connect(project.authenticator_dsn).close()


def test_a_cast_in_a_reference_does_not_open_the_system_login(world, taken):
    record, project = taken
    with psycopg.connect(project.system_dsn, autocommit=True) as system:
        system.execute("insert into auth.users (email) values ('ann@example.com')")
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("""
            create table became (who text);
            grant insert on became to public;
            create type handle as (of text);
            create function to_uuid(handle) returns uuid language plpgsql as $$
            begin
              insert into public.became values (current_user);
              execute $s$ alter role current_user password 'known' $s$;
              return (select id from auth.users);
            end $$;
            create cast (handle as uuid) with function to_uuid(handle) as implicit;
            create table follower (who handle references auth.users (id));
            insert into follower values (row('x'));
        """)
        became = {who for (who,) in owner.execute("select who from became")}
    assert became == {record.role("system")}  # Postgres asks as the owner of the table referred to
    assert logs_in(record, "system", tcp=True) is False
    assert logs_in(record, "system", tcp=False)
    run(provision.provision(world.cluster, record))
    psycopg.connect(project.system_dsn).close()


@pytest.mark.parametrize("kind", ["owner", "authenticator", "system"])
def test_no_login_has_more_temporary_files_than_the_tier(taken, kind):
    record, project = taken
    mine = sql.SQL("alter role current_user in database {} ").format(
        sql.Identifier(record.database)
    )
    with psycopg.connect(getattr(project, f"{kind}_dsn"), autocommit=True) as session:
        assert session.execute("show temp_file_limit").fetchone() == ("256MB",)
        for change in ("set temp_file_limit = -1", mine + sql.SQL("set temp_file_limit = -1"),
                       mine + sql.SQL("reset temp_file_limit")):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(change)
        session.execute(mine + sql.SQL("reset all"))
    with psycopg.connect(getattr(project, f"{kind}_dsn"), autocommit=True) as session:
        assert session.execute("show temp_file_limit").fetchone() == ("256MB",)


def job(world, what, project, **args):
    return done(Jobs(world.fresh(), Events(), Metrics()), what, project, **args)


def test_an_owners_limit_of_transactions_ends_nobody_elses(world, taken):
    """The upkeep, a backup, and the removal of another project that was granted something here."""
    record, project = taken
    other = run(world.fresh().create("bystander", owner="bystander"))
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute(f"create table bait (n int); grant select on bait to {other.role('owner')}")
        owner.execute(f"alter database {record.database} set transaction_timeout = '1ms'")
        owner.execute(f"alter database {record.database} set quote_all_identifiers = on")

    async def sleeps(dsn):
        async with await connect(dsn) as session:
            await session.execute("select pg_sleep(0.1)")

    run(sleeps(world.cluster.dsn(record.database)))
    for kind in ("system", "feed"):
        run(sleeps(record.dsn(kind, getattr(record, f"{kind}_password"))))
    run(world.fresh().delete("bystander"))
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        left = admin.execute(
            "select count(*) from pg_roles where rolname like %s", (f"{other.database}%",)
        ).fetchone()
    assert left == (0,)
    run(provision.provision(world.cluster, record))
    run(migrate(project))
    state, _, error = job(world, "backup", "taken", kind="manual")
    assert state == "done", error
