"""/postgres of real projects through a real worker."""

import asyncio
import itertools
import json
import socket
import time
from types import SimpleNamespace

import psycopg
import pytest

from server.postgres.mount import ProjectRest
from server.postgres.settings import RestSettings
from tests.timing import quickest, within
from tests.wire.conftest import UID, Site, parse

SCHEMA = """
create table notes (id int primary key, user_id uuid not null default auth.uid(), body text);
alter table notes enable row level security;
create policy own on notes to authenticated using (user_id = (select auth.uid()))
  with check (user_id = (select auth.uid()));
create table open (id int primary key, body text);
insert into open values (1, 'one'), (2, 'two');
create function slow() returns int language sql as 'select 1 from pg_sleep(20)';
create function settings() returns json language sql stable as $$
  select json_build_object('claims', current_setting('request.jwt.claims', true),
    'role', current_user, 'path', current_setting('request.path', true)) $$;
create function teapot() returns json language plpgsql as $$ begin
  perform set_config('response.status', '418', true);
  perform set_config('response.headers', '[{"x-note": "hello"}]', true);
  return '{}'; end $$;
"""


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def site(control):
    """The server as `ichibase serve` runs it."""
    site = Site(control, "server.app:application", control.folder, statement_timeout_ms=2000)
    for slug in ("default", "shop"):
        with psycopg.connect(owner(control, slug), autocommit=True) as database:
            database.execute(SCHEMA)
    yield site
    site.stop()


def owner(control, slug):
    record = control.records[slug]
    return record.dsn("owner", record.owner_password, tcp=True)


def as_user(control, slug="default", **claims):
    return {"authorization": f"Bearer {control.user(slug, **claims)}"}


def as_anon(control, slug="default"):
    return {"authorization": f"Bearer {control.anon(slug)}"}


def insert(site, control, row, slug="default", headers=()):
    body = json.dumps(row).encode()
    more = {"content-type": "application/json", **as_user(control, slug), **dict(headers)}
    return site.call("POST", "/postgres/notes", more, body, host=f"{slug}.localhost")


def test_rows_are_the_users_own(site, control):
    answer = insert(
        site, control, [{"id": 1, "body": "mine"}], headers={"prefer": "return=minimal"}
    )
    assert (answer.status, answer.body) == (201, b"")
    rows = site.call("GET", "/postgres/notes?select=id,user_id,body", as_user(control)).json
    assert rows == [{"id": 1, "user_id": UID, "body": "mine"}]
    other = as_user(control, sub="22222222-2222-4222-8222-222222222222")
    assert site.call("GET", "/postgres/notes", other).json == []
    assert site.call("GET", "/postgres/notes", as_anon(control)).json == []
    service = {"apikey": control.service()}
    assert len(site.call("GET", "/postgres/notes", service).json) == 1
    assert site.call("GET", "/postgres/notes", as_user(control, "shop"), host="shop.localhost"
                     ).json == []  # fmt: skip


def test_denied_is_401_for_anon_and_403_for_users(site, control):
    row = {"id": 9, "user_id": "22222222-2222-4222-8222-222222222222", "body": "x"}
    answer = insert(site, control, row)
    assert (answer.status, answer.json["code"]) == (403, "42501")
    answer = insert(site, control, row, headers=as_anon(control))
    assert (answer.status, answer.json["code"]) == (401, "42501")


def test_errors_have_the_engines_shape(site, control):
    for path, status, code in (
        ("/postgres/open?id=bad.1", 400, "PGRST100"), ("/postgres/open?id=eq.x", 400, "22P02"),
        ("/postgres/nothing", 404, "PGRST205"), ("/postgres/rpc/nothing", 404, "PGRST202"),
        ("/postgres/a/b/c", 404, "PGRST125"), ("/postgres/%00", 400, "bad_request"),
    ):  # fmt: skip
        answer = site.call("GET", path, as_anon(control))
        assert (answer.status, answer.json["code"]) == (status, code), path
        assert set(answer.json) == {"code", "details", "hint", "message"}
    answer = site.call("GET", "/postgres/open")
    assert (answer.status, answer.json["code"]) == (401, "missing_api_key")


def test_settings_of_the_transaction(site, control):
    found = site.call("POST", "/postgres/rpc/settings", as_user(control), b"{}").json
    assert found["role"] == "authenticated"
    assert json.loads(found["claims"])["sub"] == UID
    found = site.call("POST", "/postgres/rpc/settings", as_anon(control), b"{}").json
    assert found["role"] == "anon"
    assert "sub" not in json.loads(found["claims"])


def test_a_status_and_headers_from_sql(site, control):
    answer = site.call("POST", "/postgres/rpc/teapot", as_anon(control), b"{}")
    assert (answer.status, answer.headers["x-note"]) == (418, "hello")


