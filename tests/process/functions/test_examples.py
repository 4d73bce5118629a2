"""The functions in examples/, deployed and used as their comments say."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request

import pytest

from tests.process.running import ROOT, wait_until

EXAMPLES = str(ROOT / "examples" / "functions")
EVENTS = """create table events (id text primary key, type text not null, body jsonb not null,
  handled_at timestamptz); alter table events enable row level security; select 1"""


@pytest.fixture(scope="module", autouse=True)
def examples(project):
    project.node.sql(EVENTS)
    project.node.cli("functions", "secrets", "set", "WEBHOOK_SECRET=whsec_test")
    project.node.cli("functions", "deploy", "--dir", EXAMPLES)


def send(method, url, body=None, headers=None):
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def token(project, email):
    person = json.dumps({"email": email, "password": "tangerine lamp 41"}).encode()
    headers = {"apikey": project.anon, "content-type": "application/json"}
    assert send("POST", f"{project.node.url}/auth/signup", person, headers)[0] == 201
    status, body = send("POST", f"{project.node.url}/auth/login", person, headers)
    assert status == 200
    return {"authorization": f"Bearer {json.loads(body)['access_token']}"}


def test_the_storage_gateway(project):
    ann, bob = token(project, "ann.files@example.com"), token(project, "bob.files@example.com")

    def ask(who, method="GET", path="", body=None):
        raw = None if body is None else json.dumps(body).encode()
        status, answer, _ = project.call(f"files{path}", raw, method, who)
        return status, json.loads(answer)

    assert project.code("files", method="GET") == (401, "missing_token")
    assert ask(ann) == (200, [])
    wanted = {"name": "note 1.txt", "type": "text/plain", "size": 5}
    status, told = ask(ann, "POST", "/upload", wanted)
    assert status == 200, told
    assert send("PUT", told["url"], b"hello", {"content-type": "text/plain"})[0] == 200
    assert ask(ann) == (200, [{"name": "note 1.txt", "size": 5}])
    assert ask(bob) == (200, [])
    _, told = ask(ann, "POST", "/read", {"name": "note 1.txt"})
    assert send("GET", told["url"]) == (200, b"hello")
    assert ask(ann, "POST", "/upload", {**wanted, "name": "../x"})[1]["code"] == "invalid_name"
    assert ask(ann, "POST", "/upload", {**wanted, "type": "text/html"})[0] == 415
    assert ask(ann, "POST", "/upload", {**wanted, "size": 10**9})[0] == 413
    assert ask(ann, "DELETE", "/note%201.txt")[0] == 200
    assert ask(ann) == (200, [])


def test_the_webhook_receiver(project):
    def post(event, *, at=None, secret="whsec_test", tamper=b""):
        body = json.dumps(event).encode()
        now = int(at or time.time())
        mac = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
        status, answer, _ = project.call(
            "webhook", body + tamper, headers={"x-signature": f"t={now},v1={mac}"}, key=False
        )
        return status, json.loads(answer)

    event = {"id": "evt_1", "type": "paid"}
    assert post(event) == (200, {"received": True, "fresh": True})
    assert post(event) == (200, {"received": True, "fresh": False})
    handled = "select id from events where handled_at is not null"
    assert wait_until(lambda: project.node.sql(handled) == [["evt_1"]])
    project.logged("handling paid evt_1")
    refused = (400, {"code": "invalid_signature"})
    assert post(event, secret="wrong") == refused
    assert post(event, at=time.time() - 1000) == refused
    assert post(event, tamper=b" ") == refused
    assert project.call("webhook", b"{}", key=False)[0] == 400
    assert project.call("webhook", method="GET", key=False)[0] == 405
    assert post({"type": "no id"})[0] == 500
