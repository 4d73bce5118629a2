"""States of projects: each change survives a crash at every step, is noted, and takes effect."""

import asyncio
import contextlib

import psycopg
import pytest

from ichicore.errors import ApiError
from server.base import limits
from server.control import database, owners, projects, provision, records, upgrades
from server.control import lifecycle as module
from server.control.lifecycle import Lifecycle
from tests.killing import Killed, break_at


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def life(world):
    return Lifecycle(world.fresh())


@pytest.fixture
def project(world, request):
    slug = f"life-{abs(hash(request.node.name)) % 10**9}"
    record = run(world.fresh().create(slug, tier="free", owner=f"{slug}-owner"))
    yield record
    try:
        run(world.fresh().delete(slug))
    except ApiError as error:
        assert error.code == "project_not_found"


def owner_dsn(world, slug):
    record = run(world.fresh().find(slug, deleted=True))
    return records.to_project(record, world.config).owner_dsn


def opens(dsn):
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


def actions(world, slug):
    with psycopg.connect(world.dsn) as control:
        rows = control.execute("select action from audit where project = %s order by id", (slug,))
        return [row[0] for row in rows]


def duties(world):
    with psycopg.connect(world.dsn) as control:
        return control.execute("select count(*) from duties").fetchone()[0]


def test_suspension_closes_the_owners_login_and_ends_its_sessions(world, life, project):
    dsn = owner_dsn(world, project.slug)
    with psycopg.connect(dsn, autocommit=True) as session:
        record = run(life.step(project.slug, "suspend", "test", reason="unpaid"))
        assert (record.state, record.reason) == ("suspended", "unpaid")
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    assert not opens(dsn)
    assert run(life.step(project.slug, "suspend", "test")).state == "suspended"  # done already
    assert run(life.step(project.slug, "resume", "test")).state == "active"
    assert opens(dsn)
    assert actions(world, project.slug) == ["project.create", "project.suspend", "project.resume"]


def test_a_deleted_project_is_kept_for_a_week_and_comes_back_with_its_keys(world, life, project):
    dsn = owner_dsn(world, project.slug)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("create table kept (id int); insert into kept values (1)")
    record = run(life.step(project.slug, "delete", "test"))
    assert record.state == "deleting"
    with psycopg.connect(world.dsn) as control:
        (days,) = control.execute(
            "select extract(epoch from delete_at - now()) / 86400 from projects where id = %s",
            (record.id,),
        ).fetchone()
    assert 6.9 < days <= 7
    assert not opens(dsn)
    with pytest.raises(ApiError, match="no project"):
        run(world.fresh().find(project.slug))
    with pytest.raises(ApiError, match="already"):
        run(world.fresh().create(project.slug))
    assert run(life.purge()) == []
    back = run(life.step(project.slug, "undelete", "test"))
    assert (back.anon_key, back.service_key) == (project.anon_key, project.service_key)
    with psycopg.connect(dsn) as owner:
        assert owner.execute("select id from kept").fetchall() == [(1,)]


def test_a_deleted_project_is_removed_when_its_time_is_over(world, life, project):
    folder = world.config.data_dir / "storage" / project.id / "00"
    folder.mkdir(parents=True)
    (folder / ("0" * 32)).write_bytes(b"a file of the project's")
    run(life.step(project.slug, "delete", "test", keep_days=0))
    assert folder.exists()
    assert run(life.purge()) == [project.slug]
    assert not folder.parent.exists()
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        left = admin.execute(
            "select count(*) from pg_roles where rolname like %s", (f"{project.database}%",)
        ).fetchone()
    assert left == (0,)


def test_one_that_was_suspended_when_it_was_deleted_comes_back_suspended(world, life, project):
    dsn = owner_dsn(world, project.slug)
    run(life.step(project.slug, "suspend", "test", reason="unpaid"))
    run(life.step(project.slug, "delete", "test"))
    for _ in range(2):  # the second changes nothing
        back = run(life.step(project.slug, "undelete", "test"))
        assert (back.state, back.reason, back.delete_at) == ("suspended", "unpaid", None)
        assert not opens(dsn)
    for action in ("sleep", "wake"):
        with pytest.raises(ApiError, match="suspended"):
            run(life.step(project.slug, action, "test"))
    run(life.step(project.slug, "delete", "test"))
    run(life.step(project.slug, "undelete", "test"))
    resumed = run(life.step(project.slug, "resume", "test"))
    assert (resumed.state, resumed.reason) == ("active", None)
    assert opens(dsn)
    run(life.step(project.slug, "delete", "test"))
    assert run(life.step(project.slug, "undelete", "test")).state == "active"
    assert actions(world, project.slug).count("project.undelete") == 3


