"""A worker over the embedded document server, and projects with documents."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import jwt
import msgspec
import pytest
from pymongo import MongoClient

from server.base.changes import Unframer
from server.base.context import NodeConfig
from server.control import sections
from server.control.database import prepare
from server.control.projects import Projects
from server.mongo.address import FILE, DocumentServer, without_login, written
from server.mongo.provision import Documents
from tests.clusters import cluster_of
from tests.documents import running_documents
from tests.wire.conftest import Site

ROOT = Path(__file__).parents[3]
ANN = "11111111-1111-4111-8111-111111111111"
BOB = "22222222-2222-4222-8222-222222222222"


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A running document server, as its administrator reaches it: the embedded one, or the one
    that ICHIBASE_TEST_MONGO_URL names."""
    given = os.environ.get("ICHIBASE_TEST_MONGO_URL")
    if given:
        yield Documents(
            DocumentServer(kind="external", admin_url=given, address=without_login(given))
        )
        return
    with running_documents(tmp_path_factory.mktemp("documents")) as made:
        yield made


class World:
    """The node's parts: control database, projects, one HTTP worker."""

    def __init__(self, pg_cluster, documents, folder, name="control_mongo", workers=1):
        cluster = cluster_of(pg_cluster, name)
        self.dsn = asyncio.run(prepare(cluster, "control password"))
        self.documents = documents
        address = documents.server.address
        self.config = NodeConfig(data_dir=folder, control_dsn=self.dsn, mongo_address=address)
        self.projects = Projects(self.dsn, {cluster.id: cluster}, self.config, documents)
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / FILE).write_text(written(documents.server))
        self.records = {"default": asyncio.run(self.projects.create("default", "both"))}
        self.site = Site(
            self, "server.app:application", folder, workers=workers, mongo_address=address
        )
        self.client = http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=60)

    def make(self, slug, flavor="mongo", tier="pro"):
        self.records[slug] = asyncio.run(self.projects.create(slug, flavor, tier))
        self.until(lambda: self.call("count", "x", slug=slug).code != "project_not_found")
        return self.records[slug]

    @staticmethod
    def until(condition, seconds=60.0):
        """Waits until the worker knows of a change."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def url(self, slug="default"):
        """The project's own login at the document server."""
        from server.control.records import to_project

        return to_project(self.records[slug], self.config).mongo_url

    def database(self, slug="default"):
        """The project's database under its own login, for a test to look into."""
        return MongoClient(self.url(slug), serverSelectionTimeoutMS=30000).get_default_database()

    def settings(self, slug="default", collections=None, **section):
        """Replaces the section mongo and waits until the worker uses it."""
        probe = f"probe_{uuid.uuid4().hex[:8]}"
        rules = {"version": 1, "collections": {**(collections or {}), probe: {"read": True}}}
        value = sections.check("mongo", msgspec.json.encode({"rules": rules} | section))
        asyncio.run(self.projects.put_settings(slug, "mongo", value))
        if section.get("mode") == "function":
            self.until(lambda: self.call("count", probe, slug=slug, service=True).status == 403)
        else:
            self.until(lambda: self.call("count", probe, slug=slug).status == 200)

    def rules(self, collections, slug="default", **more):
        self.settings(slug, collections, **more)

    def token(self, uid=ANN, slug="default", **claims):
        now = int(time.time())
        base = {"role": "authenticated", "sub": uid, "aud": "authenticated", "iat": now,
                "exp": now + 900, "session_id": "s1"}  # fmt: skip
        key = next(k for k in self.records[slug].keys if k.current)
        return jwt.encode(base | claims, key.secret, key.algorithm, headers={"kid": key.kid})

    def call(
        self, op, collection, body=None, *, uid=None, service=False, slug="default", query="",
        raw=None, headers=None, method="POST", **claims,
    ):  # fmt: skip
        """One request; the answer with status, json and code. uid: signed in as. raw: bytes in
        place of body."""
        record = self.records[slug]
        sent = {"apikey": record.service_key if service else record.anon_key,
                "content-type": "application/json", "host": f"{slug}.localhost"}  # fmt: skip
        if slug == "default":
            sent["host"] = f"127.0.0.1:{self.site.port}"
        if uid:
            sent["authorization"] = f"Bearer {self.token(uid, slug, **claims)}"
        sent |= headers or {}
        data = raw if raw is not None else json.dumps({} if body is None else body).encode()
        path = f"/mongo/v1/{op}/{collection}{query}"
        for attempt in (1, 2):
            try:
                self.client.request(method, path, data, sent)
                answer = self.client.getresponse()
                break
            except (http.client.HTTPException, ConnectionError):
                self.client.close()
                if attempt == 2:
                    raise
        text = answer.read()
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        code = found.get("code") if isinstance(found, dict) and answer.status >= 400 else None
        told = {name.lower(): value for name, value in answer.getheaders()}
        return SimpleNamespace(status=answer.status, json=found, code=code, text=text.decode(),
                               headers=told)  # fmt: skip

    def ok(self, *arguments, **options):
        """The answer of a request that must succeed."""
        answer = self.call(*arguments, **options)
        assert answer.status == 200, (answer.status, answer.text)
        return answer.json

    def service(self, op, collection, body=None, **options):
        return self.ok(op, collection, body, service=True, **options)

    def stop(self):
        self.client.close()
        self.site.stop()


class Told:
    """Stands where the realtime process listens, and keeps what it is told."""

    def __init__(self, folder):
        self.messages = []
        self.peers = []
        self.path = folder / "run" / "realtime.sock"
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.path))
        self.server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                peer, _ = self.server.accept()
            except OSError:
                return
            self.peers.append(peer)
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    def _read(self, peer):
        unframer = Unframer()
        with peer:
            while data := peer.recv(1 << 16):
                self.messages += [json.loads(text) for text in unframer.feed(data)]

    def take(self, count=1, seconds=60.0):
        """The events that arrived, once there are so many."""
        deadline = time.monotonic() + seconds
        while True:
            events = [event for message in self.messages for event in message["events"]]
            if len(events) >= count or time.monotonic() > deadline:
                self.messages.clear()
                return events
            time.sleep(0.02)

    def close(self):
        self.server.close()
        self.path.unlink(missing_ok=True)
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def world(pg_cluster, documents, tmp_path_factory):
    made = World(pg_cluster, documents, tmp_path_factory.mktemp("mongo-node"))
    yield made
    made.stop()
