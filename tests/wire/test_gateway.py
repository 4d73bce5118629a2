"""The gateway over a real socket: hosts, credentials, origins, limits, replies, faults."""

import asyncio
import socket
import time

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.control.lifecycle import Lifecycle
from tests.wire.conftest import UID, Site, parse

ROUTES = ("postgres", "mongo", "auth", "storage", "functions", "realtime")


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


# --- hosts and routes ------------------------------------------------------------------------


def test_health(echo):
    assert echo.call("GET", "/healthz").json == {"status": "ok"}
    assert echo.call("GET", "/readyz").json == {"status": "ready"}
    assert parse(echo.raw(b"GET /healthz HTTP/1.0\r\n\r\n")).status == 200


def test_the_host_selects_the_project(echo, control):
    def project(host):
        answer = echo.call("GET", "/storage/x", host=host)
        return answer.json.get("project", answer.json.get("code"))

    assert project("127.0.0.1") == project(f"localhost:{echo.port}") == "default"
    assert project("shop.localhost") == project("SHOP.localhost.:1") == "shop"
    assert project("nobody.localhost") == project("a.b.localhost") == "project_not_found"
    assert project("bad host") == "bad_request"
    assert parse(echo.raw(b"GET /auth/x HTTP/1.1\r\nConnection: close\r\n\r\n")).status == 400
    twice = b"GET /auth/x HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"
    assert parse(echo.raw(twice)).status == 400

    def raw(target, *lines, version="1.1"):
        head = "\r\n".join([f"GET {target} HTTP/{version}", *lines, "Connection: close", "", ""])
        answer = parse(echo.raw(head.encode()))
        return answer.json.get("project", answer.json.get("code")) if answer.body else answer.status

    other = "X-Forwarded-Host: shop.localhost"
    assert raw("/storage/x", "Host: nobody.localhost", other) == "project_not_found"
    assert (
        raw("/storage/x", "Host: localhost", other, "Forwarded: host=shop.localhost") == "default"
    )
    # What a target says of a host counts where there is no header alone.
    assert raw("http://shop.localhost/storage/x", "Host: localhost") == "default"
    assert raw("http://localhost/storage/x", "Host: nobody.localhost") == "project_not_found"
    assert raw("http://SHOP.localhost.:9/storage/x", version="1.0") == "shop"
    assert raw("/storage/x", version="1.0") == "bad_request"
    for header in ("Host : localhost", " Host: localhost", "Host: localhost\x00.shop"):
        assert raw("/storage/x", header) == 400
    for header in ("Host:", "Host: localhost, shop.localhost", "Host: a@localhost"):
        assert raw("/storage/x", header) == "bad_request"
    assert raw("/storage/x", "Host: xn--shp-tna.localhost") == "project_not_found"
    assert raw("/storage/x", "hOSt:\tSHOP.localhost \t") == "shop"


def test_routes(echo, control):
    answer = echo.call("GET", "/storage/a/b?c=%20d", {"x-request-id": "my-id"})
    assert answer.json["path"] == "/a/b"
    assert answer.json["query"] == "c=%20d"
    assert answer.headers["x-request-id"] == answer.json["id"] == "my-id"
    assert answer.json["base_url"] == echo.url
    assert answer.json["peer"] == "127.0.0.1"
    assert echo.call("GET", "/storage").json["path"] == "/"
    assert echo.call("GET", "/storage/").json["path"] == "/"
    for path in ("/", "/nothing", "/storagex", "//storage", "/STORAGE/x"):
        answer = echo.call("GET", path)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
    answer = echo.call(
        "GET", "/mongo/v1/find/x", {"apikey": control.anon("shop")}, host="shop.localhost"
    )
    assert (answer.status, answer.json["code"]) == (404, "mongo_not_enabled")
    answer = echo.call(
        "GET", "/postgres/x", {"apikey": control.anon("docs")}, host="docs.localhost"
    )
    assert answer.status == 404
    assert answer.json["code"] == "postgres_not_enabled"
    assert set(answer.json) == {"code", "details", "hint", "message"}


