"""The short way of plain reads and writes: its answers must be those of the general way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jwt
import psycopg
import pytest

from tests.ports import free_port

SQL = """
create table notes (id int primary key, owner uuid, body text, big text);
alter table notes enable row level security;
create policy own on notes using (owner = (select auth.uid()));
insert into notes select g, ('00000000-0000-4000-8000-00000000000' || g % 2)::uuid, 'n' || g,
  repeat('x', 2000) from generate_series(1, 4000) g;
create view failing as select 1 / (id - id) as x from notes;
create table things (id int primary key, name text unique, n int default 7);
create table open (id int primary key);
insert into open select generate_series(1, 3);
create function headers() returns json language sql as
  $$ select current_setting('request.headers')::json $$;
create table told (id int primary key, headers json default headers());
create table refusing (id int primary key);
create function refuse() returns trigger language plpgsql as $$ begin
  insert into told values (new.id); return null; end $$;
create trigger refuse before insert on refusing for each row execute function refuse();
create function mine(above int default 0) returns setof notes language sql stable as
  'select * from notes where id > above';
create function shaped(status text) returns text language plpgsql as $$ begin
  perform set_config('response.status', status, true);
  perform set_config('response.headers', '[{"x-told": "yes"}]', true);
  perform set_config('app.left', 'behind', false);
  return 'x';
end $$;
create function left_behind() returns text language sql as
  $$ select current_setting('app.left', true) $$;
create function nothing() returns void language sql as '';
create function fails() returns int language plpgsql as $$ begin
  raise sqlstate 'PT418' using message = 'teapot', detail = 'd', hint = 'h'; end $$;
create function writes(id int) returns int language sql as
  'insert into told values (id) returning id';
create function given(id int) returns json language sql as
  $$ select json_build_array(id, headers()) $$;