def test_order_adds_up_and_counts_are_told(site, control):
    answer = site.call(
        "GET", "/postgres/open?order=body.asc&order=id.desc&limit=1",
        {"prefer": "count=exact", **as_anon(control)},
    )  # fmt: skip
    assert (answer.status, answer.headers["content-range"]) == (206, "0-0/2")


def test_a_new_table_is_there_at_once(site, control):
    path = "/postgres/brand_new"
    with psycopg.connect(owner(control, "default"), autocommit=True) as database:
        for number in range(5):
            assert site.call("GET", f"{path}{number}", as_anon(control)).status == 404
            database.execute(f"create table brand_new{number} (id int)")
            assert site.call("GET", f"{path}{number}", as_anon(control)).json == []
        names = iter("xyz")

        def known():
            """The seconds until a new column is known."""
            name = next(names)
            database.execute(f"alter table brand_new1 add column {name} int")
            began = time.monotonic()
            until(
                lambda: site.call("GET", f"{path}1?select={name}", as_anon(control)).status == 200
            )
            return time.monotonic() - began

        assert quickest(known, 1) < 1


def test_changes_are_found_where_nothing_announces_them(site, control, pg_cluster):
    database = control.records["shop"].database
    with psycopg.connect(pg_cluster.dsn(database), autocommit=True) as admin:
        admin.execute("alter event trigger ichibase_ddl disable")
    with psycopg.connect(owner(control, "shop"), autocommit=True) as database:
        get = {"headers": as_anon(control, "shop"), "host": "shop.localhost"}
        names = iter("abc")

        def found():
            """The seconds until a new table is."""
            path = f"/postgres/quiet_{(name := next(names))}"
            assert site.call("GET", path, **get).status == 404
            database.execute(f"create table quiet_{name} (id int)")
            began = time.monotonic()
            until(lambda: site.call("GET", path, **get).status == 200)
            return time.monotonic() - began

        assert quickest(found, 1) < 1


@pytest.mark.parametrize(("weight", "most"), [(10, 3), (100, 100)])
def test_a_light_project_reads_its_catalog_a_part_of_the_time(weight, most):
    project = SimpleNamespace(
        limits=SimpleNamespace(cpu_weight=weight), authenticator_dsn="", slug="a"
    )
    begun = []

    class Rest(ProjectRest):
        async def _read(self):
            self._stale = False
            begun.append(time.monotonic())
            await asyncio.sleep(0.05)

    async def main():
        rest = Rest(project, None, RestSettings())
        rest._poller = asyncio.current_task()
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            rest._told("reload schema")
            await asyncio.sleep(0.005)
        rest._poller = None
        await rest.reload()  # what was told last is read, however late

    asyncio.run(main())
    assert 2 <= len(begun) <= most
    if weight == 10:
        assert min(b - a for a, b in itertools.pairwise(begun)) >= 0.45


def test_settings_take_effect(site, control):
    asyncio.run(control.projects.put_settings("default", "postgres", {"max_rows": 1}))
    until(lambda: len(site.call("GET", "/postgres/open", as_anon(control)).json) == 1)
    asyncio.run(control.projects.put_settings("default", "postgres", {}))
    until(lambda: len(site.call("GET", "/postgres/open", as_anon(control)).json) == 2)


def test_the_statement_timeout(site, control):
    started = time.monotonic()
    answer = site.call("POST", "/postgres/rpc/slow", as_anon(control), b"{}")
    assert answer.json["code"] == "57014", answer.body
    assert within(time.monotonic() - started, 6)


def test_a_client_that_leaves_cancels_its_query(site, control):
    def running():
        with psycopg.connect(control.cluster.admin_dsn) as admin:
            return admin.execute(
                "select count(*) from pg_stat_activity where query like '%slow%' "
                "and state = 'active' and pid <> pg_backend_pid()"
            ).fetchone()[0]

    key = as_anon(control)["authorization"]
    head = f"POST /postgres/rpc/slow HTTP/1.1\r\nHost: a\r\nAuthorization: {key}\r\n"

    def runs_on():
        """The seconds that a query runs on after its client has left."""
        with socket.create_connection(("127.0.0.1", site.port)) as peer:
            peer.sendall(
                f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            until(lambda: running() == 1)
            began = time.monotonic()
        until(lambda: running() == 0)
        return time.monotonic() - began

    assert quickest(runs_on, 1.5) < 1.5  # before the statement timeout


def test_the_database_comes_and_goes(site, control, pg_cluster):
    record = control.records["shop"]
    get = {"headers": as_anon(control, "shop"), "host": "shop.localhost"}
    assert site.call("GET", "/postgres/open", **get).status == 200
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'alter database "{record.database}" allow_connections false')
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s",
            (record.database,),
        )
        until(lambda: site.call("GET", "/postgres/open", **get).status == 503)
        answer = site.call("GET", "/postgres/open", **get)
        assert answer.status == 503, answer.body
        assert int(answer.headers["retry-after"]) >= 1
        assert set(answer.json) == {"code", "details", "hint", "message"}
        assert site.call("GET", "/postgres/open", as_anon(control)).status == 200
        admin.execute(f'alter database "{record.database}" allow_connections true')
    until(lambda: site.call("GET", "/postgres/open", **get).status == 200)