def test_files_name_their_project_in_the_path(echo):
    answer = echo.call("GET", "/cdn/shop/public/a.png", {"authorization": "not looked at"})
    assert (answer.json["service"], answer.json["project"]) == ("cdn", "shop")
    assert answer.json["path"] == "/public/a.png"
    answer = echo.call("GET", "/shop/public/a.png", host="cdn.localhost")
    assert (answer.json["service"], answer.json["path"]) == ("cdn", "/public/a.png")
    for path in ("/cdn", "/cdn/", "/cdn/none/public/x", "/cdn/..%2Fx/y"):
        assert echo.call("GET", path).status == 404


def test_a_sane_request_id_is_kept_and_another_made(echo):
    for own, kept in (("abc-1.2:3", True), ("x" * 129, False), ("a b", False), ("<x>", False)):
        answer = echo.call("GET", "/storage/x", {"x-request-id": own})
        assert (answer.headers["x-request-id"] == own) is kept
    assert echo.call("GET", "/nothing").headers["x-request-id"]


# --- credentials ------------------------------------------------------------------------------


def credentials(control):
    now = int(time.time())
    key = next(k for k in control.records["default"].keys if k.current)

    def sign(claims, secret=key.secret, **headers):
        return jwt.encode(claims, secret, "HS256", headers={"kid": key.kid, **headers})

    anon, service, user = control.anon(), control.service(), control.user()
    none = jwt.encode({"role": "service_role"}, None, "none")
    return {
        "nothing": {},
        "apikey anon": {"apikey": anon},
        "apikey service": {"apikey": service},
        "bearer anon": {"authorization": f"Bearer {anon}"},
        "bearer service": {"authorization": f"Bearer {service}"},
        "bearer user": {"authorization": f"Bearer {user}"},
        "both anon": {"apikey": anon, "authorization": f"Bearer {anon}"},
        "anon and user": {"apikey": anon, "authorization": f"Bearer {user}"},
        "service and user": {"apikey": service, "authorization": f"Bearer {user}"},
        "other project's anon": {"apikey": control.anon("shop")},
        "other project's user": {"authorization": f"Bearer {control.user('shop')}"},
        "anon and other's user": {
            "apikey": anon, "authorization": f"Bearer {control.user('shop')}"
        },
        "expired user": {"authorization": f"Bearer {control.user(exp=now - 60)}"},
        "anon and expired user": {
            "apikey": anon, "authorization": f"Bearer {control.user(exp=now - 60)}"
        },
        "bare anon": {"authorization": f"Bearer {anon.removeprefix('ich_pub_')}"},
        "bare service": {"authorization": f"Bearer {service.removeprefix('ich_admin_')}"},
        "bare apikey": {"apikey": anon.removeprefix("ich_pub_")},
        "user as apikey": {"apikey": user},
        "swapped prefix": {"apikey": "ich_admin_" + anon.removeprefix("ich_pub_")},
        "no algorithm": {"authorization": f"Bearer ich_admin_{none}"},
        "bad apikey, good user": {"apikey": "x", "authorization": f"Bearer {user}"},
        "good apikey, bad bearer": {"apikey": service, "authorization": "Bearer x"},
        "basic": {"apikey": anon, "authorization": "Basic eDp5"},
        "empty apikey": {"apikey": ""},
        "forged role": {
            "authorization": f"Bearer {sign({'role': 'authenticated'}, 'x' * 32)}"
        },
        "superuser role": {"authorization": f"Bearer {sign({'role': 'postgres'})}"},
    }  # fmt: skip


