"""Documents that lie in the one server that all projects shared in earlier versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import bson
import pytest
from pymongo import AsyncMongoClient, MongoClient

from server.base.ports import free_port
from server.mongo import embedded, moving
from tests.mongoprobe import wait_for
from tests.server.mongo.conftest import PASSWORD

VALUES = [
    1, 2.5, "ä", None, True, bson.Int64(2**40), bson.Decimal128("1.50"), b"\0\1", bson.ObjectId(),
    bson.Regex("a", "i"), bson.Timestamp(1, 2), {"a": {"b": [1, {}]}},
]  # fmt: skip


@pytest.fixture(scope="module")
def old(template, tmp_path_factory):
    """A folder as earlier versions left it."""
    root = tmp_path_factory.mktemp("old") / "mongo"
    shutil.copytree(template, root)
    (root / "login").touch()
    port = free_port()
    url = embedded.admin_url(port, PASSWORD)
    process = subprocess.Popen(
        [sys.executable, "-m", embedded.PACKAGE, *embedded.arguments(root, port, cache="64M")]
    )
    wait_for(url, alive=lambda: process.poll() is None)
    with MongoClient(url) as client:
        for name in ("ichi_a", "ichi_b"):
            database = client[name]
            database.things.insert_many({"_id": n, "of": name} for n in range(1234))
            database.things.create_index([("of", 1), ("_id", -1)], name="both", unique=True)
            database.things.create_index("gone", expireAfterSeconds=60, sparse=True)
            database.create_collection(
                "checked", validator={"$jsonSchema": {"required": ["a"]}}, validationLevel="strict"
            )
            database.values.insert_many({"_id": n, "v": v} for n, v in enumerate(VALUES))
            database.create_collection("empty")
    process.kill()
    process.wait()
    return root


def test_each_project_gets_its_own_and_the_old_ones_stay(loop, servers, old, monkeypatch):
    folders = SimpleNamespace(**vars(servers.folders))
    shutil.copytree(old, folders.root, dirs_exist_ok=True)
    copied = []
    real = moving._copy

    async def copy(source, target):
        copied.append(target.name)
        if copied == ["ichi_a", "ichi_b"]:
            raise KeyboardInterrupt  # as a kill would, between two projects
        await real(source, target)

    monkeypatch.setattr(moving, "_copy", copy)

    async def run():
        args = folders.root, servers.all, PASSWORD, servers.log
        with pytest.raises(KeyboardInterrupt):
            await moving.move(*args)
        assert (folders.root / "data").is_dir()
        assert servers.folders.there("ichi_a")
        assert not servers.folders.there("ichi_b")
        await servers.all.end("moving-ichi_b")
        for _ in range(2):  # done once, it does nothing
            await moving.move(*args)
        assert copied == ["ichi_a", "ichi_b", "ichi_b"]
        assert not (folders.root / "data").exists()
        assert (folders.root / "data.moved").is_dir()
        assert not list(servers.folders.projects.glob("moving-*"))
        for name in ("ichi_a", "ichi_b"):
            held = await servers.all.hold(name)
            async with AsyncMongoClient(embedded.admin_url(held.port, PASSWORD)) as client:
                await check(client[name])
            servers.all.release(held)

    async def check(database):
        assert sorted(await database.list_collection_names()) == [
            "checked", "empty", "things", "values"
        ]  # fmt: skip
        assert await database.things.count_documents({"of": database.name}) == 1234
        indexes = await database.things.index_information()
        assert indexes["both"]["key"] == [("of", 1), ("_id", -1)]
        assert indexes["both"]["unique"]
        assert indexes["gone_1"]["expireAfterSeconds"] == 60
        options = await database.checked.options()
        assert options["validator"] == {"$jsonSchema": {"required": ["a"]}}
        assert [one["v"] async for one in database.values.find().sort("_id")] == VALUES

    loop(run())


def test_one_that_was_never_ready_is_set_aside(loop, servers, tmp_path):
    (tmp_path / "data").mkdir()
    loop(moving.move(tmp_path, servers.all, PASSWORD, servers.log))
    assert (tmp_path / "data.moved").is_dir()