def test_one_that_was_suspended_with_its_owner_comes_back_when_the_owner_does(world, life, project):
    owner = f"{project.slug}-owner"
    run(life.owner_suspended(owner, True, "test"))
    run(life.step(project.slug, "delete", "test"))
    with pytest.raises(ApiError) as caught:
        run(life.step(project.slug, "undelete", "test"))
    assert caught.value.code == "owner_suspended"
    run(life.owner_suspended(owner, False, "test"))
    assert run(life.step(project.slug, "undelete", "test")).state == "active"
    assert opens(owner_dsn(world, project.slug))


def test_the_audit_tells_of_what_an_older_version_deleted_that_it_was_suspended(world):
    migration = (database.MIGRATIONS / "013_deleted_suspended.sql").read_text()
    life, names = Lifecycle(world.fresh()), ("old-a", "old-b", "old-c")
    for slug in names:
        run(life.projects.create(slug, owner="old"))
    run(life.step("old-a", "suspend", "test", reason="unpaid"))
    run(life.step("old-b", "suspend", "test"))
    run(life.step("old-b", "resume", "test"))
    try:
        for slug in names:
            run(life.step(slug, "delete", "test"))
        with psycopg.connect(world.dsn) as control:
            control.execute("alter table projects drop column was_suspended")
            control.execute("update projects set reason = null where state = 'deleting'")
            control.execute(migration)
        back = [run(life.step(slug, "undelete", "test")) for slug in names]
        assert [(one.state, one.reason) for one in back] == [
            ("suspended", "unpaid"), ("active", None), ("active", None)]  # fmt: skip
    finally:
        for slug in names:
            run(life.projects.delete(slug))


@pytest.fixture
def second(world, life):
    record = run(life.projects.create("second"))
    yield record
    with contextlib.suppress(ApiError):
        run(world.fresh().delete("second"))


def states(world, *projects):
    with psycopg.connect(world.dsn) as control:
        return dict(control.execute(
            "select slug, state from projects where id = any(%s)", ([one.id for one in projects],)
        ).fetchall())  # fmt: skip


def test_one_that_is_brought_back_while_others_are_removed_stays(world, life, project, second):
    both = {project.slug, second.slug}
    for slug in both:
        run(life.step(slug, "delete", "test", keep_days=0))

    async def bring_back(gone):
        for slug in both - {gone.slug}:
            with contextlib.suppress(ApiError):
                await life.step(slug, "undelete", "test")

    purging = Lifecycle(world.fresh())
    purging.projects.on_delete.append(bring_back)
    (removed,) = run(purging.purge())
    (kept,) = both - {removed}
    assert states(world, project, second) == {kept: "active"}
    assert opens(owner_dsn(world, kept))


def test_one_that_cannot_be_removed_keeps_no_other_from_being(world, life, project, second):
    for slug in (project.slug, second.slug):
        run(life.step(slug, "delete", "test", keep_days=0))
    refused = []

    async def refuse(gone):
        if gone.slug in refused or not refused:
            refused.append(gone.slug)
            raise OSError("not this one")

    purging = Lifecycle(world.fresh())
    purging.projects.on_delete.append(refuse)
    with pytest.raises(OSError, match="not this one"):
        run(purging.purge())
    assert states(world, project, second) == {refused[0]: "removing"}
    assert run(purging.projects.recover()) == {refused[0]: "OSError: not this one"}
    assert run(world.fresh().recover()) == {refused[0]: None}
    assert states(world, project, second) == {}


def test_one_that_is_worked_on_keeps_no_other_waiting(world, project, second, monkeypatch):
    monkeypatch.setattr(projects, "BUSY_SECONDS", 1)
    records = sorted((project, second), key=lambda one: one.id)  # as they are taken
    with psycopg.connect(world.dsn, autocommit=True) as busy:
        for one in records:
            busy.execute("insert into duties (project_id) values (%s)", (one.id,))
        key = f"ichibase project {records[0].id}"
        busy.execute("select pg_advisory_lock(hashtextextended(%s, 0))", (key,))
        found = run(asyncio.wait_for(world.fresh().recover(), 60))
        assert found == {records[0].slug: "somebody else has a lock that it needs"}
        assert duties(world) == 1
    assert run(world.fresh().recover()) == {}
    assert duties(world) == 0


