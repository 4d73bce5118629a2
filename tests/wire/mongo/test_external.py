"""A document server of one's own, by URL: found as a replica set, over TLS, with SCRAM; killed and
started again while the node runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from ichicore.errors import ApiError
from server.mongo import embedded
from server.mongo.address import DocumentServer, without_login
from server.mongo.provision import Documents
from server.mongo.store import Address, Store
from tests.mongoprobe import forgiving, wait_for
from tests.ports import free_port
from tests.wire.mongo.conftest import World


class Server:
    """The server program over TLS, as a machine elsewhere would run it."""

    def __init__(self, folder, *options):
        self.folder = folder
        self.options = options
        self.port = free_port()
        certificates = folder / "certificates"
        certificates.mkdir()
        self.authority, self.certificate, _ = embedded._certificates(certificates)
        self.log = open(folder / "log", "wb")  # noqa: SIM115
        with forgiving():
            embedded.prepare(folder / "server", "secret of root", self.log)
        self.process = None
        self.start()
        self.url = (
            f"mongodb://{embedded.LOGIN}:secret%20of%20root@127.0.0.1:{self.port}/"
            f"?tls=true&tlsCAFile={self.authority}&authSource=admin"
        )
        if not options:
            self.url += "&replicaSet=secantus"
        self.wait()

    def start(self):
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", embedded.PACKAGE,
                *embedded.arguments(
                    self.folder / "server", self.port, "--tls-cert-file", self.certificate,
                    "--tls-key-file", self.certificate, *self.options, cache="64M",
                ),
            ],
            cwd=self.folder, stdout=self.log, stderr=self.log, env={**os.environ},
        )  # fmt: skip

    def wait(self):
        wait_for(self.url, alive=lambda: self.process.poll() is None)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("external"))
    yield made
    made.kill()
    made.log.close()


@pytest.fixture(scope="module")
def elsewhere(pg_cluster, server, tmp_path_factory):
    documents = Documents(
        DocumentServer(kind="external", admin_url=server.url, address=without_login(server.url))
    )
    made = World(pg_cluster, documents, tmp_path_factory.mktemp("node"), "control_mongo_external")
    yield made
    made.stop()


def test_the_address_of_a_project_keeps_the_servers_options(elsewhere):
    url = elsewhere.url()
    assert "tls=true" in url
    assert "replicaSet=secantus" in url
    assert "secret" not in url
    assert "authSource=ichi_" in url


def test_operations_go_there(elsewhere):
    elsewhere.service("insertMany", "things", {"docs": [{"_id": n} for n in range(3)]})
    assert elsewhere.service("count", "things") == {"count": 3}
    body = {"filter": {"_id": 1}, "update": {"$set": {"n": 1}}}
    assert elsewhere.service("findOneAndUpdate", "things", body)["doc"] == {"_id": 1, "n": 1}
    elsewhere.rules({"things": {"read": True, "update": {"check": {"n": {"$lte": 5}}}}})
    assert elsewhere.call("updateOne", "things", body, uid="u").status == 200
    body["update"] = {"$inc": {"n": 9}}
    assert elsewhere.call("updateOne", "things", body, uid="u").code == "policy_denied"


def test_a_server_that_was_away_is_found_again_and_lost_nothing(elsewhere, server):
    acknowledged = []
    for number in range(100, 140):
        answer = elsewhere.call("insertOne", "things", {"doc": {"_id": number}}, service=True)
        assert answer.status == 200
        acknowledged.append(number)
    server.kill()
    answer = elsewhere.call("count", "things", service=True)
    assert (answer.status, answer.code) == (503, "unavailable")
    server.start()
    server.wait()
    elsewhere.until(lambda: elsewhere.call("count", "things", service=True).status == 200, 30)
    found = elsewhere.service("find", "things", {"filter": {"_id": {"$gte": 100}}})["docs"]
    assert [d["_id"] for d in found] == acknowledged
    elsewhere.service("insertOne", "things", {"doc": {"_id": 999}})


def test_a_wrong_certificate_is_refused(elsewhere, server, tmp_path):
    url = elsewhere.url()
    other = tmp_path / "other"
    other.mkdir()
    authority, _, _ = embedded._certificates(other)
    assert Address(url).tls is not None
    bad = url.replace(f"tlsCAFile={server.authority.replace('/', '%2F')}", f"tlsCAFile={authority}")
    assert bad != url

    async def ask():
        store = Store(bad, 2)
        try:
            await store.run(b"\x05\x00\x00\x00\x00", 1.0)
        finally:
            await store.close()

    with pytest.raises(ApiError) as refused:
        asyncio.run(ask())
    assert refused.value.status == 503


@pytest.fixture(scope="module")
def alone(pg_cluster, tmp_path_factory):
    """A server that is no replica set."""
    one = Server(tmp_path_factory.mktemp("standalone"), "--standalone")
    documents = Documents(
        DocumentServer(kind="external", admin_url=one.url, address=without_login(one.url))
    )
    made = World(pg_cluster, documents, tmp_path_factory.mktemp("node"), "control_mongo_alone")
    yield made
    made.stop()
    one.kill()
    one.log.close()


def test_a_server_without_transactions_checks_nothing_unseen(alone):
    """What would have to be checked afterwards is refused; all else goes on."""
    own = {"user_id": "${auth.uid}"}
    section = {"collections": {"notes": {"enabled": True, "rule": True}}}
    asyncio.run(alone.projects.put_settings("default", "realtime", section))
    alone.rules({"notes": {"read": {"filter": own}, "insert": {"set": own},
                           "update": {"filter": own}, "delete": {"filter": own}},
                 "plain": {"read": True, "write": {"filter": own, "set": own}}})  # fmt: skip
    for name in ("notes", "plain"):
        docs = [{"_id": n, "n": n} for n in range(4)]
        alone.ok("insertMany", name, {"docs": docs}, uid="ann")
        body = {"filter": {"_id": 1}, "update": {"$inc": {"n": 1}}}
        assert alone.ok("updateOne", name, body, uid="ann")["modified"] == 1
        assert alone.ok("updateOne", name, body, uid="bob")["matched"] == 0
        found = alone.ok("findOneAndUpdate", name, body, uid="ann")["doc"]
        assert found == {"_id": 1, "n": 3, "user_id": "ann"}
        done = alone.ok("updateMany", name, {"filter": {}, "update": {"$set": {"x": 1}}}, uid="ann")
        assert done["matched"] == 4
        found = alone.ok("findOneAndDelete", name, {"filter": {"_id": 2}}, uid="ann")["doc"]
        assert found["_id"] == 2
        assert alone.ok("deleteMany", name, {"filter": {"_id": 3}}, uid="ann") == {"deleted": 1}
        assert alone.ok("count", name, {}, service=True) == {"count": 2}
    body = {"filter": {"_id": 1}, "update": {"$set": {"user_id": "bob"}}}
    answer = alone.call("updateOne", "notes", body, uid="ann")
    assert (answer.status, answer.code) == (403, "policy_denied")
    assert alone.ok("findOne", "notes", {"filter": {"_id": 1}}, uid="ann")["doc"]["n"] == 3
