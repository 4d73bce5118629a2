"""Sockets of a whole node: by the public port, by a proxy, and when its processes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.oracle.websocket import CLOSE, CONTINUATION, TEXT, frame
from tests.ports import free_port
from tests.process.running import RunningNode, wait_until
from tests.server.realtime.world import Talker
from tests.timing import quickest

ROOT = Path(__file__).parents[2]
RULES = {
    "channels": {"room:*": {"subscribe": True, "send": True, "presence": True}},
    "tables": {"notes": {"rule": {"public": True}}},
}


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_WORKERS": "2"})
    running.start()
    running.sql("create table notes (id int primary key, public bool)")
    running.cli("settings", "default", "set", "realtime", json.dumps(RULES))
    running.cli("settings", "default", "set", "cors", '{"origins": ["https://app.example"]}')
    time.sleep(1)
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="module")
def keys(node):
    return node.project()


OPEN = []


@pytest.fixture(autouse=True)
def _close_sockets():
    yield
    while OPEN:
        OPEN.pop().close()


def connect(node, who, port=None, headers=(), pieces=False):
    path = f"/realtime?token={who}"
    made = Talker.connect("127.0.0.1", port or node.port, path, headers, pieces)
    OPEN.append(made)
    return made


def join(client, channel="room:1", **more):
    answer = client.ask(type="subscribe", ref="1", kind="broadcast", channel=channel, **more)
    assert answer["type"] == "subscribed", answer


def post(node, path, body, bearer=None, apikey=None):
    headers = {"content-type": "application/json"}
    if bearer:
        headers["authorization"] = f"Bearer {bearer}"
    if apikey:
        headers["apikey"] = apikey
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(node.url + path, data, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def process(node, name):
    return next(p for p in node.process_of().children(recursive=True) if p.name() == name)


def holders(node, client):
    """The processes that hold the server's end of a connection."""
    port = client.sock.getsockname()[1]
    found = set()
    for one in node.process_of().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for connection in one.net_connections("tcp"):
                if connection.raddr and connection.raddr.port == port:
                    found.add(one.name())
    return found