def test_what_others_grant_to_its_logins_does_not_keep_a_project(world, life, project):
    other = run(life.projects.create("granting", tier="free", owner="somebody"))
    login = f"{project.database}_owner"
    with (
        contextlib.closing(psycopg.connect(owner_dsn(world, "granting"), autocommit=True)) as owner,
        contextlib.closing(psycopg.connect(owner_dsn(world, "granting"))) as busy,
    ):
        owner.execute(
            f"create table bait (id int); grant select on bait to {login}; "
            f"create policy p on bait to {login}, anon using (true)"
        )
        owner.execute(f"grant temporary on database {other.database} to {login}")
        busy.execute(f"revoke select on bait from {login}")  # and does not say whether for good
        try:
            run(life.projects.delete(project.slug))
            with psycopg.connect(world.cluster.admin_dsn) as admin:
                left = admin.execute(
                    "select count(*) from pg_roles where rolname like %s",
                    (f"{project.database}%",),
                ).fetchone()
            assert left == (0,)
            with psycopg.connect(owner_dsn(world, "granting")) as again:
                kept = again.execute("select roles from pg_policies where tablename = 'bait'")
                assert kept.fetchall() == [(["anon"],)]
        finally:
            run(life.projects.delete(other.slug))


def test_a_grant_of_a_database_does_not_keep_a_project(world, life, project):
    other = run(life.projects.create("giving", tier="free", owner="somebody"))
    try:
        with psycopg.connect(owner_dsn(world, "giving"), autocommit=True) as owner:
            for kind in ("owner", "authenticator", "system", "feed"):
                owner.execute(
                    f"grant all on database {other.database} to {project.database}_{kind}"
                )
        run(life.projects.delete(project.slug))
        with psycopg.connect(world.cluster.admin_dsn) as admin:
            left = admin.execute(
                "select count(*) from pg_roles where rolname like %s", (f"{project.database}%",)
            ).fetchone()
        assert left == (0,)
    finally:
        run(life.projects.delete(other.slug))


# Changes, what they start from, and whether the owner can log in afterwards.
CHANGES = {
    "suspend": ([], False), "sleep": ([], True), "delete": ([], False),
    "resume": (["suspend"], True), "wake": (["sleep"], True), "undelete": (["delete"], True),
    "undelete of a suspended one": (["suspend", "delete"], False),
    "read_only": ([], True), "writable": (["read_only"], True), "change": ([], True),
}  # fmt: skip


async def make(life, record, name):
    if name in ("read_only", "writable"):
        await life.read_only(record.id, name == "read_only", {})
    elif name == "change":
        await life.change(record.slug, {"tier": "pro"}, "test")
    else:
        await life.step(record.slug, name, "test")


def facts(world, slug):
    record = run(world.fresh().find(slug, deleted=True))
    return record.state, record.tier, record.read_only


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_killed_at_any_step_rolls_back_or_is_completed(
    world, life, project, monkeypatch, name
):
    firsts, is_open = CHANGES[name]
    name = name.partition(" ")[0]
    dsn = owner_dsn(world, project.slug)
    for first in firsts:
        run(make(life, project, first))
    before, noted = facts(world, project.slug), actions(world, project.slug)
    steps = [(module, "audit", 1), (module, "owe", 1), (provision, "settle", 1),
             (provision, "connect", 1), *((provision, "run", n) for n in (2, 4, 9))]  # fmt: skip
    for where, step, count in steps:
        with monkeypatch.context() as patch:
            break_at(patch, where, step, count)
            with pytest.raises(Killed):
                run(make(life, project, name))
        if where is module:  # the transaction had not ended: as if never asked
            assert (facts(world, project.slug), duties(world)) == (before, 0)
            assert actions(world, project.slug) == noted
            continue
        assert (facts(world, project.slug) != before, duties(world)) == (True, 1)
        run(world.fresh().recover())
        assert (duties(world), opens(dsn)) == (0, is_open)
        shown = f"project.{name}"
        assert actions(world, project.slug) == [*noted, shown]
        with psycopg.connect(world.dsn) as control:  # once more
            control.execute(
                "update projects set state = %s, tier = %s, read_only = %s where id = %s",
                (*before, project.id),
            )
            last = "action = %s and id = (select max(id) from audit)"
            control.execute(f"delete from audit where project = %s and {last}",
                            (project.slug, shown))  # fmt: skip
    run(make(life, project, name))
    assert (duties(world), opens(dsn)) == (0, is_open)


