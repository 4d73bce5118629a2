"""Changed documents from the database's change stream: also those that others write."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from server.mongo.address import read_server
from server.mongo.provision import Documents
from tests.mongoprobe import wait_for
from tests.process.running import RunningNode, wait_until
from tests.process.test_realtime import post
from tests.server.realtime.world import Talker

RULES = {
    "documents": "stream",
    "collections": {
        "orders": {"enabled": True, "rule": {"owner": "$auth.role"}, "fields": {"deny": ["cost"]}}
    },
}


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_DEFAULT_FLAVOR": "both"})
    try:
        running.start()
        running.cli("settings", "default", "set", "realtime", json.dumps(RULES))
        yield running
    finally:
        running.end()


@pytest.fixture
def orders(node):
    url = node.project()["mongo_url"]
    wait_for(url)
    with MongoClient(url, serverSelectionTimeoutMS=5000) as client:
        yield client.get_default_database()["orders"]


def test_writes_of_others_are_told_once_and_by_rule(node, orders):
    project = node.project()
    client = Talker.connect("127.0.0.1", node.port, f"/realtime?token={project['anon_key']}")
    try:
        client.say(type="subscribe", ref="1", kind="mongo", collection="orders")
        assert client.hear() == {
            "type": "subscribed", "ref": "1", "kind": "mongo", "collection": "orders"
        }  # fmt: skip
        orders.insert_many([
            {"_id": "a", "owner": "anon", "n": 1, "cost": 5},
            {"_id": "b", "owner": "somebody"},
        ])  # fmt: skip
        orders.update_one({"_id": "a"}, {"$inc": {"n": 1}})
        orders.insert_one({"_id": "c", "owner": "anon"})
        first = client.hear()
        assert (first["event"], first["collection"]) == ("insert", "orders")
        assert first["record"] == {"_id": "a", "owner": "anon", "n": 1}
        second = client.hear()
        assert (second["event"], second["record"]["n"]) == ("update", 2)
        third = client.hear()
        assert third["record"] == {"_id": "c", "owner": "anon"}
        assert first["position"] < second["position"] < third["position"]

        # what the node itself writes comes from the stream too, and once
        def write(operation, body):
            status, answer = post(
                node, f"/mongo/v1/{operation}/orders", body, apikey=project["service_key"]
            )
            assert status == 200, answer

        write("insertOne", {"doc": {"_id": "d", "owner": "anon"}})
        write("updateMany", {"filter": {"_id": "d"}, "update": {"$set": {"n": 7}}})
        write("deleteOne", {"filter": {"_id": "d"}})
        told = [client.hear() for _ in range(2)]
        assert [frame["event"] for frame in told] == ["insert", "update"]
        assert told[0]["record"]["_id"] == "d"
        assert told[1]["record"]["n"] == 7
        client.silent()  # what a deleted document was, the stream does not say
    finally:
        client.close()


def watching(node):
    project = node.project()
    client = Talker.connect("127.0.0.1", node.port, f"/realtime?token={project['anon_key']}")
    client.say(type="subscribe", ref="1", kind="mongo", collection="orders")
    assert client.hear()["type"] == "subscribed"
    return client


def answers(orders):
    try:
        orders.database.command("ping")
    except PyMongoError:
        return False
    return True


def test_a_killed_document_server_and_changed_settings_lose_and_repeat_nothing(node, orders):
    client = watching(node)
    try:
        orders.delete_many({})
        orders.insert_many([{"_id": n, "owner": "anon"} for n in range(50)])
        assert [client.hear()["record"]["_id"] for _ in range(50)] == list(range(50))
        for process in node.process_of().children(recursive=True):
            if process.name() == "secantus":
                process.kill()
        assert wait_until(lambda: answers(orders))
        heard = []
        for number in range(100, 160):
            orders.insert_one({"_id": number, "owner": "anon"})
            orders.insert_one({"_id": f"x{number}", "owner": "somebody"})
        while len(heard) < 60:
            heard.append(client.hear()["record"]["_id"])
        assert heard == list(range(100, 160))
        client.silent()
        # other collections in the settings: the stream is another one, without a gap
        for number in range(200, 260):
            if number == 230:
                rules = {**RULES, "collections": {**RULES["collections"], "more": {"rule": True}}}
                node.cli("settings", "default", "set", "realtime", json.dumps(rules))
            orders.insert_one({"_id": number, "owner": "anon"})
        assert [client.hear()["record"]["_id"] for _ in range(60)] == list(range(200, 260))
        client.silent()
    finally:
        client.close()


def test_a_collection_that_takes_the_place_of_another_is_a_gap(node, orders):
    """As a restore puts it there."""
    project = node.project()
    client = Talker.connect("127.0.0.1", node.port, f"/realtime?token={project['anon_key']}")
    try:
        client.say(type="subscribe", ref="1", kind="mongo", collection="orders")
        assert client.hear()["type"] == "subscribed"
        fresh = orders.database["fresh"]
        fresh.insert_one({"_id": "restored", "owner": "anon"})
        fresh.rename("orders", dropTarget=True)
        frame = client.hear()
        assert (frame["type"], frame["code"]) == ("error", "feed_gap")
        deadline = time.monotonic() + 60
        for number in itertools.count():
            orders.insert_one({"_id": f"then {number}", "owner": "anon"})
            try:
                assert client.hear(0.3)["event"] == "insert"
                break
            except TimeoutError:
                assert time.monotonic() < deadline
    finally:
        client.close()


def test_restored_documents_are_a_gap_and_no_changes(node, orders):
    project = node.project()
    orders.delete_many({})
    client = Talker.connect("127.0.0.1", node.port, f"/realtime?token={project['anon_key']}")
    try:
        client.say(type="subscribe", ref="1", kind="mongo", collection="orders")
        assert client.hear()["type"] == "subscribed"
        orders.insert_many([{"_id": f"kept {n}", "owner": "anon"} for n in range(20)])
        assert [client.hear()["event"] for _ in range(20)] == ["insert"] * 20
        made = json.loads(node.cli("backups", "create", "default", "--json").stdout)["backup"]
        orders.insert_one({"_id": "lost", "owner": "anon"})
        assert client.hear()["event"] == "insert"
        node.cli("backups", "restore", made, "--yes")
        frame = client.hear(60)
        assert (frame["type"], frame["code"]) == ("error", "feed_gap")
        assert orders.count_documents({}) == 20
        deadline = time.monotonic() + 60
        for number in itertools.count():
            orders.insert_one({"_id": f"after {number}", "owner": "anon"})
            try:
                frame = client.hear(0.3)
                assert (frame["event"], frame["record"]["_id"][:5]) == ("insert", "after")
                break
            except TimeoutError:
                assert time.monotonic() < deadline
    finally:
        client.close()


def test_a_dropped_database_is_a_gap(node, orders):
    client = watching(node)
    try:
        orders.insert_one({"_id": "before", "owner": "anon"})
        assert client.hear()["record"]["_id"] == "before"
        documents = Documents(read_server(node.data_dir))
        kept = f"mongodb://documents/{orders.database.name}"

        async def drop():
            async with documents.admin(kept) as root:
                await root.drop_database(orders.database.name)

        asyncio.run(drop())
        frame = client.hear()
        while frame["type"] == "change":
            frame = client.hear()
        assert (frame["type"], frame["code"]) == ("error", "feed_gap")
        deadline = time.monotonic() + 60
        for number in itertools.count():  # those before the stream is there again are not told
            orders.insert_one({"_id": number, "owner": "anon"})
            try:
                first = client.hear(0.3)["record"]["_id"]
                break
            except TimeoutError:
                assert time.monotonic() < deadline
        for later in range(first + 1, number + 1):
            assert client.hear()["record"]["_id"] == later
        client.silent()
    finally:
        client.close()
