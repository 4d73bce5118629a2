"""Creation and deletion of projects: interrupted at every step, and raced."""

import asyncio

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ichicore.errors import ApiError
from server.base.context import NodeConfig
from server.control import projects as module
from server.control import provision, records
from server.control.database import ControlError, external_cluster, prepare, scram
from server.control.projects import Projects
from tests.clusters import cluster_of
from tests.killing import Killed, break_at
from tests.servers import running_server


@pytest.fixture(scope="module")
def world(pg_cluster, tmp_path_factory):
    cluster = cluster_of(pg_cluster, "control_projects")
    dsn = asyncio.run(prepare(cluster, "control password"))
    config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
    return cluster, dsn, config


def fresh(world):
    cluster, dsn, config = world
    return Projects(dsn, {cluster.id: cluster}, config)


def leftovers(world):
    """Databases and logins of projects that no row of the control database owns."""
    cluster, dsn, _ = world
    with psycopg.connect(dsn) as control:
        known = {row[0] for row in control.execute("select database from projects")}
    with psycopg.connect(cluster.admin_dsn) as admin:
        databases = {r[0] for r in admin.execute("select datname from pg_database")}
        roles = {r[0].rsplit("_", 1)[0] for r in admin.execute("select rolname from pg_roles")}
    found = {name for name in databases | roles if name.startswith("ichi_")}
    return found - known - others(world)


def others(world):
    """What further tests of the session keep in the same cluster."""
    cluster = world[0]
    found = set()
    with psycopg.connect(cluster.admin_dsn) as admin:
        names = [r[0] for r in admin.execute(
            "select datname from pg_database where datname like 'control_%' or datname = 'ichibase'"
        )]  # fmt: skip
    for name in names:
        with psycopg.connect(cluster.admin_dsn, dbname=name) as control:
            if control.execute("select to_regclass('projects')").fetchone() != (None,):
                found |= {r[0] for r in control.execute("select database from projects")}
    return found


STEPS = ("ensure_shared_roles", "ensure_login", "ensure_database", "run")


@pytest.mark.parametrize(
    ("step", "count"),
    [("ensure_shared_roles", 1), ("ensure_login", 1), ("ensure_login", 3), ("ensure_database", 1),
     ("run", 4), ("run", 8), ("run", 20), ("equip", 1), ("run", 35), ("run", 36), ("run", 37),
     ("run", 38), ("run", 39)],
)  # fmt: skip
def test_a_creation_killed_at_any_step_is_completed_at_the_next_start(
    world, monkeypatch, step, count
):
    slug = f"half-{step.replace('_', '-')}-{count}"
    with monkeypatch.context() as patch:
        break_at(patch, provision, step, count)
        with pytest.raises(Killed):
            asyncio.run(fresh(world).create(slug))
        with pytest.raises(ApiError, match="no project"):
            asyncio.run(fresh(world).find(slug))
    assert set(asyncio.run(fresh(world).recover()).values()) <= {None}
    record = asyncio.run(fresh(world).find(slug))
    with psycopg.connect(records.to_project(record, world[2]).owner_dsn) as owner:
        assert owner.execute("select auth.uid()").fetchone() == (None,)
    asyncio.run(fresh(world).delete(slug))
    assert leftovers(world) == set()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_deletion_killed_at_any_step_is_completed_at_the_next_start(world, monkeypatch, count):
    slug = f"gone-{count}"
    asyncio.run(fresh(world).create(slug))
    with monkeypatch.context() as patch:
        break_at(patch, provision, "run", count)
        with pytest.raises(Killed):
            asyncio.run(fresh(world).delete(slug))
    with pytest.raises(ApiError, match="no project"):
        asyncio.run(fresh(world).find(slug))
    assert asyncio.run(fresh(world).recover()) == {slug: None}
    assert leftovers(world) == set()
    asyncio.run(fresh(world).create(slug))
    asyncio.run(fresh(world).delete(slug))


def test_a_creation_that_fails_is_taken_back(world, monkeypatch):
    async def refuse(*_):
        raise ApiError(507, "quota_exceeded", "The disk is full.")

    projects = fresh(world)
    projects.on_create.append(refuse)
    with pytest.raises(ApiError, match="disk is full"):
        asyncio.run(projects.create("unlucky", actor="somebody"))
    assert leftovers(world) == set()
    with psycopg.connect(world[1]) as control:
        noted = control.execute(
            "select actor, action, detail ->> 'error' from audit where project = 'unlucky' "
            "order by id"
        ).fetchall()
    assert noted == [("somebody", "project.create", None),
                     ("somebody", "project.create_failed", "The disk is full.")]  # fmt: skip
    assert asyncio.run(fresh(world).ensure("unlucky", "postgres")) is True
    asyncio.run(fresh(world).delete("unlucky"))


def test_one_of_many_racing_creations_wins(world):
    async def race():
        makers = [fresh(world).create("raced") for _ in range(6)]
        return await asyncio.gather(*makers, return_exceptions=True)

    outcomes = asyncio.run(race())
    refused = [one for one in outcomes if isinstance(one, ApiError)]
    assert len(refused) == 5
    assert {(e.status, e.code) for e in refused} == {(409, "project_exists")}
    asyncio.run(fresh(world).delete("raced"))
    assert leftovers(world) == set()


