"""The embedded document server as part of a node: started when needed, killed, started again."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from tests.mongoprobe import forgiving, wait_for
from tests.process.running import RunningNode, wait_until


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_DEFAULT_FLAVOR": "both"})
    try:
        running.start()
        yield running
    finally:
        running.end()


@contextlib.contextmanager
def database(url):
    """The project's database once its login is accepted."""
    wait_for(url)
    with MongoClient(url, serverSelectionTimeoutMS=30000) as client:
        yield client.get_default_database()


def documents_process(running):
    """A project's document server among the node's processes, or None."""
    for process in running.process_of().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name() == "secantus":
                return process
    return None


def post(node, operation, body, key):
    """The status of one request on the collection `under`."""
    request = urllib.request.Request(
        f"{node.url}/mongo/v1/{operation}/under", json.dumps(body).encode(), {"apikey": key}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_default_project_has_documents_behind_its_own_login(node):
    project = node.project()
    assert project["flavor"] == "both"
    assert project["database_url"]
    with database(project["mongo_url"]) as own:
        own.things.insert_one({"_id": 1})
        for refused in (
            lambda: own.client.other.things.find_one(),
            lambda: own.client.admin.command("usersInfo", 1),
            lambda: own.client.list_database_names(),
            lambda: own.command("createUser", "more", pwd="more", roles=[]),
        ):
            with pytest.raises(OperationFailure, match="not authorized"):
                refused()
    without = MongoClient(
        project["mongo_url"].replace("mongodb://", "mongodb://x").partition("?")[0],
        directConnection=True, serverSelectionTimeoutMS=2000,
    )  # fmt: skip
    with without, pytest.raises(PyMongoError):
        without.get_default_database().things.find_one()


def test_no_secret_is_in_the_arguments_of_a_process(node):
    assert wait_until(lambda: documents_process(node))
    password = (node.data_dir / "secrets" / "mongo_password").read_text().strip()
    for process in [node.process_of(), *node.process_of().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())
    assert (node.data_dir / "mongo").stat().st_mode & 0o077 == 0


def test_a_project_with_documents_alone_comes_and_goes(node):
    made = json.loads(node.cli("projects", "create", "notes", "--flavor", "mongo", "--json").stdout)
    assert made["database_url"] is None
    with database(made["mongo_url"]) as own:
        own.things.insert_one({"_id": 1})
    with database(node.project()["mongo_url"]) as other, pytest.raises(OperationFailure):
        other.client[own.name].things.find_one()
    node.cli("projects", "delete", "notes", "--yes", "--now")
    with forgiving():
        client = MongoClient(made["mongo_url"], serverSelectionTimeoutMS=1000)
        with client, pytest.raises(PyMongoError):
            client.get_default_database().things.find_one()
        del client


def test_killed_it_comes_back_with_every_journaled_document(node):
    with database(node.project()["mongo_url"]) as own:
        own.command({"insert": "kept", "documents": [{"_id": n} for n in range(50)],
                     "writeConcern": {"w": 1, "j": True}})  # fmt: skip
        process = documents_process(node)
        process.kill()
        assert wait_until(lambda: (documents_process(node) or process).pid != process.pid)
    with database(node.project()["mongo_url"]) as own:
        assert own.kept.count_documents({}) == 50


def test_killed_under_writes_it_loses_none_that_was_answered(node):
    key = node.project()["service_key"]
    answered, statuses, over = [], set(), threading.Event()

    def write(sender):
        number = 0
        while not over.is_set():
            number += 1
            id = f"{sender}-{number}"
            status = post(node, "insertOne", {"doc": {"_id": id}}, key)
            statuses.add(status)
            if status == 200:
                answered.append(id)
            elif status == 503:
                time.sleep(0.05)

    senders = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for sender in senders:
        sender.start()
    for _ in range(2):
        time.sleep(0.4)
        process, before = documents_process(node), len(answered)
        process.kill()
        assert wait_until(lambda: len(answered) > before + 20)  # noqa: B023
    over.set()
    for sender in senders:
        sender.join()
    assert statuses <= {200, 503, 504}
    with database(node.project()["mongo_url"]) as own:
        found = {document["_id"] for document in own.under.find()}
    assert set(answered) <= found


def test_it_ends_with_a_node_that_is_killed(node):
    with database(node.project()["mongo_url"]) as own:
        own.command({"insert": "outlives", "documents": [{"_id": n} for n in range(50)],
                     "writeConcern": {"w": 1, "j": True}})  # fmt: skip
    process = documents_process(node)
    node.kill()
    assert wait_until(lambda: not process.is_running())
    node.start()
    with database(node.project()["mongo_url"]) as own:
        assert own.outlives.count_documents({}) == 50


def test_a_node_without_documents_runs_no_document_server(folder):
    running = RunningNode(folder)
    try:
        running.start()
        assert running.project()["mongo_url"] is None
        assert documents_process(running) is None
        assert not (running.data_dir / "mongo").exists()
        made = json.loads(running.cli("mongo", "enable", "--json").stdout)
        assert made["flavor"] == "both"
        assert documents_process(running) is not None
        with database(made["mongo_url"]) as own:
            own.things.insert_one({"_id": 1})
        again = running.cli("mongo", "enable", ok=False)
        assert "has documents already" in again.stderr
    finally:
        running.end()
