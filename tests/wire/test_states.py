"""What a project's state and quotas make of requests, over a real socket."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from server.control import records
from server.control.lifecycle import Lifecycle
from server.gateway.states import HOLD_SECONDS
from server.storage.sweep import EVERY
from tests.timing import slowness
from tests.wire.conftest import Site
from tests.wire.test_gateway import until


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture(scope="module")
def life(control):
    return Lifecycle(control.projects)


@pytest.fixture(scope="module")
def site(control, tmp_path_factory):
    """The whole application, two workers."""
    site = Site(control, "server.app:application", tmp_path_factory.mktemp("states"), workers=2)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def slug(control):
    record = run(control.projects.create("stated", "postgres", "free", owner="stated"))
    control.records["stated"] = record
    dsn = records.to_project(record, control.projects.config).owner_dsn
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("create table notes (id int primary key, body text)")
        owner.execute("insert into notes values (1, 'one'), (2, 'two'), (3, 'three')")
        owner.execute(
            "create function note(n int) returns int language sql as "
            "'insert into notes values (n) returning id'"
        )
        owner.execute("create function reads() returns bigint language sql as "
                      "'select count(*) from notes'")  # fmt: skip
        owner.execute("create function waits(s float8) returns int language sql as "
                      "'select 1 from pg_sleep(s)'")  # fmt: skip
    yield "stated"
    run(control.projects.delete("stated"))


def call(site, control, method, path, body=None, slug="stated"):
    headers = {"authorization": f"Bearer {control.anon(slug)}", "apikey": control.anon(slug)}
    if body is not None:
        headers["content-type"] = "application/json"
        body = json.dumps(body).encode()
    return site.call(method, path, headers, body, host=f"{slug}.localhost")


def everywhere(condition):
    """Waits until both workers have heard of a change: a run of requests meets each."""
    until(lambda: all(condition() for _ in range(15)))


def limit(life, **overrides):
    run(life.change("stated", {"limits": overrides}, "test"))


def test_a_suspended_project_refuses_and_comes_back(site, control, life, slug):
    until(lambda: call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200)
    run(life.step(slug, "suspend", "test"))
    everywhere(lambda: call(site, control, "GET", "/postgres/notes?id=eq.1").status == 403)
    for path in ("/postgres/notes", "/auth/signup", "/functions/f"):
        answer = call(site, control, "POST", path, {})
        assert (answer.status, answer.json["code"]) == (403, "project_suspended"), path
    preflight = site.call(
        "OPTIONS", "/postgres/notes",
        {"origin": "http://a.example", "access-control-request-method": "GET"},
        host="stated.localhost",
    )  # fmt: skip
    assert preflight.status == 204
    run(life.step(slug, "resume", "test"))
    until(lambda: call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200)


def test_over_its_disk_quota_a_project_reads_and_deletes(site, control, life, slug):
    record = run(control.projects.find(slug))
    run(life.read_only(record.id, True, {}))
    everywhere(lambda: call(site, control, "POST", "/postgres/notes", {"id": 1}).status == 507)
    for method, path in (
        ("POST", "/postgres/notes"), ("PATCH", "/postgres/notes?id=eq.1"),
        ("PUT", "/postgres/notes?id=eq.1"), ("POST", "/auth/signup"),
        ("POST", "/postgres/rpc/note"),
    ):  # fmt: skip
        answer = call(site, control, method, path, {"n": 9} if "rpc" in path else {"id": 1})
        assert (answer.status, answer.json["code"]) == (507, "quota_exceeded"), (method, path)
    for _ in range(8):  # the short way, once open, is no way around
        assert len(call(site, control, "GET", "/postgres/notes").json) == 3
        assert call(site, control, "POST", "/postgres/notes", {"id": 9}).status == 507
        assert call(site, control, "GET", "/postgres/rpc/note?n=9").status == 507
    assert call(site, control, "POST", "/postgres/rpc/reads", {}).json == 3
    assert call(site, control, "DELETE", "/postgres/notes?id=eq.3").status == 204
    assert call(site, control, "GET", "/postgres/notes").json[-1]["id"] == 2
    assert call(site, control, "POST", "/auth/login", {}).status != 507
    run(life.read_only(record.id, False, {}))
    until(lambda: call(site, control, "POST", "/postgres/notes", {"id": 3}).status == 201)
    assert call(site, control, "POST", "/postgres/rpc/note", {"n": 4}).json == 4


def wakings(control):
    with psycopg.connect(control.dsn) as db:
        return db.execute(
            "select count(*) from audit where project = 'stated' and action = 'project.wake'"
        ).fetchone()[0]


def connections(control):
    record = control.records["stated"]
    with psycopg.connect(control.cluster.admin_dsn) as admin:
        return admin.execute(
            "select count(*) from pg_stat_activity where datname = %s", (record.database,)
        ).fetchone()[0]


def test_hundreds_of_requests_wake_a_sleeping_project_once(site, control, life, slug):
    before = wakings(control)
    run(life.step(slug, "sleep", "test"))
    until(lambda: connections(control) == 0)
    time.sleep(0.3 * slowness())  # the workers have been told
    with ThreadPoolExecutor(100) as many:
        answers = list(many.map(
            lambda _: call(site, control, "GET", "/postgres/notes?id=eq.1").status, range(300)
        ))  # fmt: skip
    assert set(answers) <= {200, 429}
    assert answers.count(200) > 100
    assert wakings(control) == before + 1


def test_a_sleeping_project_is_left_alone(site, control, life, slug):
    """Nobody cleans up in it: what has run out is removed once it is awake."""
    key = control.records[slug].service_key
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    wanted = {"bucket": "bucket", "path": "p", "content_type": "text/plain", "content_length": 3}
    body = json.dumps(wanted).encode()
    for _ in range(15):  # both workers know the project's files and users
        minted = site.call("POST", "/storage/get-put-url", headers, body, host="stated.localhost")
        assert minted.status == 200, minted.body
        assert call(site, control, "POST", "/auth/login", {}).status == 400
    run(life.step(slug, "sleep", "test"))
    until(lambda: connections(control) == 0)
    until_when = time.monotonic() + 2 * EVERY
    while time.monotonic() < until_when:
        assert connections(control) == 0
        time.sleep(0.1)
    assert run(control.projects.find(slug)).state == "sleeping"
    assert call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200


def test_a_bad_key_does_not_wake(site, control, life, slug):
    run(life.step(slug, "sleep", "test"))
    until(lambda: connections(control) == 0)
    time.sleep(0.3 * slowness())
    assert (
        site.call("GET", "/postgres/notes", {"apikey": "x"}, host="stated.localhost").status == 401
    )
    answer = site.call("POST", "/auth/login", {"apikey": "x"}, b"{}", host="stated.localhost")
    assert (answer.status, answer.json["code"]) == (401, "invalid_api_key")
    assert run(control.projects.find(slug)).state == "sleeping"
    assert call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200


def test_waking_is_bounded_when_the_control_database_is_away(site, control, life, slug):
    run(life.step(slug, "sleep", "test"))
    until(lambda: connections(control) == 0)
    time.sleep(0.3 * slowness())
    name = psycopg.conninfo.conninfo_to_dict(control.dsn)["dbname"]
    with psycopg.connect(control.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'alter database "{name}" allow_connections false')
        try:
            answer = call(site, control, "GET", "/postgres/notes?id=eq.1")
            assert (answer.status, answer.json["code"]) == (503, "project_waking")
            assert answer.headers["retry-after"] == "5"
        finally:
            admin.execute(f'alter database "{name}" allow_connections true')
    until(lambda: call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200)


def test_the_rate_of_requests_is_bounded_on_every_way(site, control, life, slug):
    # Two workers share the connections, so each sees about half.
    limit(life, requests_per_second=5)
    time.sleep(0.5 * slowness())

    def ask(_):
        began = time.monotonic()
        answer = call(site, control, "GET", "/postgres/notes?id=eq.1")
        return answer, time.monotonic() - began

    began = time.monotonic()
    with ThreadPoolExecutor(30) as many:
        timed = list(many.map(ask, range(60)))
    took = time.monotonic() - began
    answers = [answer for answer, _ in timed]
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert 20 <= statuses.count(200) <= 20 + 10 * max(1.5, took)
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json["code"] == "rate_limited"
    assert int(refused.headers["retry-after"]) == 1
    # Refusing waits a moment: asking again at once would cost more than being served.
    assert min(took for answer, took in timed if answer.status == 429) >= HOLD_SECONDS
    limit(life)
    time.sleep(0.5 * slowness())
    assert {call(site, control, "GET", "/postgres/notes?id=eq.1").status for _ in range(60)} == {
        200
    }


def test_connections_queue(site, control, life, slug):
    limit(life, connections=1)
    time.sleep(0.5)
    answers = []

    def ask():
        answers.append(call(site, control, "GET", "/postgres/notes?order=id").status)

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {200}
    limit(life)


def test_who_finds_no_connection_free_is_told_so(site, control, life, slug):
    run(control.projects.put_settings(slug, "postgres", {"statement_timeout_ms": 30_000}))
    limit(life, connections=1, statement_ms=30_000)
    time.sleep(0.5 * slowness())
    waits = "/postgres/rpc/waits"
    with ThreadPoolExecutor(12) as many:  # one of each worker, and who waits for them
        busy = [many.submit(call, site, control, "POST", waits, {"s": 13}) for _ in range(12)]
        answers = [one.result() for one in busy]
    assert {answer.status for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert refused.json["code"] == "PGRST003"
    assert call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200
    limit(life)
    run(control.projects.put_settings(slug, "postgres", {}))


def test_the_tier_bounds_the_time_of_a_statement(site, control, life, slug):
    waits = "/postgres/rpc/waits"
    assert call(site, control, "POST", waits, {"s": 1}).status == 200

    def code(seconds):
        return (call(site, control, "POST", waits, {"s": seconds}).json or {}).get("code")

    limit(life, statement_ms=300)
    everywhere(lambda: call(site, control, "POST", waits, {"s": 0.6}).status != 200)
    assert code(20) == "57014"
    # More than the tier grants is not to be had by the project's own settings.
    run(control.projects.put_settings(slug, "postgres", {"statement_timeout_ms": 20_000}))
    time.sleep(0.5 * slowness())
    assert code(1.5) == "57014"
    limit(life)
    everywhere(lambda: call(site, control, "POST", waits, {"s": 0.6}).status == 200)
    run(control.projects.put_settings(slug, "postgres", {}))


def test_requests_are_counted(site, control, life, slug):
    def counted():
        with psycopg.connect(control.dsn) as db:
            found = db.execute(
                "select coalesce(sum(value), 0) from usage where counter = 'requests' and "
                "project_id = %s", (control.records[slug].id,),
            ).fetchone()  # fmt: skip
            return int(found[0])

    time.sleep(3.5 * slowness())  # what came before is written
    before = counted()
    for _ in range(20):
        assert call(site, control, "GET", "/postgres/notes?id=eq.1").status == 200
    until(lambda: counted() == before + 20)


def test_a_project_is_reached_by_its_own_host_alone(site, control, life, slug):
    good = {"authorization": f"Bearer {control.anon(slug)}"}

    def asked(host, headers=()):
        lines = {**good, **dict(headers)}
        answer = site.call("GET", "/postgres/notes?id=eq.1", lines, host=host)
        return answer.status

    for host in ("stated.localhost", "STATED.LocalHost", "stated.localhost.", "stated.localhost:1",
                 "stated.localhost.:65535"):  # fmt: skip
        assert asked(host) == 200, host
    for host in (
        "xn--stated.localhost", "stated.localhost.evil.example", "stated", "stated..localhost",
        "x.stated.localhost", "stated.localhost:0", "stated.localhost:70000",
        "stated\t.localhost", "default.localhost", "127.0.0.1",
    ):  # fmt: skip
        assert asked(host) in (400, 401, 404), host
    # What a proxy is believed about is the client's address, never the project.
    for name in ("x-forwarded-host", "x-host", "forwarded", "x-original-host"):
        assert asked("default.localhost", [(name, "stated.localhost")]) == 401
    raw = (
        "GET http://stated.localhost/postgres/notes HTTP/1.1\r\nHost: default.localhost\r\n"
        f"authorization: Bearer {control.anon(slug)}\r\nconnection: close\r\n\r\n"
    )
    status = int(site.raw(raw.encode()).split()[1])
    assert status in (200, 400, 401)  # one project or the other answers, with its own keys
