"""What several ask for one project at the same moment."""

import asyncio
import random

import psycopg
import pytest

from ichicore.errors import ApiError
from server.backup import restore
from server.backup.jobs import Jobs
from server.base.events import Events
from server.base.metrics import Metrics
from server.control import records
from server.control.lifecycle import Lifecycle
from tests.server.tiers.shop import done


def run(coroutine):
    return asyncio.run(coroutine)


def parts(world, record):
    """Databases and logins that the cluster has of a project."""
    with psycopg.connect(world.cluster.admin_dsn) as admin:
        rows = admin.execute(
            "select datname from pg_database where starts_with(datname, %s) "
            "union all select rolname from pg_roles where starts_with(rolname, %s)",
            (record.database, record.database),
        ).fetchall()
    return {row[0] for row in rows}


def refusals(outcomes):
    """Codes of those that were refused; nothing else may have gone wrong."""
    failed = [one for one in outcomes if isinstance(one, BaseException)]
    assert [one for one in failed if not isinstance(one, ApiError)] == []
    return [one.code for one in failed]


def test_of_thirty_creations_at_once_one_wins(world):
    async def race(*names, tier):
        makers = [world.fresh().create(name, tier=tier, owner="racer") for name in names]
        return await asyncio.gather(*makers, return_exceptions=True)

    same = run(race(*["raced"] * 30, tier="pro"))
    assert refusals(same) == ["project_exists"] * 29
    run(world.fresh().delete("raced"))
    different = run(race(*[f"raced-{n}" for n in range(30)], tier="free"))
    assert refusals(different) == ["project_limit"] * 29
    (made,) = [one for one in different if not isinstance(one, BaseException)]
    run(world.fresh().delete(made.slug))


def test_creations_deletions_and_changes_at_once_leave_all_or_nothing(world):
    rng = random.Random(7)
    seen = {}

    async def act(what):
        projects = world.fresh()
        await asyncio.sleep(rng.random() * 0.5)
        if what == "create":
            record = await projects.create("rushed", owner="racer")
            seen[record.id] = record
        elif what == "remove":
            await projects.delete("rushed")
        elif what == "change":
            await Lifecycle(projects).change("rushed", {"tier": rng.choice(["free", "pro"])}, "t")
        else:
            await Lifecycle(projects).step("rushed", what, "test")

    async def rush():
        kinds = ["create", "remove", "change", "suspend", "resume", "delete", "undelete", "sleep"]
        return await asyncio.gather(*(act(one) for one in kinds * 5), return_exceptions=True)

    codes = set(refusals(run(rush())))
    assert codes <= {"project_exists", "project_not_found", "wrong_state", "project_limit"}
    run(world.fresh().recover())
    with psycopg.connect(world.dsn) as control:
        rows = control.execute("select id, state from projects where slug = 'rushed'").fetchall()
        assert control.execute("select count(*) from duties").fetchone() == (0,)
    assert [state for _, state in rows if state in ("creating", "removing")] == []
    kept = {row[0] for row in rows}
    for id, record in seen.items():
        assert bool(parts(world, record)) == (id in kept)
    if rows:
        run(world.fresh().delete("rushed"))


@pytest.fixture(scope="module")
def backup(world):
    """A project and its backup."""
    yield backed_up(world)
    run(world.fresh().delete("restored"))


def backed_up(world, slug="restored"):
    record = run(world.fresh().create(slug, owner="racer"))
    with psycopg.connect(records.to_project(record, world.config).owner_dsn) as owner:
        owner.execute("create table public.kept (n int); insert into public.kept values (1)")
    state, result, error = job(world, "backup", slug, kind="manual")
    assert state == "done", error
    return record, result["backup"]


def job(world, what, slug="restored", **args):
    return done(Jobs(world.fresh(), Events(), Metrics()), what, slug, **args)


def meanwhile(monkeypatch, step, action):
    """Another process does something before a step of the restore."""
    real = getattr(restore, step)

    async def first(*arguments, **options):
        await action()
        return await real(*arguments, **options)

    monkeypatch.setattr(restore, step, first)


@pytest.mark.parametrize("step", ["load", "check", "swap"])
@pytest.mark.parametrize("action", ["suspend", "delete"])
def test_a_state_that_comes_while_a_project_is_restored_stays(
    world, backup, monkeypatch, step, action
):
    record, made = backup
    life = Lifecycle(world.fresh())
    with monkeypatch.context() as patch:
        meanwhile(patch, step, lambda: ask(world, action, waits=step == "swap"))
        job(world, "restore", backup=made)
    run(world.fresh().recover())
    project = records.to_project(run(world.fresh().find("restored", deleted=True)), world.config)
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(project.owner_dsn)
    run(life.step("restored", {"suspend": "resume", "delete": "undelete"}[action], "test"))
    with psycopg.connect(project.owner_dsn) as owner:
        assert owner.execute("select n from public.kept").fetchall() == [(1,)]
    assert not [one for one in parts(world, record) if one.endswith(("_new", "_before"))]


asked, removed = set(), []


async def ask(world, action, *, waits):
    """waits: the restore holds the project's lock for its last steps, which comes first then."""
    task = asyncio.create_task(Lifecycle(world.fresh()).step("restored", action, "test"))
    asked.add(task)
    await asyncio.wait([task], timeout=0.2 if waits else None)


@pytest.mark.parametrize("step", ["load", "swap"])
def test_a_project_removed_while_it_is_restored_is_gone(world, monkeypatch, step):
    record, made = backed_up(world, "removed")
    removed.clear()
    with monkeypatch.context() as patch:
        meanwhile(patch, step, lambda: remove(world, waits=step == "swap"))
        state, *_ = job(world, "restore", "removed", backup=made)
    assert removed == ([] if step == "swap" else [None])
    assert state == "failed" or step == "swap"  # which may be over before the removal goes on
    run(world.fresh().recover())
    assert parts(world, record) == set()
    with pytest.raises(ApiError, match="no project"):
        run(world.fresh().find("removed", deleted=True))


async def remove(world, *, waits):
    task = asyncio.create_task(world.fresh().delete("removed"))
    asked.add(task)
    await asyncio.wait([task], timeout=0.2 if waits else None)
    if not waits:
        removed.append(await task)