@pytest.mark.parametrize("step", ["audit", "remove"])
def test_a_purge_killed_at_any_step_is_completed(world, life, project, monkeypatch, step):
    run(life.step(project.slug, "delete", "test", keep_days=0))

    async def breaking(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(projects if step == "audit" else provision, step, breaking)
        with pytest.raises(Killed):
            run(life.purge())
    run(world.fresh().recover())
    assert run(life.purge()) == ([project.slug] if step == "audit" else [])
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        left = admin.execute("select count(*) from pg_roles where rolname like %s",
                             (f"{project.database}%",)).fetchone()  # fmt: skip
    assert left == (0,)
    assert actions(world, project.slug).count("project.remove") == 1


@pytest.mark.parametrize("step", ["provision", "migrate", "audit"])
def test_an_upgrade_killed_at_any_step_is_done_again(world, project, monkeypatch, step):
    def outdate():
        with psycopg.connect(world.dsn) as control:
            control.execute("update projects set provisioned = 0 where id = %s", (project.id,))

    async def breaking(*arguments, **options):
        raise Killed

    async def refused(*arguments, **options):
        raise psycopg.errors.RaiseException("in the way")

    outdate()
    where = provision if step == "provision" else upgrades
    with monkeypatch.context() as patch:
        patch.setattr(where, step, breaking)
        with pytest.raises(Killed):
            run(upgrades.upgrade(world.fresh(), project.id))
        record = run(world.fresh().find(project.slug))
        assert (record.provisioned, record.upgrade_fault) == (0, None)
        assert records.served_state(record) == "outdated"
        patch.setattr(provision, "provision", refused)
        if step == "audit":  # of a failure, which is then not noted either
            with pytest.raises(Killed):
                run(upgrades.upgrade(world.fresh(), project.id))
            assert run(world.fresh().find(project.slug)).upgrade_fault is None
            return
        assert run(upgrades.upgrade(world.fresh(), project.id)) == "in the way"
        assert records.served_state(run(world.fresh().find(project.slug))) == "broken"
    assert run(upgrades.upgrade(world.fresh(), project.id)) is None
    record = run(world.fresh().find(project.slug))
    assert (records.served_state(record), record.upgrade_fault) == ("active", None)
    assert actions(world, project.slug) == [
        "project.create", "project.upgrade_failed", "project.upgrade"]  # fmt: skip


@pytest.mark.parametrize("action", ["resume", "wake", "undelete"])
def test_a_change_that_does_not_apply_is_refused(world, life, project, action):
    run(life.step(project.slug, "suspend" if action != "resume" else "sleep", "test"))
    with pytest.raises(ApiError) as caught:
        run(life.step(project.slug, action, "test"))
    assert (caught.value.status, caught.value.code) == (409, "wrong_state")


def test_many_wakings_at_once_are_noted_once(world, life, project):
    run(life.step(project.slug, "sleep", "test"))

    async def wake():
        async with world.fresh().control() as control:
            await control.execute(records.WAKE, (project.slug,))

    async def many():
        await asyncio.gather(*(wake() for _ in range(20)))

    run(many())
    assert run(world.fresh().find(project.slug)).state == "active"
    assert actions(world, project.slug).count("project.wake") == 1


def shown(dsn, *names):
    with psycopg.connect(dsn) as session:
        return tuple(session.execute(f"show {name}").fetchone()[0] for name in names)


SHOWN = ("temp_file_limit", "work_mem", "idle_in_transaction_session_timeout",
         "statement_timeout", "lock_timeout", "max_parallel_workers_per_gather",
         "default_transaction_read_only")  # fmt: skip
FREE = ("256MB", "4MB", "10s", "1min", "4s", "0", "off")


def test_a_tier_changes_in_place_and_loses_nothing(world, life, project):
    dsn = owner_dsn(world, project.slug)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("create table kept (id int); insert into kept values (1)")
    assert shown(dsn, *SHOWN) == FREE
    record = run(life.change(project.slug, {"tier": "pro"}, "test"))
    assert (record.tier, record.anon_key) == ("pro", project.anon_key)
    assert shown(dsn, *SHOWN) == ("5GB", "16MB", "1min", "1h", "30s", "2", "off")
    granted = records.to_project(record, world.config).limits
    assert granted == limits.DEFAULT_TIERS["pro"]
    own = {"work_memory": 8 << 20, "lock_ms": 250, "parallel_workers": 1, "temp_bytes": 1 << 20,
           "owner_statement_ms": 2_500, "idle_transaction_ms": 1_500}  # fmt: skip
    run(life.change(project.slug, {"limits": own}, "test"))
    assert shown(dsn, *SHOWN) == ("1MB", "8MB", "1500ms", "2500ms", "250ms", "1", "off")
    run(life.change(project.slug, {"tier": "free", "limits": {}}, "test"))
    assert shown(dsn, *SHOWN) == FREE
    with psycopg.connect(dsn) as owner:
        assert owner.execute("select id from kept").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [({"tier": "gold"}, "invalid_tier"), ({"limits": {"conections": 1}}, "invalid_limits"),
     ({"limits": {"connections": 0}}, "invalid_limits"), ({"owner": "a b"}, "invalid_owner"),
     ({"owner": ""}, "invalid_owner"), ({"limits": {"connections": 1e400}}, "invalid_limits")],
)  # fmt: skip
def test_changes_that_make_no_sense_are_refused(life, project, wanted, code):
    with pytest.raises(ApiError) as caught:
        run(life.change(project.slug, wanted, "test"))
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize("number", [1, 65_536, 2**31 - 1, 2**31, 2**40, 2**53])
def test_the_database_takes_every_number_that_is_accepted(life, project, number):
    accepted = {}
    for name in limits.NAMES:
        with contextlib.suppress(limits.LimitsError):
            limits.changed(limits.PRO, {name: number})
            accepted[name] = number
    assert accepted
    run(life.change(project.slug, {"limits": accepted}, "test"))
    run(life.step(project.slug, "suspend", "test"))