def test_cut_requests_change_nothing(site, control):
    key = control.service()
    head = f"POST /postgres/open HTTP/1.1\r\nHost: a\r\napikey: {key}\r\n"
    for framing in ("Content-Length: 99\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n40\r\n"):
        with socket.create_connection(("127.0.0.1", site.port)) as peer:
            peer.sendall(f"{head}Content-Type: text/csv\r\n{framing}id,body\n77,cut\n".encode())
    time.sleep(0.5)
    assert site.call("GET", "/postgres/open?id=eq.77", {"apikey": key}).json == []


def test_rest_is_served_over_one_connection(site, control):
    """Many requests on a kept connection, each with its own role."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=5) as peer:
        for number in range(40):
            who = as_user(control) if number % 2 else as_anon(control)
            line = "GET /postgres/rpc/settings HTTP/1.1\r\nHost: a\r\nAuthorization: "
            peer.sendall(f"{line}{who['authorization']}\r\n\r\n".encode())
            data = b""
            while b"}" not in data.partition(b"\r\n\r\n")[2]:
                data += peer.recv(65536)
            role = "authenticated" if number % 2 else "anon"
            assert parse(data).json["role"] == role


def test_the_short_way_tells_what_the_general_way_tells(site, control):
    """A read that was served before takes the short way; a header makes it take the other."""
    control.make("both-ways")
    asyncio.run(control.projects.put_settings("both-ways", "cors", {"origins": ["https://a.test"]}))
    with psycopg.connect(owner(control, "both-ways"), autocommit=True) as database:
        database.execute("create table open as select 1 as id, 'one' as body")
    path, key = "/postgres/open?id=eq.1", as_anon(control, "both-ways")

    def get(**more):
        return site.call("GET", path, {**key, **more}, host="both-ways.localhost")

    until(lambda: "vary" in get().headers)
    for _ in range(3):
        short, general = get(), get(**{"x-request-id": "general"})
        assert short.headers["x-request-id"] != "general"
        assert short.body == general.body == b'[{"id":1,"body":"one"}]'
        for name in ("content-type", "content-range", "content-location", "vary"):
            assert short.headers[name] == general.headers[name]
    lines = [f"GET {path} HTTP/1.1", "Host: both-ways.localhost", "Connection: close"]
    lines.append(f"authorization: {key['authorization']}")
    head = "\r\n".join([*lines, ""]).encode()
    assert parse(site.raw(head + b"\r\n")).status == 200
    assert parse(site.raw(head + b"apikey: \xff\r\n\r\n")).status == 400


def test_slow_requests_of_the_short_way_get_a_line(site, control):
    with psycopg.connect(owner(control, "default"), autocommit=True) as database:
        database.execute("create view slow_rows as select 7 as id from pg_sleep(1.05)")
    for _ in range(3):
        for _ in range(5):  # it may take longer than a statement may, on a busy machine
            answer = site.call("GET", "/postgres/slow_rows?id=eq.7", as_anon(control))
            if answer.status == 200:
                break
        assert answer.json == [{"id": 7}]
        until(lambda id=answer.headers["x-request-id"]: id in site.log_path.read_text())


def test_auth_asks_for_the_key_itself(site, control):
    answer = site.call("GET", "/auth/me")
    assert (answer.status, answer.json["code"]) == (401, "missing_api_key")
    answer = site.call("GET", "/auth/me", {"apikey": control.anon()})
    assert answer.status == 401
    assert site.call("GET", "/auth/.well-known/jwks.json").status == 200


def test_a_large_result_comes_whole(site, control):
    with psycopg.connect(owner(control, "default"), autocommit=True) as database:
        database.execute(
            "create table big as select g as id, repeat(md5(g::text), 32) as t "
            "from generate_series(1, 20000) g"
        )
    for headers in (as_anon(control), {**as_anon(control), "x-request-id": "general"}):
        for _ in range(2):
            answer = site.call("GET", "/postgres/big?select=id,t&order=id", headers)
            assert answer.status == 200
            assert int(answer.headers["content-length"]) == len(answer.body) > 20_000_000
            assert [row["id"] for row in json.loads(answer.body)] == list(range(1, 20_001))
        assert site.call("HEAD", "/postgres/big", headers).body == b""
