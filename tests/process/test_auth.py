"""Users of a running node: over HTTP, on the command line and on the admin port."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.error
import urllib.request

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process.running import RunningNode, wait_until
from tests.server.auth import shapes
from tests.timing import quickest

ANN, PASSWORD = "ann@example.com", "tangerine lamp 41"


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_WORKERS": "2"})
    running.start()
    try:
        yield running
    finally:
        running.stop()


def send(node, method, path, body=None, token=None, key="anon_key"):
    headers = {"content-type": "application/json"}
    if key:
        headers["apikey"] = node.project()[key]
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(
        f"{node.url}{path}", None if body is None else json.dumps(body).encode(), headers,
        method=method,
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            raw = answer.read()
            status = answer.status
    except urllib.error.HTTPError as error:
        raw, status = error.read(), error.code
    return status, json.loads(raw) if raw else None


def cli(node, *arguments):
    return json.loads(node.cli(*arguments, "--json").stdout)


def test_a_user_made_on_the_command_line_signs_in(node):
    before = cli(node, "users", "list")["total"]
    made = cli(node, "users", "create", ANN, "--password", PASSWORD, "--verified")
    assert made["email_verified"] is True
    status, session = send(node, "POST", "/auth/login", {"email": ANN, "password": PASSWORD})
    assert status == 200
    token = session["access_token"]
    assert send(node, "GET", "/auth/me", token=token)[1]["id"] == made["id"]
    assert cli(node, "users", "list")["total"] == before + 1
    assert cli(node, "users", "show", ANN)["id"] == made["id"]
    assert len(cli(node, "users", "sessions", ANN)) == 1

    node.cli("sql", "default", "-c", "create table mine (id int, owner uuid default auth.uid() "
             "references auth.users); alter table mine enable row level security; create policy "
             "own on mine using (owner = auth.uid()) with check (owner = auth.uid())")  # fmt: skip
    body = {"id": 1}
    assert wait_until(lambda: send(node, "POST", "/postgres/mine", body, token=token)[0] == 201)
    assert send(node, "GET", "/postgres/mine", token=token)[1] == [{"id": 1, "owner": made["id"]}]
    assert send(node, "GET", "/postgres/mine")[1] == []

    def still_reads():
        """The seconds that a session reads data for after it was revoked."""
        _, session = send(node, "POST", "/auth/login", {"email": ANN, "password": PASSWORD})
        token = session["access_token"]
        assert send(node, "GET", "/postgres/mine", token=token)[0] == 200
        cli(node, "users", "logout", ANN)
        ended = time.monotonic()
        assert wait_until(lambda: send(node, "GET", "/postgres/mine", token=token)[0] == 401)
        took = time.monotonic() - ended
        assert send(node, "GET", "/auth/me", token=token)[0] == 401
        return took

    assert quickest(still_reads, 1) < 1
    cli(node, "users", "disable", ANN)
    status, told = send(node, "POST", "/auth/login", {"email": ANN, "password": PASSWORD})
    assert (status, told["code"]) == (403, "user_disabled")
    refused = node.cli("users", "show", "nobody@example.com", ok=False)
    assert refused.returncode == 1
    assert 'there is no user "nobody@example.com"' in refused.stderr


def workers(node):
    found = []
    for one in node.process_of().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "ichibase-worker":
                found.append(one)
    return found


def two_but(node, pid):
    pids = [one.pid for one in workers(node)]
    return len(pids) == 2 and pid not in pids


def test_a_revoked_session_is_refused_by_workers_that_start_later(node):
    email = "cid@example.com"
    cli(node, "users", "create", email, "--password", PASSWORD, "--verified")
    _, session = send(node, "POST", "/auth/login", {"email": email, "password": PASSWORD})
    token, body = session["access_token"], {"refresh_token": session["refresh_token"]}
    anon = node.project()["anon_key"]
    headers = {"authorization": f"Bearer {token}", "apikey": anon}
    assert node.get("/postgres/", headers)[0] == 200
    assert send(node, "POST", "/auth/logout", body, token=token)[0] == 200
    for old in workers(node):
        old.kill()
        assert wait_until(lambda pid=old.pid: two_but(node, pid))
        assert wait_until(lambda: node.get("/readyz")[0] == 200)
    for _ in range(20):  # connections are spread over both
        status, raw = node.get("/postgres/", headers)
        assert (status, json.loads(raw)["code"]) == (401, "invalid_token")


def test_a_project_of_documents_alone_has_users_too(node):
    made = node.cli("projects", "create", "papers", "--flavor", "mongo", "--json")
    project = json.loads(made.stdout)
    assert project["flavor"] == "mongo"
    shown = node.project("papers")
    headers = {
        "host": f"papers.localhost:{node.port}", "apikey": shown["anon_key"],
        "content-type": "application/json",
    }  # fmt: skip

    def ask(method, path, body=None, token=None):
        given = {**headers, **({"authorization": f"Bearer {token}"} if token else {})}
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(node.url + path, raw, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    body = {"email": "doc@example.com", "password": PASSWORD}
    wait_until(lambda: ask("POST", "/auth/signup", body)[0] in (201, 409))
    status, session = ask("POST", "/auth/login", body)
    assert status == 200
    token = session["access_token"]
    assert ask("GET", "/auth/me", token=token)[1]["email"] == body["email"]
    found = node.cli("users", "list", "--project", "papers", "--json")
    assert json.loads(found.stdout)["total"] == 1
    # The token of one project is nothing to another.
    status, told = send(node, "GET", "/auth/me", token=token)
    assert (status, told["code"]) == (401, "invalid_token")


def test_the_outbox_shows_what_would_have_been_sent(node):
    bob = "bob@example.com"
    assert send(node, "POST", "/auth/signup", {"email": bob, "password": PASSWORD})[0] == 201
    assert send(node, "POST", "/auth/password-reset/request", {"email": bob})[0] == 202
    assert wait_until(lambda: cli(node, "outbox", "--to", bob))
    found = cli(node, "outbox", "--to", bob)
    assert found[0]["kind"] == "password_reset"
    assert "token=" in node.cli("outbox").stdout
    admin = f"http://127.0.0.1:{node.admin_port}"
    with urllib.request.urlopen(f"{admin}/outbox", timeout=10) as page:
        assert page.headers["content-type"].startswith("text/html")
    link = next(word for word in found[0]["text"].split() if "token=" in word)
    with urllib.request.urlopen(link.replace(":8000", f":{node.port}"), timeout=10) as page:
        assert b"<form" in page.read()
    assert cli(node, "outbox", "--clear")["deleted"] == 1


@settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    st.sampled_from(sorted(shapes.BODIES)).flatmap(
        lambda endpoint: st.tuples(st.just(endpoint), shapes.bodies(shapes.BODIES[endpoint]))
    ),
    st.sampled_from(["anon_key", "service_key"]),
)
def test_whatever_is_sent_the_node_answers_with_a_code(node, asked, key):
    (method, path), raw = asked
    if not hasattr(node, "keys"):
        node.keys = node.project()
    where = path.replace("{id}", "00000000-0000-4000-8000-000000000000")
    headers = {"apikey": node.keys[key], "content-type": "application/json"}
    request = urllib.request.Request(f"{node.url}/auth{where}", raw, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status < 300
    except urllib.error.HTTPError as error:
        assert 400 <= error.code < 500, (asked, error.code)
        told = json.loads(error.read())
        assert isinstance(told["code"], str)
        assert isinstance(told["detail"], str)


def test_keys_rotate_without_ending_sessions(node):
    person = {"email": "dan@example.com", "password": PASSWORD}
    cli(node, "users", "create", person["email"], "--password", PASSWORD, "--verified")
    _, before = send(node, "POST", "/auth/login", person)
    rotated = cli(node, "keys", "rotate", "--algorithm", "ES256")
    assert [key["current"] for key in rotated] == [True, False]
    fresh, old = rotated

    def published():
        _, jwks = send(node, "GET", "/auth/.well-known/jwks.json", key=None)
        return [key["kid"] for key in jwks["keys"]]

    assert wait_until(lambda: published() == [fresh["kid"]])
    _, after = send(node, "POST", "/auth/login", person)
    for session in (before, after):
        assert send(node, "GET", "/auth/me", token=session["access_token"])[0] == 200
    refused = node.cli("keys", "delete", old["kid"], ok=False)
    assert "API keys are signed with this key" in refused.stderr
    refused = node.cli("keys", "delete", fresh["kid"], ok=False)
    assert "rotate first" in refused.stderr
    again = cli(node, "keys", "rotate", "--algorithm", "EdDSA")
    assert cli(node, "keys", "delete", fresh["kid"]) == {"deleted": True}

    def ended():
        status, told = send(node, "GET", "/auth/me", token=after["access_token"])
        return status != 200 and told["code"] == "invalid_token"

    assert wait_until(ended)
    assert again[0]["algorithm"] == "EdDSA"


def test_settings_of_the_section_are_checked(node):
    bad = node.cli(
        "settings", "default", "set", "auth", '{"redirect_urls":["javascript://x"]}', ok=False
    )
    assert bad.returncode == 1
    assert "redirect_urls" in bad.stderr
    cli(node, "settings", "default", "set", "auth", '{"signup_enabled":false}')
    body = {"email": "eve@example.com", "password": PASSWORD}
    assert wait_until(lambda: send(node, "POST", "/auth/signup", body)[0] == 403)
    cli(node, "settings", "default", "set", "auth", '{"signup_enabled":true}')
    assert wait_until(lambda: send(node, "POST", "/auth/signup", body)[0] == 201)