def test_the_owners_connections_are_bounded(world, life, project):
    run(life.change(project.slug, {"limits": {"connections": 2}}, "test"))
    dsn = owner_dsn(world, project.slug)
    with (
        psycopg.connect(dsn), psycopg.connect(dsn),
        pytest.raises(psycopg.OperationalError, match="too many connections"),
    ):  # fmt: skip
        psycopg.connect(dsn)


def test_a_read_only_project_lets_its_owner_read_and_on_request_delete(world, life, project):
    dsn = owner_dsn(world, project.slug)
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("create table t (id int); insert into t values (1)")
    assert run(life.read_only(project.id, True, {"percent": 101})) is True
    assert run(life.read_only(project.id, True, {})) is False
    with psycopg.connect(dsn, autocommit=True) as owner:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            owner.execute("insert into t values (2)")
        assert owner.execute("select count(*) from t").fetchone() == (1,)
        owner.execute("set default_transaction_read_only = off")
        owner.execute("delete from t")
    assert run(life.read_only(project.id, False, {})) is True
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("insert into t values (2)")


def test_free_allows_one_project_an_owner_and_one_flavor(world, life):
    async def race():
        makers = [
            world.fresh().create(f"mine-{i}", tier="free", owner="ann@example.com")
            for i in range(4)
        ]
        return await asyncio.gather(*makers, return_exceptions=True)

    outcomes = run(race())
    made = [one for one in outcomes if not isinstance(one, Exception)]
    refused = {(e.status, e.code) for e in outcomes if isinstance(e, ApiError)}
    assert (len(made), refused) == (1, {(403, "project_limit")})
    slug = made[0].slug
    with pytest.raises(ApiError) as caught:
        run(world.fresh().create("two", "both", "free", owner="bob"))
    assert caught.value.code == "flavor_not_allowed"
    # Deleting makes room; bringing back needs it again.
    run(life.step(slug, "delete", "test"))
    run(world.fresh().create("next", tier="free", owner="ann@example.com"))
    with pytest.raises(ApiError) as caught:
        run(life.step(slug, "undelete", "test"))
    assert caught.value.code == "project_limit"
    for name in (slug, "next"):
        run(world.fresh().delete(name))