def test_a_socket_of_the_public_port_is_handed_over(node, keys):
    client = connect(node, keys["anon_key"])
    client.silent()
    assert wait_until(lambda: holders(node, client) == {"ichibase-rt"})
    time.sleep(0.5)
    client.silent()  # whatever the worker does with its end
    client.send(TEXT, b"x" * 70_000)
    assert client.hear() == ("close", 1009)
    passed_on = connect(node, keys["anon_key"], pieces=True)
    passed_on.silent()
    assert holders(node, passed_on) == {"ichibase-worker"}
    passed_on.close()
    with socket.create_connection(("127.0.0.1", node.port)) as used:  # by a request before
        used.settimeout(10)
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in used.recv(4096)
        used.sendall(
            b"GET /realtime?token=" + keys["anon_key"].encode() + b" HTTP/1.1\r\nHost: localhost"
            b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert used.recv(4096).startswith(b"HTTP/1.1 101")


def test_workers_find_a_realtime_process_that_was_started_anew(node, keys):
    process(node, "ichibase-rt").kill()

    def handed_over():
        try:
            client = connect(node, keys["anon_key"])
        except (OSError, ConnectionRefusedError):
            return False
        client.silent()
        found = holders(node, client)
        client.close()
        return found == {"ichibase-rt"}

    assert wait_until(handed_over)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_public_port_and_the_realtime_port_meet(node, keys, pieces):
    a = connect(node, keys["anon_key"], pieces=pieces)
    b = connect(node, keys["anon_key"], node.realtime_port)
    for client in (a, b):
        join(client)
    a.say(type="broadcast", channel="room:1", event="x", payload={"n": "ü" * 3000})
    assert b.hear()["payload"] == {"n": "ü" * 3000}
    b.say(type="broadcast", channel="room:1", event="y", payload=[1])
    assert a.hear()["event"] == "y"
    a.silent()
    a.send(2, b"\x00\xff")
    assert a.hear()["code"] == "bad_frame"
    a.send(CLOSE)
    while a.hear() is not None:
        pass
    assert wait_until(lambda: published(node, keys) == 1)
    b.close()
    assert wait_until(lambda: published(node, keys) == 0)


def published(node, keys):
    body = {"channel": "room:1", "payload": None}
    return post(node, "/realtime/publish", body, keys["service_key"])[1]["delivered"]


def test_refusals_keep_their_status_on_the_public_port(node, keys):
    for port in (node.port, node.realtime_port):
        for who, headers, status in (
            ("x", (), 401), ("", (), 401),
            (keys["anon_key"], (("Origin", "https://evil.example"),), 403),
            (keys["anon_key"], (("Host", "nobody.localhost"),), 404),
        ):  # fmt: skip
            with pytest.raises(ConnectionRefusedError) as refused:
                connect(node, who, port, headers)
            assert refused.value.args[0] == status
        allowed = connect(node, keys["anon_key"], port, (("Origin", "https://app.example"),))
        allowed.silent()
        allowed.close()


def test_publishing_over_http(node, keys):
    client = connect(node, keys["anon_key"])
    join(client, "room:9")
    body = {"channel": "room:9", "event": "e", "payload": {"n": 1.10}}
    assert post(node, "/realtime/publish", body, keys["service_key"]) == (202, {"delivered": 1})
    assert client.hear() == {
        "type": "broadcast", "channel": "room:9", "event": "e", "payload": {"n": 1.1}, "from": "",
    }  # fmt: skip
    assert post(node, "/realtime/publish", body, apikey=keys["service_key"])[0] == 202
    assert post(node, "/realtime/publish", body, keys["anon_key"])[0] == 403
    assert post(node, "/realtime/publish", body)[1]["code"] == "missing_api_key"
    users = {"user_ids": ["a", "b"], "payload": 1}
    assert post(node, "/realtime/publish", users, keys["service_key"])[1] == {"delivered": 0}
    for bad in (
        b"", b"[]", b"{", b'{"payload":1}', b'{"channel":"a"}', b'{"channel":"a b","payload":1}',
        b'{"channel":"a","user_id":"b","payload":1}', b'{"channel":5,"payload":1}',
        b'{"channel":"a","payload":nul}', b'{"user_ids":[1],"payload":1}',
        b'{"channel":"a","payload":1,"event":"' + b"e" * 129 + b'"}',
        b'{"user_ids":["' + b'","'.join(b"u%d" % n for n in range(1001)) + b'"],"payload":1}',
        b'{"channel":"a","payload":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ):  # fmt: skip
        status, answer = post(node, "/realtime/publish", bad, keys["service_key"])
        assert (status, answer["code"]) == (400, "bad_request"), bad[:80]
    huge = b'{"channel":"a","payload":"' + b"x" * 200_000 + b'"}'
    assert post(node, "/realtime/publish", huge, keys["service_key"])[0] == 413
    assert node.get("/realtime")[0] == 426
    assert node.get("/realtime/nothing")[0] == 404
    assert node.get("/realtime/publish")[0] == 405
    client.close()


@pytest.mark.parametrize("pieces", [False, True])
def test_a_client_of_the_public_port_that_never_reads(node, keys, pieces):
    lazy = connect(node, keys["anon_key"], pieces=pieces)
    join(lazy, "room:7")
    workers = [p for p in node.process_of().children(True) if p.name() == "ichibase-worker"]
    before = sum(worker.memory_info().rss for worker in workers)
    body = {"channel": "room:7", "payload": "x" * 100_000}
    reached = [
        post(node, "/realtime/publish", body, keys["service_key"])[1]["delivered"]
        for _ in range(400)
    ]
    assert reached[0] == 1
    assert reached[-1] == 0  # 40 MB were not kept for it
    assert sum(worker.memory_info().rss for worker in workers) - before < 24 << 20


def test_fragments_without_end_are_not_kept_by_the_public_port(node, keys):
    """The HTTP server would join 64 MiB of them for each socket before it tells of any."""
    healthy = [connect(node, keys["anon_key"], pieces=True) for _ in range(6)]
    workers = [p for p in node.process_of().children(True) if p.name() == "ichibase-worker"]
    before = sum(worker.memory_info().rss for worker in workers)
    greedy = [connect(node, keys["anon_key"], pieces=True) for _ in range(8)]
    most, left = 0, set(greedy)
    parts = [frame(kind, b"x" * 60_000, fin=False) for kind in (TEXT, CONTINUATION)]
    for number in range(1000):  # 60 MB of each in four seconds
        for client in list(left):
            try:
                client.sock.sendall(parts[number > 0])
            except OSError:
                left.discard(client)
        if number % 25 == 0:
            most = max(most, sum(worker.memory_info().rss for worker in workers) - before)
        if not left:
            break
        time.sleep(0.004)
    assert not left
    assert most < 300 << 20
    for client in healthy:
        client.silent()
    again = connect(node, keys["anon_key"])
    again.silent()


def test_signing_out_cuts_the_sockets_within_a_second(node, keys):
    person = {"email": "rt@example.com", "password": "tangerine lamp 41"}
    post(node, "/auth/signup", person, apikey=keys["anon_key"])

    def cut():
        """The seconds until the sockets of a session are, after it signed out."""
        status, session = post(node, "/auth/login", person, apikey=keys["anon_key"])
        assert status == 200, session
        token = session["access_token"]
        sockets = [connect(node, token), connect(node, token, node.realtime_port)]
        uid = session["user"]["id"]
        for client in sockets:
            join(client, f"user:{uid}")
        body = {"user_id": uid, "event": "hi", "payload": {}}
        assert post(node, "/realtime/publish", body, keys["service_key"])[1] == {"delivered": 2}
        for client in sockets:
            assert client.hear()["channel"] == f"user:{uid}"
        began = time.monotonic()
        refresh = {"refresh_token": session["refresh_token"]}
        assert post(node, "/auth/logout", refresh, token, keys["anon_key"])[0] == 200
        for client in sockets:
            assert client.hear() == {"type": "closing", "reason": "token_revoked", "code": 4001}
        took = time.monotonic() - began
        assert sockets[1].hear() == ("close", 4001)
        with pytest.raises(ConnectionRefusedError):
            connect(node, token)
        return took

    assert quickest(cut, 1) < 1


def documented(language):
    """The block of the documentation that configures a proxy."""
    text = (ROOT / "docs" / "realtime.md").read_text()
    return re.search(language + r":?[^\n]*\n\n?```[a-z]*\n(.*?)```", text, re.DOTALL).group(1)


def taken(node):
    """Connections to the realtime process's own port."""
    found = process(node, "ichibase-rt").net_connections("tcp")
    return sum(c.laddr.port == node.realtime_port and bool(c.raddr) for c in found)


def behind_a_proxy(node, keys, command, port, **environment):
    """Sockets go past the workers, everything else to them, statuses and close codes come back."""
    proxy = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        assert wait_until(lambda: _answers(port))
        before = taken(node)
        a, b = connect(node, keys["anon_key"], port), connect(node, keys["anon_key"], port)
        assert taken(node) == before + 2
        for client in (a, b):
            join(client, "room:5")
        a.say(type="broadcast", channel="room:5", event="x", payload="p" * 20_000)
        assert b.hear()["payload"] == "p" * 20_000
        body = json.dumps({"channel": "room:5", "payload": 1}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/realtime/publish", body,
            {"authorization": f"Bearer {keys['service_key']}"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            assert json.loads(answer.read()) == {"delivered": 2}
        with pytest.raises(ConnectionRefusedError) as refused:
            connect(node, "x", port)
        assert refused.value.args[0] == 401
        a.send(CLOSE, b"\x03\xe8")
        while isinstance(found := a.hear(), dict):
            pass
        assert found == ("close", 1000)
    finally:
        proxy.terminate()
        proxy.wait(10)


def test_nginx_splits_the_path(node, keys, folder):
    assert shutil.which("nginx"), "nginx is needed: apt-get install nginx-light"
    location = documented("nginx").replace("127.0.0.1:8002", f"127.0.0.1:{node.realtime_port}")
    port = free_port()
    (folder / "nginx.conf").write_text(f"""
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    {location}
    location / {{ proxy_pass http://127.0.0.1:{node.port}; proxy_set_header Host $host; }}
  }}
}}
""")
    configuration = str(folder / "nginx.conf")
    command = ["nginx", "-p", str(folder), "-c", configuration, "-e", f"{folder}/error.log"]
    behind_a_proxy(node, keys, command, port)


def test_caddy_splits_the_path(node, keys, folder):
    if shutil.which("caddy") is None:
        pytest.skip("caddy is missing: apt-get install caddy")
    port = free_port()
    site = documented("Caddy").replace("example.com, *.example.com", f"http://:{port}")
    site = site.replace("127.0.0.1:8002", f"127.0.0.1:{node.realtime_port}")
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{node.port}")
    log = f"output file {folder}/log"
    options = f"admin off\n auto_https off\n default_bind 127.0.0.1\n log {{ \n {log}\n }}"
    (folder / "Caddyfile").write_text(f"{{\n{options}\n}}\n{site}")
    command = ["caddy", "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    folders = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    behind_a_proxy(node, keys, command, port, **folders)


def _answers(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2)
    except OSError:
        return False
    return True


def test_stopping_says_goodbye_on_both_ports(node, keys):
    sockets = [connect(node, keys["anon_key"], port) for port in (None, node.realtime_port)]
    sockets.append(connect(node, keys["anon_key"], pieces=True))
    for client in sockets:
        client.silent()
    node.process.terminate()
    for client in sockets:
        assert client.hear(20) == {"type": "closing", "reason": "shutdown", "code": 4000}
    assert node.process.wait(60) == 0