def test_creations_of_different_projects_run_side_by_side(world):
    async def many():
        await asyncio.gather(*(fresh(world).create(f"many-{i}") for i in range(5)))
        await asyncio.gather(*(fresh(world).delete(f"many-{i}") for i in range(5)))

    asyncio.run(many())
    assert leftovers(world) == set()


def test_changes_are_told_on_the_bus_once_they_are_committed(world):
    dsn = world[1]
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute(f"listen {records.CHANNEL}")
        asyncio.run(fresh(world).create("told"))
        asyncio.run(fresh(world).put_settings("told", "cors", {"origins": ["*"]}))
        revision = asyncio.run(fresh(world).find("told")).revision
        asyncio.run(fresh(world).delete("told"))
        payloads = [notice.payload for notice in listener.notifies(timeout=0.3)]
    assert all('"slug" : "told"' in text and '"topic" : "project"' in text for text in payloads)
    assert any(f'"revision" : {revision}}}' in text for text in payloads)


@pytest.mark.parametrize(
    "slug",
    ["", "A", "1a", "-a", "a-", "a--b", "a.b", "a/b", "a" * 41, "xn--a", "ä", "a b", "api", "a\n"],
)
def test_names_that_are_no_host_labels_are_refused(slug):
    with pytest.raises(ApiError) as caught:
        module.check_slug(slug)
    assert (caught.value.status, caught.value.code) == (400, "invalid_name")


def test_a_login_without_the_rights_is_told_which(pg_cluster):
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute("create role weak login createdb password 'weak'")
        admin.execute("grant connect on database postgres to weak")
    cluster = external_cluster(f"postgresql://weak:weak@127.0.0.1:{pg_cluster.port}/postgres")
    with pytest.raises(ControlError, match="CREATEDB, CREATEROLE and BYPASSRLS"):
        asyncio.run(prepare(cluster, "control password"))


def test_a_manager_of_an_existing_server_need_not_be_superuser(tmp_path_factory):
    with running_server(outside=True) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(
                "create role manager login createdb createrole bypassrls password 'manager'"
            )
        cluster = external_cluster(f"postgresql://manager:manager@127.0.0.1:{server.port}/postgres")
        for _ in range(2):  # a second start finds all of it
            dsn = asyncio.run(prepare(cluster, "control password"))
        config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
        projects = Projects(dsn, {cluster.id: cluster}, config)
        record = asyncio.run(projects.create("managed"))
        project = records.to_project(record, config)
        with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
            owner.execute("create table t (id int); alter table t enable row level security")
            owner.execute("set role service_role; insert into t values (1)")
        with psycopg.connect(project.authenticator_dsn, autocommit=True) as client:
            client.execute("set role anon")
            assert client.execute("select auth.uid(), (select count(*) from t)").fetchone() == (
                None, 0)  # fmt: skip
        asyncio.run(projects.delete("managed"))
        with psycopg.connect(server.dsn()) as admin:
            left = "select count(*) from pg_roles where rolname like 'ichi\\_%'"
            assert admin.execute(left).fetchone() == (0,)


@pytest.mark.parametrize("url", [
    "http://x", "postgresql://[", "nonsense", "host=", "postgres:/me:secret@host/db",
    "me:secret@host", "postgresql://me:secret%zz@host/db", "postgresql://me:secret@host:port/db",
    "postgresql://me:secret@one:1,two:2/db",
])  # fmt: skip
def test_an_unusable_database_url_is_named_without_its_password(url):
    with pytest.raises(ControlError) as caught:
        asyncio.run(prepare(external_cluster(url), "control password"))
    assert "secret" not in str(caught.value)


def test_roles_that_are_there_already_get_the_rights_they_need(pg_cluster):
    async def work():
        async with await psycopg.AsyncConnection.connect(
            pg_cluster.dsn(), autocommit=True, cursor_factory=psycopg.AsyncRawCursor
        ) as admin:
            await provision.ensure_shared_roles(admin)
            await admin.execute("alter role service_role nobypassrls")
            await admin.execute("alter role anon bypassrls login")
            await provision.ensure_shared_roles(admin)
            found = await admin.execute(
                "select rolname, rolbypassrls, rolcanlogin from pg_roles "
                "where rolname in ('anon', 'service_role') order by 1"
            )
            return await found.fetchall()

    assert asyncio.run(work()) == [("anon", False, False), ("service_role", True, False)]


def test_logins_of_ours_cost_little_and_the_owners_is_as_others_expect(world):
    projects = fresh(world)
    record = asyncio.run(projects.create("logins"))
    with psycopg.connect(world[0].admin_dsn) as admin:
        stored = dict(admin.execute(
            "select rolname, split_part(split_part(rolpassword, '$', 2), ':', 1) from pg_authid "
            "where rolname like %s", (record.role("%"),),
        ).fetchall())  # fmt: skip
    assert stored == {
        record.role("owner"): "4096",
        **{record.role(kind): "1" for kind in ("authenticator", "system", "feed")},
    }


@pytest.mark.parametrize("iterations", [1, 4096])
def test_a_stored_password_lets_in_who_knows_it(pg_cluster, pg_database, iterations):
    stored = scram("the right-one_1", iterations)
    assert stored != scram("the right-one_1", iterations)
    login = make_conninfo(pg_database, user="scrammed")
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"create role scrammed login password '{stored}'")
        try:
            psycopg.connect(login, password="the right-one_1").close()
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(login, password="the wrong one")
        finally:
            admin.execute("drop role scrammed")