# kind > what each route answers: a role, or a code with 401.
INVALID, KEY, NONE = "invalid_token", "invalid_api_key", "missing_api_key"
MATRIX = {
    # kind: postgres, mongo, auth, storage
    "nothing":               (NONE, NONE, "anon", "anon"),
    "apikey anon":           ("anon", "anon", "anon", "anon"),
    "apikey service":        ("service_role", "service_role", "service_role", "service_role"),
    "bearer anon":           ("anon", NONE, "anon", "anon"),
    "bearer service":        ("service_role", NONE, "service_role", "service_role"),
    "bearer user":           ("authenticated", NONE, "authenticated", "authenticated"),
    "both anon":             ("anon", "anon", "anon", "anon"),
    "anon and user":         ("authenticated",) * 4,
    "service and user":      ("authenticated",) * 4,
    "other project's anon":  (KEY,) * 4,
    "other project's user":  (INVALID,) * 4,
    "anon and other's user": (INVALID,) * 4,
    "expired user":          ("token_expired",) * 4,
    "anon and expired user": ("token_expired",) * 4,
    "bare anon":             (INVALID,) * 4,
    "bare service":          (INVALID,) * 4,
    "bare apikey":           (KEY,) * 4,
    "user as apikey":        (KEY,) * 4,
    "swapped prefix":        (KEY,) * 4,
    "no algorithm":          (KEY,) * 4,
    "bad apikey, good user": (KEY,) * 4,
    "good apikey, bad bearer": (INVALID,) * 4,
    "basic":                 (INVALID,) * 4,
    "empty apikey":          (NONE,) * 4,
    "forged role":           (INVALID,) * 4,
    "superuser role":        (INVALID,) * 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", MATRIX)
def test_each_credential_on_each_route(echo, control, both_flavors, kind):
    headers = credentials(control)[kind]
    for route, expected in zip(("postgres", "mongo", "auth", "storage"), MATRIX[kind], strict=True):
        answer = echo.call("GET", f"/{route}/x", headers)
        if expected in {"anon", "authenticated", "service_role"}:
            assert (answer.status, answer.json["role"]) == (200, expected), route
            assert answer.json["project"] == "default"
            assert answer.json["uid"] == (UID if expected == "authenticated" else None)
            continue
        if route == "auth":
            # signing out with an expired token is allowed: the service decides
            assert (answer.status, answer.json["refusal"]) == (200, expected)
            continue
        assert (answer.status, answer.json["code"]) == (401, expected), route
        assert answer.headers["www-authenticate"] == "Bearer"
        text = "message" if route == "postgres" else "detail"
        assert isinstance(answer.json[text], str)
    # a function decides itself, and is told why the credentials were not good
    answer = echo.call("GET", "/functions/x", headers)
    if MATRIX[kind][3] in {"anon", "authenticated", "service_role"}:
        assert (answer.json["role"], answer.json["refusal"]) == (MATRIX[kind][3], None)
    else:
        assert (answer.json["role"], answer.json["refusal"]) == ("anon", MATRIX[kind][3])


@pytest.fixture(scope="module")
def both_flavors(echo, control):
    """Gives the project `default` documents too."""
    import psycopg

    with psycopg.connect(control.dsn, autocommit=True) as database:
        database.execute("update projects set flavor = 'both', revision = revision + 1 "
                         "where slug = 'default'")  # fmt: skip
    until(lambda: echo.call("GET", "/mongo/x").json["code"] == "missing_api_key")
    yield
    with psycopg.connect(control.dsn, autocommit=True) as database:
        database.execute("update projects set flavor = 'postgres', revision = revision + 1 "
                         "where slug = 'default'")  # fmt: skip
    until(lambda: echo.call("GET", "/mongo/x").json["code"] == "mongo_not_enabled")


def test_no_project_opens_another(echo, control):
    """Every credential of every project at every project: only its own lets it in."""
    for owner in ("default", "shop"):
        for kind in (control.anon, control.service, control.user):
            for target in ("default", "shop"):
                for forwarded in ({}, {"x-forwarded-host": f"{owner}.localhost"}):
                    headers = {"authorization": f"Bearer {kind(owner)}", **forwarded}
                    answer = echo.call("GET", "/postgres/x", headers, host=f"{target}.localhost")
                    if target == owner:
                        assert answer.json["project"] == owner
                    else:
                        assert answer.status == 401


def test_credentials_that_are_no_text_or_come_twice(echo, control):
    good = f"apikey: {control.anon()}\r\n".encode()
    end = b"Connection: close\r\n\r\n"
    for bad in (b"Authorization: Bearer caf\xc3\xa9\r\n", b"Authorization: Bearer \xff\r\n",
                b"authorization: Bearer x\r\nAuthorization: Bearer y\r\n",
                b"apikey: x\r\n"):  # fmt: skip
        answer = parse(echo.raw(b"GET /postgres/x HTTP/1.1\r\nHost: a\r\n" + good + bad + end))
        assert (answer.status, answer.json["code"]) == (400, "bad_request")


def revoke(control, slug, session_id):
    """What the auth service tells all workers when a session ends."""
    from server.base.bus import PgBus
    from server.base.context import TOKEN_REVOKED
    from server.base.events import Events

    async def tell():
        bus = PgBus(control.dsn, Events())
        await bus.publish(
            TOKEN_REVOKED, {"project": control.records[slug].id, "session_id": session_id}
        )
        await bus.stop()

    asyncio.run(tell())


def test_revoked_tokens_are_refused_at_once(echo, control):
    headers = {"authorization": f"Bearer {control.user(session_id='gone')}"}
    assert echo.call("GET", "/postgres/x", headers).status == 200

    revoke(control, "default", "gone")
    until(lambda: echo.call("GET", "/postgres/x", headers).status == 401)
    other = {"authorization": f"Bearer {control.user(session_id='stays')}"}
    assert echo.call("GET", "/postgres/x", other).status == 200


def test_revoked_tokens_stay_so_in_a_project_that_was_deleted_and_brought_back(echo, control):
    life = Lifecycle(control.projects)
    headers = {"authorization": f"Bearer {control.user('shop', session_id='left')}"}

    def status():
        return echo.call("GET", "/postgres/x", headers, host="shop.localhost").status

    assert status() == 200
    revoke(control, "shop", "left")
    until(lambda: status() == 401)
    asyncio.run(life.step("shop", "delete", "test"))
    until(lambda: status() == 404)
    asyncio.run(life.step("shop", "undelete", "test"))
    until(lambda: status() != 404)
    assert status() == 401


# --- origins ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(echo, control):
    asyncio.run(control.projects.put_settings("shop", "cors", {"origins": ["https://*.app.test"]}))
    until(lambda: "vary" in echo.call("GET", "/storage/x", host="shop.localhost").headers)
    return "https://www.app.test"


def test_preflights_are_answered_before_anything_else(echo, listed):
    asked = {"origin": listed, "access-control-request-method": "POST",
             "access-control-request-headers": "apikey, x-own"}  # fmt: skip
    for path in ("/postgres/x", "/mongo/x", "/auth/login", "/functions/x", "/storage/put/x"):
        answer = echo.call("OPTIONS", path, asked, host="shop.localhost")
        if path == "/mongo/x":
            assert answer.status == 404  # no such route in this project, and told so readably
        else:
            assert (answer.status, answer.body) == (204, b"")
            assert answer.headers["access-control-max-age"] == "86400"
            assert answer.headers["access-control-allow-headers"] == "apikey, x-own"
            assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-origin"] == listed
    answer = echo.call("OPTIONS", "/postgres/x", {**asked, "origin": "https://a.b.app.test"},
                       host="shop.localhost")  # fmt: skip
    assert answer.status == 204
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_answers_and_errors_carry_the_origin(echo, listed, control):
    for path in ("/storage/x", "/postgres/x", "/nothing", "/storage/fault", "/storage/status/700",
                 "/storage/%00", "/storage/stream/2", "/storage/stream/2000"):  # fmt: skip
        answer = echo.call("GET", path, {"origin": listed}, host="shop.localhost")
        assert answer.headers["access-control-allow-origin"] == listed, path
        assert "Content-Range" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "Origin"
        answer = echo.call("GET", path, {"origin": "https://evil.test"}, host="shop.localhost")
        assert "access-control-allow-origin" not in answer.headers
    answer = echo.call("GET", "/storage/x", {"origin": listed})
    assert "access-control-allow-origin" not in answer.headers  # another project's list


def test_a_services_own_origin_headers(echo, listed):
    answer = echo.call("GET", "/functions/cors", {"origin": listed}, host="shop.localhost")
    assert answer.headers["access-control-allow-origin"] == listed
    answer = echo.call(
        "GET", "/functions/cors", {"origin": "https://x.test"}, host="shop.localhost"
    )
    assert "access-control-allow-origin" not in answer.headers
    answer = echo.call("GET", "/cdn/shop/cors", {"origin": "https://x.test"})
    assert answer.headers["access-control-allow-origin"] == "*"


# --- limits -----------------------------------------------------------------------------------


def test_bodies(echo, control):
    key = {"apikey": control.anon()}
    assert echo.call("POST", "/storage/x", key, b"x" * 100_000).json["length"] == 100_000
    answer = echo.call("POST", "/storage/x", key, b"x" * 100_001)
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    head = b"POST /storage/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert parse(echo.raw(chunked + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).json["length"] == 5
    answer = parse(echo.raw(chunked + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 4 + b"0\r\n\r\n"))
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    for cut in (chunked + b"5\r\nab", chunked + b"3\r\nabc\r\n", chunked + b"zz\r\nabc",
                chunked, head + b"Content-Length: 9\r\n\r\nab"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", echo.port), timeout=3) as peer:
            peer.sendall(cut)
            peer.shutdown(socket.SHUT_WR)
            assert not peer.recv(4096).startswith(b"HTTP/1.1 200"), cut
    assert parse(echo.raw(head + b"Content-Length: x\r\n\r\n")).status == 400
    assert parse(echo.raw(head + b"\r\n")).json["length"] == 0


def test_urls_and_headers(echo):
    assert echo.call("GET", "/storage/x?" + "a" * 32_000).status == 200
    answer = echo.call("GET", "/storage/x?" + "a" * 33_000)
    assert (answer.status, answer.json["code"]) == (414, "uri_too_long")
    assert echo.call("GET", "/storage/x?" + "a" * 80_000).status == 414
    many = {f"x-{n}": "y" * 1500 for n in range(60)}
    answer = echo.call("GET", "/storage/x", many)
    assert (answer.status, answer.json["code"]) == (431, "headers_too_large")
    for path in ("/storage/%00", "/storage/%ff", "/storage/%c3%28"):
        assert echo.call("GET", path).status == 400
    assert echo.call("GET", "/storage/%C3%B6").json["path"] == "/\u00f6"


# --- replies ----------------------------------------------------------------------------------


def test_statuses_are_checked_before_they_reach_the_server(echo):
    for status in (200, 204, 304, 404, 418, 599):
        assert echo.call("GET", f"/storage/status/{status}").status == status
    for status in (0, 1, 99, 100, 101, 199, 600, 999, 1000, -1, 10**9):
        answer = echo.call("GET", f"/storage/status/{status}")
        assert (answer.status, answer.json["code"]) == (500, "internal")
    assert echo.call("GET", "/healthz").status == 200


def test_hostile_headers_do_not_leave(echo):
    answer = echo.call("GET", "/storage/headers")
    assert answer.status == 200
    assert "x-forged" not in answer.headers
    assert not {"x-crlf", "x-nul", "x bad", "", "x-lone"} & set(answer.headers)
    assert answer.headers["x-ok"].encode("latin-1") == "caf\u00e9".encode()


def test_head_has_no_body(echo):
    for path in ("/storage/x", "/storage/stream/4", "/storage/file", "/nothing"):
        answer = echo.call("HEAD", path)
        assert answer.body == b"", path
    assert int(echo.call("HEAD", "/storage/file").headers["content-length"]) == 8


def test_streams_and_files(echo):
    expected = {
        count: b"".join(b"%07d\n" % n * 1024 for n in range(count)) for count in (0, 3, 500)
    }
    for count, body in expected.items():
        assert echo.call("GET", f"/storage/stream/{count}").body == body
    assert echo.call("GET", "/storage/events").body == expected[3]
    answer = echo.call("GET", "/storage/file")
    assert answer.status == 206
    with open("tests/wire/echo_app.py", "rb") as file:
        assert answer.body == file.read()[3:11]


def test_a_slow_reader_costs_no_memory(echo):
    import psutil

    workers = psutil.Process(echo.process.pid).children(recursive=True)
    before = max(p.memory_info().rss for p in workers)
    peer = socket.create_connection(("127.0.0.1", echo.port))
    peer.sendall(b"GET /storage/stream/12000 HTTP/1.1\r\nHost: a\r\n\r\n")  # 96 MB
    time.sleep(1.5)
    assert max(p.memory_info().rss for p in workers) - before < 40 << 20
    peer.settimeout(60)
    found = 0
    while found < 98_304_000:
        found += len(peer.recv(1 << 20))
    peer.close()
    assert max(p.memory_info().rss for p in workers) - before < 40 << 20


def test_a_fault_is_logged_and_not_told(echo):
    answer = echo.call("GET", "/storage/fault", {"x-request-id": "find-me"})
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    log = echo.log_path.read_text()
    assert "find-me" in log
    assert "the secret reason" in log


def test_a_client_that_leaves_cancels_its_request(echo):
    def cancelled():
        return echo.call("GET", "/storage/cancelled").json["cancelled"]

    before = cancelled()
    with socket.create_connection(("127.0.0.1", echo.port)) as peer:
        peer.sendall(b"GET /storage/sleep HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.1)
    until(lambda: cancelled() == before + 1)


def test_sockets_are_refused_where_there_are_none(echo):
    upgrade = (
        b"GET /storage/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for path in (b"/storage/x", b"/nothing", b"/healthz", b"/postgres/x", b"/storage/%00"):
        answer = parse(echo.raw(upgrade.replace(b"/storage/x", path), timeout=1.0))
        assert answer.status in {400, 401, 403, 404, 200}, path
        assert echo.process.poll() is None


# --- settings, metrics, garbage -----------------------------------------------------------------


def test_projects_come_and_go(echo, control):
    assert echo.call("GET", "/storage/x", host="brief.localhost").status == 404
    control.make("brief")
    until(lambda: echo.call("GET", "/storage/x", host="brief.localhost").status == 200)
    asyncio.run(control.projects.delete("brief"))
    until(lambda: echo.call("GET", "/storage/x", host="brief.localhost").status == 404)


def test_metrics(echo):
    from server.base.metrics import render

    echo.call("GET", "/storage/x")
    until(lambda: 'route="storage",status="2xx"' in render(echo.config.metrics_dir).decode())


def test_two_workers_count_and_revoke_together(control, tmp_path):
    from server.base.metrics import render

    site = Site(control, "tests.wire.echo_app:application", tmp_path, workers=2)
    try:
        headers = {"authorization": f"Bearer {control.user('shop', session_id='both')}"}

        def statuses(count=40):
            return {
                site.call("GET", "/postgres/x", headers, host="shop.localhost").status
                for _ in range(count)
            }

        assert statuses() == {200}
        until(
            lambda: 'route="postgres",status="2xx"} 40' in render(site.config.metrics_dir).decode()
        )
        revoke(control, "shop", "both")
        until(lambda: statuses(10) == {401})
        assert statuses() == {401}
    finally:
        site.stop()


def test_without_its_database_a_worker_waits_and_says_so(control, tmp_path):
    import psycopg

    name = psycopg.conninfo.conninfo_to_dict(control.dsn)["dbname"]
    with psycopg.connect(control.cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'alter database "{name}" allow_connections false')
        try:
            site = Site(control, "tests.wire.echo_app:application", tmp_path, awake="health")
            for path in ("/readyz", "/storage/x"):
                answer = site.call("GET", path)
                assert (answer.status, answer.json["code"]) == (503, "unavailable")
                assert int(answer.headers["retry-after"]) >= 1
        finally:
            admin.execute(f'alter database "{name}" allow_connections true')
    until(lambda: site.call("GET", "/readyz").status == 200)
    assert site.call("GET", "/storage/x").status == 200
    log = site.log_path.read_text()
    site.stop()
    assert log.count("lost the control database") == 2  # the bus and the directory, once each


HEADER = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)


NAMES = st.sampled_from([
    "authorization", "apikey", "origin", "x-request-id", "cookie", "content-length", "range",
    "transfer-encoding", "accept", "upgrade", "x-forwarded-for", "content-type", "expect",
])  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "PUT", "BREW", "get"])
PATH = st.text(st.characters(codec="latin-1"), max_size=60)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(HEADER, PATH, st.lists(st.tuples(NAMES, HEADER), max_size=4), METHODS)
def test_garbage_gets_an_answer_below_500(echo, host, path, headers, method):
    lines = [f"{method} /{path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    answer = parse(echo.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), timeout=2.0))
    assert 200 <= answer.status < 500, answer
