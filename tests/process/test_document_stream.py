"""Changed documents from the database's change stream: also those that others write."""

from __future__ import annotations

import json
import time

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.process.running import RunningNode
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
    deadline = time.monotonic() + 60
    while True:
        with MongoClient(node.project()["mongo_url"], serverSelectionTimeoutMS=1000) as client:
            try:
                client.get_default_database().command("ping")
            except PyMongoError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
                continue
            yield client.get_default_database()["orders"]
            return


def test_writes_of_others_are_told_once_and_by_rule(node, orders):
    project = node.project()
    client = Talker.connect("127.0.0.1", node.port, f"/realtime?token={project['anon_key']}")
    try:
        client.say(type="subscribe", ref="1", kind="mongo", collection="orders")
        assert client.hear(30) == {
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
