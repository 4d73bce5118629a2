"""Backups of documents with all that a collection is: indexes, options, validators, views."""

import contextlib
import datetime
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import WriteError

from server.backup import documents, restore
from server.backup.jobs import Jobs
from server.backup.refill import Refill
from server.base.context import NodeConfig
from server.base.events import Events
from server.base.metrics import Metrics
from server.control import records
from server.control.projects import Projects
from server.mongo import embedded
from server.mongo.address import DocumentServer, without_login
from server.mongo.provision import Documents
from tests.documents import PASSWORD, running_documents
from tests.killing import Killed
from tests.mongoprobe import wait_for
from tests.ports import free_port
from tests.server.tiers.shop import done, run


def run_beside(coroutine):
    """The same where an event loop runs already."""
    with ThreadPoolExecutor(1) as other:
        other.submit(run, coroutine).result()


ADULT = {"$jsonSchema": {"required": ["age"], "properties": {"age": {"minimum": 18}}}}


class Desk:
    """A project with documents of every kind, on servers of its own."""

    def __init__(self, world, servers, folder, slug="desk"):
        self.slug = slug
        self.documents = servers
        self.config = NodeConfig(
            data_dir=folder, control_dsn=world.dsn, mongo_address=servers.server.address
        )
        self.clusters = {world.cluster.id: world.cluster}
        self.dsn = world.dsn
        run(self.projects().create(slug, "both", "pro"))
        self.fill()

    def projects(self):
        return Projects(self.dsn, self.clusters, self.config, self.documents)

    def job(self, what, **args):
        return done(Jobs(self.projects(), Events(), Metrics()), what, self.slug, **args)

    @contextlib.contextmanager
    def database(self, slug=None):
        """Of the project's own login."""
        url = records.to_project(
            run(self.projects().find(slug or self.slug)), self.config
        ).mongo_url
        with MongoClient(url, serverSelectionTimeoutMS=30_000) as client:
            yield client.get_default_database()

    async def check(self, validator, **options):
        """Has people validated, which only the administrator may."""
        kept = (await self.projects().find(self.slug)).mongo_url
        async with self.documents.admin(kept) as client:
            await client[self.documents.database(kept)].command(
                "collMod", "people", validator=validator, **options
            )

    def fill(self):
        with self.database() as database:
            database.command("create", "an_early_view", viewOn="people", pipeline=[])
            database.people.insert_many({"_id": n, "age": n} for n in range(40))
            database.people.create_index("age", name="by age", sparse=True)
            database.create_collection("ring", capped=True, size=8192, max=5)
            for n in range(9):
                database.ring.insert_one({"_id": -n})
            database.command("create", "names", collation={"locale": "en", "strength": 2})
            database.names.create_index("name", unique=True)
            database.names.insert_one({"name": "Ann"})
            database.command(
                "create", "times", timeseries={"timeField": "at", "metaField": "of"},
                expireAfterSeconds=10**9,
            )  # fmt: skip
            now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
            database.times.insert_many({"of": {"n": n}, "at": now, "v": n} for n in range(7))
            database.command("create", "pictured", changeStreamPreAndPostImages={"enabled": True})
            database.command("create", "clustered", clusteredIndex={"key": {"_id": 1},
                                                                    "unique": True})  # fmt: skip
            database.command(
                "create", "grown", viewOn="an_early_view",
                pipeline=[{"$match": {"age": {"$gte": 18}}}, {"$project": {"age": 1}}],
                collation={"locale": "de"},
            )  # fmt: skip
        run(self.check(ADULT, validationLevel="moderate", validationAction="error"))

    def facts(self, slug=None):
        """What a user of the documents would notice."""
        with self.database(slug) as database:
            listed = {
                one["name"]: (one["type"], one["options"]) for one in database.list_collections()
            }
            held = {name: list(database[name].find()) for name in listed}
            indexes = {
                name: {key: {k: v for k, v in index.items() if k != "ns"} for key, index in
                       database[name].index_information().items()}
                for name, (kind, _) in listed.items() if kind != "view"
            }  # fmt: skip
            with contextlib.suppress(WriteError):
                database.people.insert_one({"age": 3})
                database.people.delete_one({"age": 3, "_id": {"$type": "objectId"}})
                listed["people"] += ("takes anything",)
        return listed, held, indexes

    def spoil(self):
        """Changes something of everything."""
        with self.database() as database:
            for name in ("ring", "grown", "times", "names"):
                database.drop_collection(name)
            database.people.delete_many({"age": {"$lt": 30}})
            database.names.insert_many([{"name": "ann"}, {"name": "Ann"}])
            database.command("create", "later", viewOn="names", pipeline=[])
            database.ring.insert_one({"late": True})
        run(self.check({}, validationLevel="strict"))

    async def again(self):
        """Removes a person and puts the same in again."""
        kept = (await self.projects().find(self.slug)).mongo_url
        async with self.documents.admin(kept) as client:
            people = client[self.documents.database(kept)].people
            await people.delete_one({"_id": 0})
            await people.insert_one({"_id": 0, "age": 0}, bypass_document_validation=True)

    def left(self):
        """Folders besides those of projects."""
        folder = Path(self.documents.server.folder)
        names = {
            p.name for p in [*(folder / "projects").iterdir(), *(folder / "removed").iterdir()]
        }
        return {name for name in names if not name.startswith("ichi_") or "." in name}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with running_documents(tmp_path_factory.mktemp("documents")) as made:
        yield made


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A document server that is not the node's own, for all projects."""
    if given := os.environ.get("ICHIBASE_TEST_MONGO_URL"):
        yield Documents(
            DocumentServer(kind="external", admin_url=given, address=without_login(given))
        )
        return
    folder, port = tmp_path_factory.mktemp("outside") / "server", free_port()
    with open(folder.with_name("log"), "wb") as log:
        embedded.prepare(folder, PASSWORD, log)
        process = subprocess.Popen(
            [sys.executable, "-m", embedded.PACKAGE,
             *embedded.arguments(folder, port, cache="64M")],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    url = embedded.admin_url(port, PASSWORD)
    wait_for(url, alive=lambda: process.poll() is None)
    yield Documents(DocumentServer(kind="external", admin_url=url, address=embedded.address(port)))
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def desk(world, servers, tmp_path_factory):
    made = Desk(world, servers, tmp_path_factory.mktemp("desk"))
    yield made
    run(made.projects().delete("desk"))


@pytest.fixture(scope="module")
def backup(desk):
    state, result, error = desk.job("backup", kind="manual")
    assert state == "done", error
    return result["backup"]


def test_documents_whose_login_is_still_to_be_made_are_backed_up(desk):
    """As those of a node that has just started for the first time."""
    slug = "early"
    record = run(desk.projects().create(slug, "both", "pro"))
    run(desk.documents.remove(record.mongo_url))
    jobs = Jobs(desk.projects(), Events(), Metrics())
    state, _, error = done(jobs, "backup", slug, kind="manual")
    assert (state, error) == ("done", None)
    assert run(desk.projects().delete(slug)) is None


def test_documents_come_back_with_validators_options_and_views(desk, backup):
    facts = desk.facts()
    assert facts[0]["people"][1] == {
        "validator": ADULT, "validationLevel": "moderate", "validationAction": "error"
    }  # fmt: skip
    state, result, error = desk.job("verify", backup=backup)
    assert (state, error, result["warnings"], result["documents"]) == ("done", None, [], 53)
    desk.spoil()
    assert desk.facts() != facts
    for into in (None, "desk-two"):
        state, result, error = desk.job("restore", backup=backup, into=into)
        assert (state, error) == ("done", None)
        assert result["warnings"] == []
        assert desk.facts(into or "desk") == facts
    with desk.database() as database:
        database.ring.insert_one({"_id": "next"})
        assert [one["_id"] for one in database.ring.find()] == [-5, -6, -7, -8, "next"]
    assert desk.job("restore", backup=backup)[0] == "done"
    assert desk.left() == set()
    run(desk.projects().delete("desk-two"))


@pytest.mark.parametrize("step", ["load", "swap", "replace"])
def test_a_restore_killed_at_any_step_leaves_documents_whole(desk, backup, monkeypatch, step):
    assert desk.job("restore", backup=backup)[0] == "done"
    facts = desk.facts()
    desk.spoil()
    spoilt = desk.facts()

    async def breaking(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(restore if step == "swap" else Refill, step, breaking)
        patch.setattr(restore, "_drop", breaking)  # nor does it clean up
        patch.setattr(Refill, "clear", breaking)
        with pytest.raises(Killed):
            desk.job("restore", backup=backup)
    assert desk.facts() == spoilt
    run(Jobs(desk.projects(), Events(), Metrics()).recover())
    assert (desk.facts(), desk.left()) == (spoilt, set())
    assert desk.job("restore", backup=backup)[0] == "done"
    assert desk.facts() == facts


def test_a_server_outside_is_told_what_it_does_not_keep(world, outside, tmp_path, monkeypatch):
    """Which renames collections: the one of these tests drops their options by that."""
    made = Desk(world, outside, tmp_path, "outside")
    try:
        listed, held, indexes = made.facts()
        real = documents.hashed

        def hashed(body):  # somebody writes while the backup reads
            if b"age" in body:
                monkeypatch.setattr(documents, "hashed", real)
                run_beside(made.again())
            return real(body)

        monkeypatch.setattr(documents, "BATCH", 2)
        monkeypatch.setattr(documents, "hashed", hashed)
        state, result, error = made.job("backup", kind="manual")
        assert state == "done", error
        state, verified, error = made.job("verify", backup=result["backup"])
        assert (state, error, verified["warnings"]) == ("done", None, [])
        assert verified["documents"] == sum(
            len(held[name]) for name, (kind, *_) in listed.items() if kind != "view"
        )
        made.spoil()
        state, restored, error = made.job("restore", backup=result["backup"])
        assert (state, error) == ("done", None)
        now = made.facts()
        assert {n: sorted(map(str, d)) for n, d in now[1].items()} == {
            n: sorted(map(str, d)) for n, d in held.items()
        }
        assert {**now[2], "clustered": None} == {**indexes, "clustered": None}
        lost = {name for name in listed if now[0][name] != listed[name]}
        assert restored["warnings"] == [
            f"the collection {name} has not the options of the backup" for name in sorted(lost)
        ]
        assert lost <= {"ring", "names", "times", "pictured", "clustered"}
    finally:
        run(made.projects().delete("outside"))