def test_an_owners_suspension_covers_its_projects_and_only_what_it_suspended(world, life):
    for slug in ("own-a", "own-b"):
        run(world.fresh().create(slug, owner="carl"))
    run(life.step("own-a", "suspend", "test", reason="by hand"))
    run(life.owner_suspended("carl", True, "test"))
    with pytest.raises(ApiError, match="suspended"):
        run(world.fresh().create("own-c", owner="carl"))
    with pytest.raises(ApiError, match="suspended"):
        run(life.step("own-b", "resume", "test"))
    run(life.owner_suspended("carl", True, "test"))  # done already
    assert [actions(world, slug).count("project.suspend") for slug in ("own-a", "own-b")] == [1, 1]
    run(life.owner_suspended("carl", False, "test"))
    states = {r.slug: r.state for r in run(world.fresh().all()) if r.slug.startswith("own-")}
    assert states == {"own-a": "suspended", "own-b": "active"}

    async def remove():
        async with world.fresh().control() as control:
            await owners.remove(control, "carl", "test")

    with pytest.raises(ApiError, match="belong"):
        run(remove())
    for slug in ("own-a", "own-b"):
        run(world.fresh().delete(slug))
    run(remove())


OWNER_STEPS = [
    (module, "audit", 1), (module, "audit", 2), (module, "owe", 1), (module, "owe", 2),
    (provision, "settle", 1), (provision, "settle", 2), (provision, "run", 3),
]  # fmt: skip


@pytest.mark.parametrize("on", [True, False])
def test_an_owners_suspension_killed_at_any_step_rolls_back_or_is_completed(
    world, life, monkeypatch, on
):
    slugs = ("kin-a", "kin-b")
    made = {slug: run(world.fresh().create(slug, owner="kin")) for slug in slugs}
    try:
        if not on:
            run(life.owner_suspended("kin", True, "test"))

        def seen():
            async def find():
                async with world.fresh().control() as control:
                    return (await owners.find(control, "kin")).suspended

            return run(find()), [facts(world, slug)[0] for slug in slugs]

        before, after = (True, ["suspended"] * 2), (False, ["active"] * 2)
        if on:
            before, after = after, before
        dsns = [records.to_project(record, world.config).owner_dsn for record in made.values()]
        noted = [actions(world, slug) for slug in slugs]
        for where, step, count in OWNER_STEPS:
            with monkeypatch.context() as patch:
                break_at(patch, where, step, count)
                with pytest.raises(Killed):
                    run(life.owner_suspended("kin", on, "test"))
            if where is module:  # none of it
                assert (seen(), duties(world)) == (before, 0)
                assert [actions(world, slug) for slug in slugs] == noted
                continue
            assert seen() == after  # all of it
            assert duties(world) >= 1
            run(world.fresh().recover())
            assert (duties(world), [opens(dsn) for dsn in dsns]) == (0, [not on] * 2)
            again = f"project.{'suspend' if on else 'resume'}"
            assert [actions(world, slug)[-1] for slug in slugs] == [again] * 2
            run(life.owner_suspended("kin", not on, "test"))  # once more
            noted = [actions(world, slug) for slug in slugs]
    finally:
        run(life.owner_suspended("kin", False, "test"))
        for slug in slugs:
            run(world.fresh().delete(slug))


def test_a_project_made_while_its_owner_is_suspended_is_suspended_too(world, life, monkeypatch):
    """At every moment between its row and its first request."""

    async def late(slug):
        projects = world.fresh()
        projects.on_create.append(lambda _: life.owner_suspended("late", True, "test"))
        return await projects.create(slug, owner="late")

    async def race(slug):
        make = world.fresh().create(slug, owner="late")
        suspend = life.owner_suspended("late", True, "test")
        return await asyncio.gather(make, suspend, return_exceptions=True)

    run(world.fresh().create("late", owner="late"))
    assert run(late("late-x")).state == "suspended"
    assert not opens(owner_dsn(world, "late-x"))
    assert actions(world, "late-x") == ["project.create", "project.suspend"]
    for n in range(3):
        run(life.owner_suspended("late", False, "test"))
        made, suspended = run(race(f"late-{n}"))
        assert suspended is None
        assert not isinstance(made, Exception) or made.code == "owner_suspended"
        found = {r.slug: r.state for r in run(world.fresh().all()) if r.slug.startswith("late")}
        assert set(found.values()) == {"suspended"}, found
    run(life.owner_suspended("late", False, "test"))
    assert opens(owner_dsn(world, "late-x"))
    for slug in found:
        run(world.fresh().delete(slug))
