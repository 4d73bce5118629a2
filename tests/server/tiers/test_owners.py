"""Owners: what is done to them is noted with it, and races with their projects end well."""

import asyncio
import random

import psycopg
import pytest

from ichicore.errors import ApiError
from server.control import auditing, owners
from server.control.lifecycle import Lifecycle
from tests.killing import Killed, break_at


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def name(world):
    made = f"owner-{random.randrange(10**9)}"
    yield made
    with psycopg.connect(world.dsn) as control:
        control.execute("delete from owners where name = %s", (made,))


def with_control(world, work, *arguments):
    async def do():
        async with world.fresh().control() as control:
            return await work(control, *arguments)

    return run(do())


def put(world, name, **values):
    return with_control(world, owners.put, name, values, "ann")


def noted(world, name):
    """The entries of an owner, oldest first."""
    entries = with_control(world, auditing.of_owner, name)
    return [(one.action.removeprefix("owner."), one.actor, one.detail) for one in entries[::-1]]


def test_every_change_of_an_owner_is_noted_once_with_what_was_before(world, name):
    made = put(world, name, email="a@example.com", bound=None)
    assert (made.email, made.bound, made.suspended) == ("a@example.com", None, False)
    put(world, name)  # nothing
    put(world, name, email="a@example.com")  # nothing new
    changed = put(world, name, email=None, bound=3)
    assert (changed.email, changed.bound) == (None, 3)
    put(world, name, bound=0)
    life = Lifecycle(world.fresh())
    for on in (True, False):
        run(life.owner_suspended(name, on, "ben"))
    with_control(world, owners.remove, name, "ben")
    me = {"owner": name}
    assert noted(world, name) == [
        ("create", "ann", me),
        ("change", "ann", {**me, "email": "a@example.com", "from": {"email": None}}),
        ("change", "ann", {**me, "email": None, "bound": 3,
                           "from": {"email": "a@example.com", "bound": None}}),
        ("change", "ann", {**me, "bound": 0, "from": {"bound": 3}}),
        ("suspend", "ben", me),
        ("resume", "ben", me),
        ("delete", "ben", me),
    ]  # fmt: skip
    with pytest.raises(ApiError) as caught:
        with_control(world, owners.remove, name, "ben")
    assert caught.value.code == "owner_not_found"


def test_an_owner_that_comes_with_its_first_project_is_noted(world, name):
    run(world.fresh().create("firstborn", owner=name, actor="ann"))
    run(world.fresh().create("secondborn", owner=name, actor="ann"))
    with pytest.raises(ApiError) as caught:
        with_control(world, owners.remove, name, "ann")
    assert caught.value.code == "owner_has_projects"
    for slug in ("firstborn", "secondborn"):
        run(world.fresh().delete(slug))
    assert noted(world, name) == [("create", "ann", {"owner": name})]


def test_what_is_killed_while_it_is_noted_has_not_been_done(world, name, monkeypatch):
    def tries(work, *arguments):
        with monkeypatch.context() as patch:
            break_at(patch, owners, "audit", 1)
            with pytest.raises(Killed):
                with_control(world, work, *arguments)

    tries(owners.put, name, {"email": "a@example.com"}, "ann")
    with pytest.raises(ApiError, match="no owner"):
        with_control(world, owners.find, name)
    put(world, name, bound=1)
    before = noted(world, name)
    tries(owners.put, name, {"bound": 2}, "ann")
    tries(owners.remove, name, "ann")
    assert with_control(world, owners.find, name).bound == 1
    assert noted(world, name) == before


def test_an_owner_is_not_deleted_while_a_project_is_made_for_it(world, name):
    put(world, name)

    async def race():
        projects = world.fresh()
        async with projects.control() as making, projects.control() as deleting:
            async with making.transaction():
                await owners.reserve(making, name, "free", 1, "ann")
                deletion = asyncio.create_task(owners.remove(deleting, name, "ben"))
                await asyncio.wait([deletion], timeout=0.3)
                assert not deletion.done()
                await making.execute(
                    "insert into projects select (jsonb_populate_record(p, jsonb_build_object("
                    "'id', 'forthcoming', 'slug', 'forthcoming', 'database', 'ichi_forthcoming', "
                    "'owner_id', o.id, 'state', 'suspended'))).* "
                    "from projects p, owners o where o.name = $1 limit 1",
                    (name,),
                )
            with pytest.raises(ApiError) as caught:
                await deletion
            await making.execute("delete from projects where id = 'forthcoming'")
            return caught.value.code

    other = run(world.fresh().create("for-a-row"))
    try:
        assert run(race()) == "owner_has_projects"
    finally:
        run(world.fresh().delete(other.slug))


def test_one_that_is_deleted_while_it_is_changed_or_used_is_made_anew(world, name):
    async def rush():
        rng = random.Random(11)

        async def one(work, *arguments):
            await asyncio.sleep(rng.random() * 0.3)
            async with world.fresh().control() as control, control.transaction():
                return await work(control, *arguments)

        return await asyncio.gather(
            *(one(owners.put, name, {"bound": n}, "ann") for n in range(12)),
            *(one(owners.reserve, name, "free", 1, "ann") for n in range(12)),
            *(one(owners.remove, name, "ben") for n in range(12)),
            return_exceptions=True,
        )

    failed = [one for one in run(rush()) if isinstance(one, BaseException)]
    assert {getattr(one, "code", one) for one in failed} <= {"owner_not_found"}
    actions = [action for action, *_ in noted(world, name) if action != "change"]
    assert actions == [("create", "delete")[n % 2] for n in range(len(actions))]