"""
USERS = [f"00000000-0000-4000-8000-00000000000{n}" for n in (0, 1)]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("express")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    environment = {**os.environ, "ICHIBASE_DATA_DIR": str(folder / "data")}
    port, admin = free_port(), free_port()
    base = [sys.executable, "-m", "server.cli.main"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*base, "serve", "--port", str(port), "--admin-port", str(admin)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        if answer(url + "/readyz")[0] == 200:
            break
        time.sleep(0.05)
    for command in (
        ["sql", "default", "-c", SQL],
        ["settings", "default", "set", "cors", json.dumps({"origins": [ORIGIN]})],
    ):
        subprocess.run([*base, *command], env=environment, check=True,
                       capture_output=True)  # fmt: skip
    status = subprocess.run([*base, "status", "--project", "default", "--json"], env=environment,
                            check=True, capture_output=True, text=True)  # fmt: skip
    project = json.loads(status.stdout)

    def sql(text):
        subprocess.run([*base, "sql", "default", "-c", text], env=environment, check=True,
                       capture_output=True)  # fmt: skip

    rows = psycopg.connect(project["database_url"], autocommit=True)
    project["sql"] = sql
    project["sql_in"] = lambda text: rows.execute(text)
    project["things"] = lambda: rows.execute(
        "truncate things; insert into things select g, 'n' || g, g from generate_series(1, 3) g"
    )
    yield project
    rows.close()
    process.terminate()
    process.wait(30)


def answer(url, headers=None, method="GET", body=None):
    try:
        request = urllib.request.Request(url, body, headers or {}, method=method)
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, dict(found.headers), found.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()
    except OSError:
        return 0, {}, b""


def bearer(project, user=None, **claims):
    if user is None:
        return {"authorization": f"Bearer {project['anon_key']}"}
    now = int(time.time())
    payload = {"sub": user, "role": "authenticated", "aud": "authenticated",
               "iat": now, "exp": now + 60, **claims}  # fmt: skip
    return {"authorization": f"Bearer {jwt.encode(payload, project['jwt_secret'], 'HS256')}"}


def same(first, second):
    volatile = {"x-request-id", "date"}
    strip = [{k: v for k, v in one[1].items() if k not in volatile} for one in (first, second)]
    assert first[0] == second[0]
    assert strip[0] == strip[1]
    assert first[2] == second[2]


@pytest.mark.parametrize(
    "query",
    ["", "?id=eq.2", "?id=in.(2,4,6)&select=id,body", "?body=like.n1*&order=id.desc", "?id=eq.-1",
     "?or=(id.eq.2,id.eq.4)&order=id", "?select=a:body,id&id=lt.9&order=id.desc.nullslast",
     "?id=gt.3&order=id&limit=2&select=id", "?order=id&limit=2&offset=1&select=id",
     "?order=id&limit=3&offset=100000", "?limit=0"],
)  # fmt: skip
def test_both_ways_give_the_same_answer(node, query):
    url = f"{node['url']}/postgres/notes{query}"
    headers = bearer(node, USERS[0])
    first = answer(url, headers)
    again = [answer(url, headers) for _ in range(3)]
    assert first[0] == 200
    for one in again:
        same(first, one)


SHORT = "x"  # what the count in the id of a request begins with that went the short way
ORIGIN = "https://app.example.com"
CLIENT = {"accept-profile": "public", "content-profile": "public", "x-client-info": "some-js/2.0"}
SINGLE = {"accept": "application/vnd.pgrst.object+json"}


def ways(node, url, headers, method="GET", body=None, before=lambda: None):
    """The answer on the general way, and the two after it."""
    found = []
    # a request id of one's own takes the general way; the one after it finds the plan
    for way in ({"x-request-id": "g"}, {}, {}):
        before()
        found.append(answer(url, {**headers, **way}, method, body))
    for one in found[1:]:
        same(found[0], one)
    return [one[0] for one in found], found[-1][1]["x-request-id"][12] == SHORT, found[-1]


@pytest.mark.parametrize(
    ("query", "more", "status"),
    [
        ("?id=eq.2", CLIENT, 200),
        ("?id=eq.2", {**CLIENT, "origin": ORIGIN}, 200),
        ("?id=eq.2", {"origin": "https://elsewhere.example.com"}, 200),
        ("?id=eq.2", {"accept-profile": "auth"}, 406),
        ("?id=eq.2", SINGLE, 200),
        ("?id=eq.-2", {**SINGLE, "origin": ORIGIN}, 406),
        ("?id=lt.9", SINGLE, 406),
        ("?id=lt.9&select=big&order=id", {"accept": "text/csv"}, 200),
        ("?id=lt.9", {"accept": "application/vnd.pgrst.array+json;nulls=stripped"}, 200),
        ("?id=lt.9", {"prefer": "count=exact"}, 200),
        ("?order=id&limit=2&offset=1&select=id", {"prefer": "count=exact", **CLIENT}, 206),
        ("?limit=2&select=id", {"prefer": "count=planned"}, 206),
        ("?limit=2&select=id", {"prefer": "count=estimated, handling=lenient"}, 206),
        ("?order=id&limit=2&offset=99999", {"prefer": "count=exact"}, 416),
        ("?id=eq.2", {"prefer": "timezone=Asia/Tokyo, handling=strict"}, 200),
        ("?id=eq.2", {"prefer": "anything, handling=strict"}, 400),
        ("?id=eq.2", {"prefer": "tx=rollback"}, 200),
    ],
)  # fmt: skip
def test_reads_with_what_clients_send_take_the_short_way(node, query, more, status):
    url = f"{node['url']}/postgres/notes{query}"
    for key in ({}, {"apikey": node["anon_key"]}):
        seen, short, _ = ways(node, url, {**bearer(node, USERS[0]), **key, **more})
        assert seen == [status] * 3
        assert short or status in (400, 406)
    if status in (200, 206):
        assert ways(node, url, {"apikey": node["service_key"], **more})[1]


def test_an_apikey_counts_on_the_short_way(node):
    url = f"{node['url']}/postgres/notes?id=lt.9&select=id"
    user = bearer(node, USERS[1])
    mine = [{"id": n} for n in (1, 3, 5, 7)]
    assert json.loads(ways(node, url, {**user, "apikey": node["anon_key"]})[2][2]) == mine
    # the token decides, whatever the key may do; alone the key does
    assert json.loads(ways(node, url, {**user, "apikey": node["service_key"]})[2][2]) == mine
    assert json.loads(ways(node, url, {"apikey": node["anon_key"]})[2][2]) == []
    assert len(json.loads(ways(node, url, {"apikey": node["service_key"]})[2][2])) == 8
    for wrong in ("x", node["anon_key"] + "x", node["anon_key"][:-9]):
        assert ways(node, url, {**user, "apikey": wrong})[0] == [401] * 3


def test_an_origin_gets_its_headers_on_the_short_way(node):
    url = f"{node['url']}/postgres/open"
    headers = {"apikey": node["anon_key"]}
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://elsewhere.example.com", None)):
        _, short, (_, told, _) = ways(node, url, {**headers, "origin": origin})
        assert short
        assert told.get("access-control-allow-origin") == allowed
        assert told["vary"] == "Origin"


WRITES = [
    ("POST", "", b'[{"id": 10, "name": "ten"}]', "return=minimal"),
    ("POST", "", b'{"id": 10, "name": "ten"}', None),
    ("POST", "", b'[{"id": 11, "name": "x"}, {"id": 12, "name": "y"}]', "return=representation"),
    ("POST", "?select=id,n", b'[{"id": 11}]', "return=representation"),
    ("POST", "", b'[{"id": 1, "name": "again"}]', "return=minimal"),
    ("POST", "", b'[{"id": 13, "nmae": "x"}]', "return=minimal"),
    ("POST", "", b'[{"id": "x"}]', "return=minimal"),
    ("POST", "", b'[{"id": 1', "return=minimal"),
    ("POST", "", b'[{"id": 21}, {"name": "differs"}]', "return=minimal"),
    ("POST", "?columns=id", b'[{"id": 22, "name": "not taken"}]', "return=minimal"),
    ("POST", "?on_conflict=id", b'[{"id": 1, "name": "merged"}]', "resolution=merge-duplicates"),
    ("POST", "?on_conflict=id", b'[{"id": 1, "name": "kept"}]', "resolution=ignore-duplicates"),
    ("POST", "", b'[{"id": 23}]', "return=minimal,count=exact"),
    ("POST", "", b"[]", "return=minimal"),
    ("POST", "", b'{"id": 24, "name": "x"}', "return=representation", SINGLE),
    ("POST", "", b'{"id": 25, "name": "x"}', "return=minimal", SINGLE),
    ("POST", "", b'[{"id": 26}, {"id": 27}]', "return=representation", SINGLE),
    ("POST", "", b'[{"id": 28}]', "return=representation", SINGLE),
    ("POST", "", b'{"id": 1}', "return=representation", SINGLE),
    ("POST", "?on_conflict=id", b'{"id": 1}', "resolution=ignore-duplicates", SINGLE),
    ("PATCH", "?id=eq.1", b'{"n": 8}', "return=representation", SINGLE),
    ("PATCH", "?id=lt.3", b'{"n": 8}', "return=representation", SINGLE),
    ("DELETE", "?id=lt.3", None, "return=representation", SINGLE),
    ("PATCH", "?id=eq.1", b'{"name": "new"}', "return=minimal"),
    ("PATCH", "?id=lt.3", b'{"n": 8}', "return=representation"),
    ("PATCH", "?id=eq.77", b'{"n": 8}', "return=minimal"),
    ("PATCH", "?id=lt.3", b'{"n": 8}', "return=minimal,max-affected=1,handling=strict"),
    ("PATCH", "", b'{"n": 9}', "return=minimal"),
    ("DELETE", "?id=eq.2", None, "return=minimal"),
    ("DELETE", "?id=lt.3", None, "return=representation"),
    ("DELETE", "?id=eq.77", None, None),
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=[f"{w[0]}{w[1]}-{w[3]}-{n}"
                                               for n, w in enumerate(WRITES)])  # fmt: skip
def test_both_ways_write_the_same(node, write):
    method, query, body, prefer, *more = write
    url = f"{node['url']}/postgres/things"
    headers = {**bearer(node), **({"prefer": prefer} if prefer else {}), **dict(*more)}
    if body is not None:
        headers["content-type"] = "application/json"
    seen = []
    # a request id of one's own takes the general way; the one after it finds the plan
    for way in ({"x-request-id": "g"}, {}, {**CLIENT, "apikey": node["anon_key"]}, {}):
        node["things"]()
        done = answer(url + query, {**headers, **way}, method, body)
        seen.append((done, answer(url + "?order=id", {**bearer(node), "x-request-id": "g"})[2]))
    assert seen[0][0][0] < 500
    for one in seen[1:]:
        one[0][1].pop("content-profile", None)
        same(seen[0][0], one[0])
        assert one[1] == seen[0][1]


def test_an_object_that_is_inserted_and_shown_alone_takes_the_short_way(node):
    headers = {**bearer(node), **SINGLE, "prefer": "return=representation",
               "content-type": "application/json"}  # fmt: skip
    found = set()
    for _ in range(50):  # one that took long where the machine is busy goes the general way
        seen, short, last = ways(node, f"{node['url']}/postgres/things", headers, "POST",
                                 b'{"id": 30, "name": "one"}', node["things"])  # fmt: skip
        assert seen == [201] * 3
        assert json.loads(last[2]) == {"id": 30, "name": "one", "n": 7}
        found.add(short)
        if short:
            break
    assert True in found


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ("mine?order=id&limit=2", None, 200),
        ("mine?above=10&id=lt.20&select=id,body&order=id", None, 200),
        ("mine?above=10&id=lt.20&select=id&order=id&offset=1", {"prefer": "count=exact"}, 206),
        ("mine?above=3990&limit=1", SINGLE, 200),
        ("mine?above=3990", SINGLE, 406),
        ("mine?above=x", None, 400),
        ("left_behind", CLIENT, 200),
        ("shaped?status=202", None, 202),
        ("shaped?status=99", None, 500),
        ("nothing", None, 204),
        ("fails", None, 418),
        ("left_behind", {"origin": ORIGIN}, 200),
        ("mine?order=id&limit=2", b"{}", 200),
        ("mine?order=id&limit=2&offset=1", b'{"above": 9}', 200),
        ("shaped", b'{"status": "202"}', 202),
        ("nothing", b"{}", 204),
        ("fails", b"{}", 418),
        ("writes", b'{"id": -1}', 200),
        ("writes", b'{"id": "x"}', 400),
    ],
)  # fmt: skip
def test_functions_answer_alike_on_both_ways(node, call, body, status):
    url = f"{node['url']}/postgres/rpc/{call}"
    headers = {"authorization": f"Bearer {node['service_key']}", "apikey": node["anon_key"]}
    method = "GET"
    if isinstance(body, dict):
        headers, body = {**headers, **body}, None
    elif body is not None:
        method = "POST"
        headers["content-type"] = "application/json"

    def before():
        if call == "writes":
            node["sql_in"]("delete from told where id = -1")

    for _ in range(22 if method == "POST" and status < 400 else 0):  # until it has proven quick
        before()
        answer(url, headers, method, body)
    seen, short, last = ways(node, url, headers, method, body, before)
    assert seen == [status] * 3
    if status < 300:
        assert short or method == "POST"  # those that were slow here have not proven quick
    if call.startswith("shaped") and status == 202:
        assert last[1]["x-told"] == "yes"
        left = f"{node['url']}/postgres/rpc/left_behind"
        assert {answer(left, headers)[2] for _ in range(8)} <= {b"null", b'""'}


def test_a_trigger_that_refuses_the_object_leaves_nothing_behind(node):
    headers = {**bearer(node), **SINGLE, "prefer": "return=representation",
               "content-type": "application/json"}  # fmt: skip
    url = f"{node['url']}/postgres/refusing"
    assert ways(node, url, headers, "POST", b'{"id": 99}')[0] == [406] * 3
    told = f"{node['url']}/postgres/told?id=eq.99"
    assert json.loads(answer(told, bearer(node))[2]) == []


def test_a_write_that_breaks_off_writes_nothing(node):
    node["things"]()
    port = int(node["url"].rsplit(":", 1)[1])
    token = bearer(node)["authorization"]
    body = b'[{"id": 50, "name": "fifty"}]'
    head = (
        f"POST /postgres/things HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: {token}\r\n"
        f"content-type: application/json\r\nprefer: return=minimal\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    for sent in (body, body[:12], body[:-1]):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(head + sent)
            if sent == body:
                assert b" 201 " in peer.recv(4096)
                node["things"]()
    time.sleep(0.2)
    found = answer(f"{node['url']}/postgres/things?id=eq.50", bearer(node))
    assert json.loads(found[2]) == []


def post(node, path, body, *more):
    lines = [f"POST /postgres/{path} HTTP/1.1", f"Host: {node['url'].removeprefix('http://')}",
             f"Authorization: Bearer {node['service_key']}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", *more]  # fmt: skip
    return "\r\n".join([*lines, "", body]).encode()


def replies(peer):
    """Status and parsed body of each answer to come on a connection."""
    stream = peer.makefile("rb")
    while True:
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline()) != b"\r\n":
            name, _, value = line.partition(b": ")
            if name == b"content-length":
                length = int(value)
        text = stream.read(length)
        yield status, json.loads(text) if text else None


def test_bodies_that_come_at_once_in_pieces_or_for_nothing_share_a_connection(node):
    """On either way, and nobody sees a header that the client has not sent."""
    port = int(node["url"].rpartition(":")[2])
    whole = "Prefer: return=representation"
    names = {"host", "authorization", "content-type", "content-length"}
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        answers = replies(peer)
        for n in range(1, 24):
            request = post(node, "told", json.dumps({"id": n}), whole)
            cut = [len(request), len(request) - 4, 40, request.index(b"{")][n % 4]
            for piece in filter(None, (request[:cut], request[cut:])):
                peer.sendall(piece)
                time.sleep(0.003 if cut < len(request) else 0)
            status, body = next(answers)
            assert (status, body[0]["id"]) == (201, n)
            assert set(body[0]["headers"]) == {*names, "prefer"}
            peer.sendall(post(node, "told", json.dumps({"id": n})))
            assert next(answers)[0] == 409
            peer.sendall(post(node, "told", '{"id": '))
            assert next(answers)[0] == 400
            peer.sendall(post(node, "nowhere", '{"id": 1}'))
            assert next(answers)[0] == 404
            peer.sendall(post(node, "rpc/given", json.dumps({"id": n})))
            status, body = next(answers)
            assert (status, body[0], set(body[1])) == (200, n, names)


def test_users_of_one_plan_see_their_own_rows_only(node):
    url = f"{node['url']}/postgres/notes?id=lt.20&select=id,owner"
    for _ in range(3):
        for user in USERS:
            rows = json.loads(answer(url, bearer(node, user))[2])
            assert {row["owner"] for row in rows} == {user}
        assert answer(url, bearer(node))[2] == b"[]"


def test_an_error_on_the_short_way_is_a_coded_answer(node):
    url = f"{node['url']}/postgres/notes?id=eq."
    headers = bearer(node, USERS[0])
    for value in ("1", "2", "x", "99999999999", "3"):
        status, _, body = answer(url + value, headers)
        assert status == (200 if value in "123" else 400)
        assert isinstance(json.loads(body), list if status == 200 else dict)
    denied = [answer(f"{node['url']}/postgres/failing", headers) for _ in range(3)]
    assert {one[0] for one in denied} == {400}


def test_a_nul_in_a_value_is_answered_alike_on_both_ways(node):
    general = {"x-request-id": "g"}
    for table, method in (("notes?body=eq.", "GET"), ("things?name=eq.", "DELETE")):
        url = f"{node['url']}/postgres/{table}"
        headers = bearer(node, USERS[0])
        for value in ("n77", "n78", "a%00b", "%00", "n79"):
            first = answer(url + value, {**headers, **general}, method)
            assert first[0] < 500
            same(first, answer(url + value, headers, method))


def test_a_large_answer_goes_through_a_file_and_is_whole(node):
    url = f"{node['url']}/postgres/notes"
    for _ in range(3):
        status, headers, body = answer(url, bearer(node, USERS[1]))
        assert status == 200
        assert len(json.loads(body)) == 2000
        assert headers["content-range"] == "0-1999/*"


def test_a_changed_table_and_a_new_policy_are_seen(node):
    url = f"{node['url']}/postgres/open?order=id"
    for _ in range(3):
        assert json.loads(answer(url, bearer(node))[2]) == [{"id": 1}, {"id": 2}, {"id": 3}]
    node["sql"]("alter table open add column extra text default 'e'; delete from open where id > 1")
    for _ in range(3):
        assert json.loads(answer(url, bearer(node))[2]) == [{"id": 1, "extra": "e"}]
    node["sql"]("revoke all on open from anon")
    assert answer(url, bearer(node))[0] == 401
    assert answer(url, bearer(node, USERS[0]))[0] == 200


def test_an_expired_or_foreign_token_is_refused_on_both_ways(node):
    url = f"{node['url']}/postgres/notes?id=eq.2"
    good = bearer(node, USERS[0])
    for _ in range(3):
        assert answer(url, good)[0] == 200
    assert answer(url, bearer(node, USERS[0], exp=int(time.time()) - 31))[0] == 401
    forged = {"authorization": good["authorization"][:-3] + "abc"}
    assert answer(url, forged)[0] == 401
    assert answer(url)[0] == 401


def test_clients_that_leave_do_no_harm(node):
    port = int(node["url"].rsplit(":", 1)[1])
    token = bearer(node, USERS[1])["authorization"]
    request = (
        f"GET /postgres/notes HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: {token}\r\n\r\n"
    )
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(request.encode())
    assert answer(f"{node['url']}/postgres/notes?id=eq.1", bearer(node, USERS[1]))[0] == 200
