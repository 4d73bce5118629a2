"""Documents beside the tables of a project that had none."""

import asyncio
import os
from pathlib import Path

import pytest

from ichicore.errors import ApiError
from server.control import projects as module
from server.control.lifecycle import Lifecycle
from server.mongo.folders import Folders
from tests.killing import Killed


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def tables(world):
    """A paid project of tables."""
    record = world.make("adding", "postgres")
    yield record
    try:
        run(world.projects.delete("adding"))
    except ApiError as error:
        assert error.code == "project_not_found"


def test_a_paid_project_gets_documents_and_keeps_its_keys(world, tables):
    made = run(world.projects.add_documents("adding"))
    assert (made.flavor, made.anon_key) == ("both", tables.anon_key)
    world.records["adding"] = made
    world.until(lambda: world.call("count", "x", slug="adding", service=True).status == 200)
    world.service("insertOne", "x", {"doc": {"_id": 1}}, slug="adding")
    with pytest.raises(ApiError) as caught:
        run(world.projects.add_documents("adding"))
    assert (caught.value.status, caught.value.code) == (409, "conflict")
    assert world.service("count", "x", slug="adding")["count"] == 1


def test_a_free_project_keeps_its_one_flavor(world):
    run(world.projects.create("single", "postgres", "free", owner="single"))
    try:
        with pytest.raises(ApiError) as caught:
            run(world.projects.add_documents("single"))
        assert (caught.value.status, caught.value.code) == (403, "flavor_not_allowed")
        life = Lifecycle(world.projects)
        run(life.change("single", {"limits": {"flavors": 2}}, "test"))  # its own number
        assert run(world.projects.add_documents("single")).flavor == "both"
        with pytest.raises(ApiError) as caught:
            run(life.change("single", {"limits": {}}, "test"))
        assert caught.value.code == "flavor_not_allowed"
    finally:
        run(world.projects.delete("single"))


@pytest.mark.skipif("ICHIBASE_TEST_MONGO_URL" in os.environ, reason="about the embedded servers")
@pytest.mark.parametrize("after", ["completed", "removed"])
@pytest.mark.parametrize("step", ["provision", "audit"])
def test_killed_while_documents_are_added_it_is_done_again_or_removed(
    world, tables, monkeypatch, step, after
):
    folder = Folders(Path(world.documents.server.folder))
    database = f"ichi_{tables.id}"

    async def breaking(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(world.documents if step == "provision" else module, step, breaking)
        with pytest.raises(Killed):
            run(world.projects.add_documents("adding"))
    assert run(world.projects.find("adding")).flavor == "postgres"
    assert folder.there(database) == (step == "audit")
    if after == "removed":
        run(world.projects.delete("adding"))
        assert not folder.there(database)
        return
    world.records["adding"] = run(world.projects.add_documents("adding"))
    world.until(lambda: world.call("count", "x", slug="adding", service=True).status == 200)
    with world.database("adding").client as client:  # the login that the row names
        assert client.get_default_database().list_collection_names() == []
