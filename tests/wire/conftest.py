"""A node's control database with projects, and real HTTP server processes over it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jwt
import pytest

from server.base.context import NodeConfig
from server.control.database import prepare
from server.control.projects import Projects
from server.node.gateway_main import NODE_FILE, Listener, written
from tests.clusters import cluster_of
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent
UID = "11111111-1111-4111-8111-111111111111"
SERVE = (
    "import sys; from server.node.gateway_main import read_listener, serve; l = read_listener(); "
    "serve(sys.argv[1], l.host, l.port, l.workers, l.drain_seconds)"
)


class Site:
    """A server process that tests talk to, with the node's projects."""

    def __init__(self, node, target, folder, workers=1, awake="ready", **changes):
        self.node = node
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = NodeConfig(
            data_dir=folder, control_dsn=node.dsn, public_url=self.url,
            cdn_url=f"{self.url}/cdn", **changes,
        )  # fmt: skip
        listener = Listener(
            host="127.0.0.1", port=self.port, workers=workers, admin_host="127.0.0.1", admin_port=1,
            drain_seconds=5.0, config=config,
        )  # fmt: skip
        file = folder / f"node-{self.port}.json"
        file.write_text(written(listener))
        self.config = config
        self.log_path = folder / f"serve-{self.port}.log"
        self.log = open(self.log_path, "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, target], cwd=ROOT, stdout=self.log, stderr=self.log,
            env={**os.environ, NODE_FILE: str(file), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._wait(awake)

    def _wait(self, awake):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log_path.read_text()[-3000:]
            try:
                if self.call("GET", f"/{awake}z").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log_path.read_text()[-3000:])

    def raw(self, data, timeout=60.0):
        """Sends bytes as they are; gives what comes until the connection ends or nothing does."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as peer:
            peer.sendall(data)
            found = b""
            try:
                while piece := peer.recv(1 << 16):
                    found += piece
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass
            return found

    def call(self, method, path, headers=(), body=None, host=None):
        """One request on a connection of its own; the answer with status, headers, body, json."""
        pairs = list(headers.items() if isinstance(headers, dict) else headers)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        lines += [f"{name}: {value}" for name, value in pairs]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
        return parse(self.raw(head + (body or b"")))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.log.close()


def parse(data):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    assert first.startswith("HTTP/1."), data[:200]
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers.setdefault(name.lower(), []).append(value.strip())
    if headers.get("transfer-encoding") == ["chunked"]:
        whole, rest_of_body = b"", body
        while rest_of_body:
            size, _, rest_of_body = rest_of_body.partition(b"\r\n")
            whole += rest_of_body[: int(size, 16)]
            rest_of_body = rest_of_body[int(size, 16) + 2 :]
        body = whole
    kind = headers.get("content-type", [""])[0]
    return SimpleNamespace(
        status=int(first.split()[1]),
        headers={name: ", ".join(values) for name, values in headers.items()},
        body=body,
        json=json.loads(body) if body and kind.startswith("application/json") else None,
    )


class ControlNode:
    """The control database with the projects default and shop (Postgres), docs (documents)."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder
        self.dsn = asyncio.run(prepare(cluster, "control password"))
        config = NodeConfig(data_dir=folder, control_dsn=self.dsn)
        self.projects = Projects(self.dsn, {cluster.id: cluster}, config)
        self.records = {}
        for slug, flavor in (("default", "postgres"), ("shop", "postgres"), ("docs", "mongo")):
            self.make(slug, flavor)

    def make(self, slug, flavor="postgres"):
        self.records[slug] = asyncio.run(self.projects.create(slug, flavor))
        return self.records[slug]

    def anon(self, slug="default"):
        return self.records[slug].anon_key

    def service(self, slug="default"):
        return self.records[slug].service_key

    def user(self, slug="default", **claims):
        """A user token as the project's auth would sign it."""
        now = int(time.time())
        base = {"role": "authenticated", "sub": UID, "aud": "authenticated", "iat": now,
                "exp": now + 900, "session_id": "s1"}  # fmt: skip
        key = next(k for k in self.records[slug].keys if k.current)
        return jwt.encode(base | claims, key.secret, key.algorithm, headers={"kid": key.kid})


@pytest.fixture(scope="session")
def control(pg_cluster, tmp_path_factory):
    cluster = cluster_of(pg_cluster, "control_wire")
    return ControlNode(cluster, tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="session")
def echo(control):
    """The gateway alone, before services that say what they were given."""
    site = Site(control, "tests.wire.echo_app:application", control.folder)
    yield site
    site.stop()
