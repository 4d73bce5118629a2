"""The program `ichibase rest` against a real database: requests, reloads, faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import psycopg
import pytest

from server.node.embedded_pg import EmbeddedPostgres
from tests.ports import free_port

SECRET = "reallyreallyreallyreallyverysafe"
SCHEMA = """
create role rest_anon;
create role rest_author;
create role rest_login login noinherit password 'rest';
grant rest_anon, rest_author to rest_login;
create schema api;
grant usage on schema api to rest_anon, rest_author;
create table api.items (id int primary key, name text);
insert into api.items select n, 'item ' || n from generate_series(1, 5) n;
grant select on api.items to rest_anon;
grant all on api.items to rest_author;
create function api.wait(seconds float) returns void language sql as 'select pg_sleep(seconds)';
create function api.big(size int) returns setof api.items language sql stable as
  $$ select n, repeat('x', 1000) from generate_series(1, size) n $$;
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A cluster of its own, since a test stops it."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-rest-pg-"))
    folder.chmod(0o755)
    found = EmbeddedPostgres(folder, free_port(), options={"fsync": "off"})
    found.start()
    with psycopg.connect(found.dsn(), autocommit=True) as admin:
        admin.execute(SCHEMA)
    yield found
    found.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Program:
    """A running program; base and admin are its URLs."""

    def __init__(self, folder: Path, cluster: EmbeddedPostgres, *more: str) -> None:
        self.file = folder / "rest.conf"
        port, admin = free_port(), free_port()
        self.base, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        self.lines = [
            f'db-uri = "{cluster.dsn()} user=rest_login password=rest"',
            'db-schemas = "api"',
            'db-anon-role = "rest_anon"',
            f'jwt-secret = "{SECRET}"',
            'server-host = "127.0.0.1"',
            f"server-port = {port}",
            f"admin-server-port = {admin}",
            'server-trace-header = "X-Request-Id"',
        ]
        self.write(*more)
        self.log = (folder / "log").open("w+")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PGRST_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.standalone", str(self.file)],
            stderr=self.log, stdout=self.log, env=environment,
        )  # fmt: skip

    def write(self, *more: str) -> None:
        self.file.write_text("\n".join([*self.lines, *more]) + "\n")

    def get(self, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.get(self.base + path, headers=named, timeout=30)

    def reaches(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                if holds():
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > until:
                self.log.seek(0)
                raise AssertionError(self.log.read()[-2000:])
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.log.close()
        return code


@pytest.fixture(scope="module")
def program(cluster: EmbeddedPostgres) -> Iterator[Program]:
    folder = Path(tempfile.mkdtemp(prefix="ichi-rest-"))
    found = Program(folder, cluster)
    try:
        found.reaches(lambda: httpx.get(found.admin + "/ready").status_code == 200)
        yield found
    finally:
        assert found.stop() == 0
        shutil.rmtree(folder, ignore_errors=True)


def bearer(**claims: object) -> str:
    return "Bearer " + jwt.encode(dict(claims), SECRET, "HS256")


def test_requests(program: Program) -> None:
    found = program.get("/items?id=eq.2", x_request_id="abc")
    assert (found.status_code, found.json()) == (200, [{"id": 2, "name": "item 2"}])
    assert found.headers["x-request-id"] == "abc"
    assert program.get("/items?id=2").json()["code"] == "PGRST100"
    refused = program.get("/items", authorization="Bearer x.y.z")
    assert (refused.status_code, refused.json()["code"]) == (401, "PGRST301")
    assert refused.headers["www-authenticate"].startswith("Bearer error=")
    body = [{"id": 100, "name": "new"}]
    url = program.base + "/items"
    assert httpx.post(url, json=body).status_code == 401
    author = {"authorization": bearer(role="rest_author")}
    assert httpx.post(url, json=body, headers=author).status_code == 201
    assert httpx.delete(url + "?id=eq.100", headers=author).status_code == 204


def test_targets_that_clients_do_not_encode(program: Program) -> None:
    connection = http.client.HTTPConnection(program.base.removeprefix("http://"), timeout=20)
    wanted: list[tuple[str, Any]] = [
        ('/items?name=in.("item 2")&select=id'.replace(" ", "%20"), [{"id": 2}]),
        ("/items?name=eq.<a>", []),
        ("/items?id=eq.2&select=a:name->>b", [{"a": None}]),
        ("/`items`", "PGRST205"),
    ]
    with contextlib.closing(connection):
        for target, found in wanted:
            connection.request("GET", target)
            got = json.loads(connection.getresponse().read())
            assert (got["code"] if isinstance(found, str) else got) == found


def test_a_streamed_answer_keeps_its_headers(program: Program) -> None:
    found = program.get("/rpc/big?size=8000", origin="http://a.example", x_request_id="abc")
    assert (found.status_code, len(found.json())) == (200, 8000)
    assert found.headers["access-control-allow-origin"] == "*"
    assert found.headers.get_list("x-request-id") == ["abc"]


def test_preflight(program: Program) -> None:
    found = httpx.options(
        program.base + "/items",
        headers={"origin": "http://a.example", "access-control-request-method": "POST",
                 "access-control-request-headers": "Foo,Bar"},
    )  # fmt: skip
    assert found.status_code == 200
    assert found.headers["access-control-allow-headers"].startswith("Authorization, Foo, Bar")


def test_admin_port(program: Program) -> None:
    assert httpx.get(program.admin + "/live").status_code == 200
    metrics = httpx.get(program.admin + "/metrics").text
    assert "ichibase_rest_requests" in metrics
    assert "pgrst_db_pool_max 10\n" in metrics
    shown = httpx.get(program.admin + "/config").text
    assert 'db-schemas = "api"' in shown
    assert SECRET not in shown
    assert "api.items" in httpx.get(program.admin + "/schema_cache").json()["tables"]
    assert httpx.get(program.admin + "/other").status_code == 404


@pytest.mark.parametrize("way", ["notify", "signal"])
def test_schema_reload(program: Program, cluster: EmbeddedPostgres, way: str) -> None:
    path = f"/later_{way}"
    assert program.get(path).json()["code"] == "PGRST205"
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        admin.execute(f"create table api.later_{way} (id int)")
        admin.execute(f"grant select on api.later_{way} to rest_anon")
        if way == "notify":
            admin.execute("notify pgrst, 'reload schema'")
        else:
            program.process.send_signal(signal.SIGUSR1)
    program.reaches(lambda: program.get(path).status_code == 200)


def test_a_storm_of_notices_reads_the_schema_a_few_times(
    program: Program, cluster: EmbeddedPostgres
) -> None:
    def loads() -> int:
        metrics = httpx.get(program.admin + "/metrics").text
        found = re.search(r'loads_total{status="SUCCESS"} (\d+)', metrics)
        assert found is not None
        return int(found[1])

    before = loads()
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        with admin.pipeline():
            for number in range(300):
                admin.execute("notify pgrst, 'reload schema'")
                if number % 50 == 0:
                    admin.execute("notify pgrst, 'reload config'")
        admin.execute("create table api.after_the_storm (id int)")
        admin.execute("grant select on api.after_the_storm to rest_anon")
        admin.execute("notify pgrst")
    program.reaches(lambda: program.get("/after_the_storm").status_code == 200)
    assert 0 < loads() - before < 150


def test_configuration_reload(program: Program, cluster: EmbeddedPostgres) -> None:
    assert len(program.get("/items").json()) == 5
    program.write("db-max-rows = 2")
    program.process.send_signal(signal.SIGUSR2)
    program.reaches(lambda: len(program.get("/items").json()) == 2)
    program.write("db-max-rows = many")
    program.process.send_signal(signal.SIGUSR2)
    time.sleep(0.3)
    assert len(program.get("/items").json()) == 2
    program.write()
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:
        admin.execute("alter role rest_login set pgrst.db_max_rows = '3'")
        admin.execute("notify pgrst, 'reload config'")
        program.reaches(lambda: len(program.get("/items").json()) == 3)
        assert "db-max-rows = 3\n" in run(str(program.file), "--dump-config").stdout
        admin.execute("alter role rest_login reset all")
        admin.execute("notify pgrst, 'reload config'")
    program.reaches(lambda: len(program.get("/items").json()) == 5)


def test_known_requests_take_the_short_way_until_the_configuration_changes(
    program: Program,
) -> None:
    def taken() -> int:
        lines = httpx.get(program.admin + "/metrics").text.splitlines()
        return next(int(x.split()[1]) for x in lines if "short_way_requests" in x)

    def read(**headers: str) -> int:
        before = taken()
        answers = [program.get("/items?id=eq.2", **headers) for _ in range(3)]
        assert {(a.status_code, a.content) for a in answers} == {(200, answers[0].content)}
        assert len({tuple(h for h in a.headers.items() if h[0] != "date") for a in answers}) == 1
        return taken() - before

    author = bearer(role="rest_author", exp=int(time.time()) + 600)
    assert read() >= 2
    assert read(authorization=author) == 2
    assert read(x_request_id="abc") == 0  # it is to be echoed
    short = bearer(role="rest_author", exp=int(time.time()) + 3 - 30)  # 30 s are let pass
    program.reaches(lambda: program.get("/items?id=eq.2", authorization=short).status_code == 401)
    program.write('log-level = "info"')
    program.process.send_signal(signal.SIGUSR2)
    program.reaches(lambda: read() == 0)
    said = Path(program.log.name).read_text()
    assert re.search(r'127.0.0.1 - rest_anon \[.*\] "GET /items\?id=eq.2 HTTP/1.1" 200 - ""', said)
    program.write('log-level = "crit"', 'server-trace-header = "X-Trace"')
    program.process.send_signal(signal.SIGUSR2)
    program.reaches(lambda: read() > 0)
    assert read(x_trace="abc") == 0
    program.write()
    program.process.send_signal(signal.SIGUSR2)
    program.reaches(lambda: program.get("/items", x_trace="a").headers.get("x-trace") is None)


def test_a_client_that_leaves_cancels_its_query(
    program: Program, cluster: EmbeddedPostgres
) -> None:
    with psycopg.connect(cluster.dsn(), autocommit=True) as admin:

        def sleeping() -> int:
            row = admin.execute(
                "select count(*) from pg_stat_activity where state = 'active' "
                "and query like '%%wait%%' and usename = 'rest_login'"
            ).fetchone()
            assert row is not None
            return int(row[0])

        for path in ("/rpc/wait?seconds=30", "/items?select=id&limit=1"):
            with httpx.Client(timeout=1) as client, contextlib.suppress(httpx.ReadTimeout):
                client.get(program.base + path)
        program.reaches(lambda: sleeping() == 0)


def test_workers_end_with_the_program(cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    other = Program(tmp_path, cluster)
    other.reaches(lambda: other.get("/items").status_code == 200)
    workers = psutil.Process(other.process.pid).children(recursive=True)
    assert workers
    other.process.kill()
    other.process.wait()
    other.log.close()
    psutil.wait_procs(workers, 60)
    assert not [w for w in workers if w.is_running()]


def over(path: Path) -> bytes:
    """The answer to one request over a unix socket, b"" while nobody listens."""
    with socket.socket(socket.AF_UNIX) as found, contextlib.suppress(OSError):
        found.connect(str(path))
        found.sendall(b"GET /items?id=eq.1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return found.makefile("rb").read()
    return b""


def test_a_unix_socket(cluster: EmbeddedPostgres, tmp_path: Path) -> None:
    path = tmp_path / "rest.sock"
    other = Program(
        tmp_path, cluster, f'server-unix-socket = "{path}"', 'server-unix-socket-mode = "600"'
    )
    try:
        other.reaches(lambda: over(path).startswith(b"HTTP/1.1 200 "))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        second = run(str(other.file))
        assert (second.returncode, "another program does" in second.stderr) == (1, True)
        other.process.kill()
        other.process.wait()
        assert path.is_socket()
        other.log.close()
        other = Program(
            tmp_path, cluster, f'server-unix-socket = "{path}"', 'server-unix-socket-mode = "600"'
        )
        other.reaches(lambda: over(path).startswith(b"HTTP/1.1 200 "))
    finally:
        assert other.stop() == 0
    assert not path.exists()


def test_the_database_goes_away_and_comes_back(program: Program, cluster: EmbeddedPostgres) -> None:
    assert program.get("/items").status_code == 200
    cluster.stop()
    program.reaches(lambda: program.get("/items").status_code == 503)
    away = program.get("/items")
    assert away.json()["code"] in ("PGRST000", "PGRST001", "PGRST002")
    assert away.headers["retry-after"].isdigit()
    assert httpx.get(program.admin + "/ready").status_code == 503
    assert httpx.get(program.admin + "/live").status_code == 200
    cluster.start()
    program.reaches(lambda: program.get("/items").status_code == 200, 40)
    program.reaches(lambda: httpx.get(program.admin + "/ready").status_code == 200)


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PGRST_")}
    return subprocess.run(
        [sys.executable, "-m", "server.standalone", *arguments],
        env={**environment, **settings}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PGRST_JWT_SECRET": "short"}, "at least 32 characters"),
        ({"PGRST_DB_TX_END": "maybe"}, "Invalid transaction termination"),
        ({"PGRST_OPENAPI_MODE": "x"}, "Invalid openapi-mode"),
        ({"PGRST_ADMIN_SERVER_PORT": "3000"}, "cannot be the same as server-port"),
        ({"PGRST_SERVER_UNIX_SOCKET_MODE": "888"}, "not an octal"),
        ({"PGRST_DB_URI": "nonsense"}, "db-uri cannot be used"),
        ({"PGRST_SERVER_UNIX_SOCKET": "/nowhere/a.sock"}, "cannot make a socket"),
        ({"PGRST_SERVER_HOST": "203.0.113.7"}, "cannot listen on 203.0.113.7:3000"),
    ],
)
def test_bad_settings_refuse_to_start(settings: dict[str, str], reason: str) -> None:
    done = run(**settings)
    assert done.returncode == 1
    assert reason in done.stderr


def test_the_schema_is_printed(program: Program) -> None:
    done = run(str(program.file), "--dump-schema")
    assert (done.returncode, "api.items" in json.loads(done.stdout)["tables"]) == (0, True)
    assert run("--version").stdout.startswith("ichibase rest ")
    taken = run(str(program.file))
    assert (taken.returncode, "Address already in use" in taken.stderr) == (1, True)
    done = run("--dump-schema", PGRST_DB_URI=f"host=127.0.0.1 port={free_port()}")
    assert (done.returncode, done.stderr.startswith("cannot read the schema: ")) == (1, True)


def test_dump_example_and_warnings(tmp_path: Path) -> None:
    done = run("--dump-config", PGRST_DB_SCHEMAS="a,b", PGRST_NOT_KNOWN="1")
    assert done.returncode == 0
    assert 'db-schemas = "a,b"' in done.stdout
    assert "PGRST_NOT_KNOWN" in done.stderr
    example = tmp_path / "example.conf"
    example.write_text(
        run("--example").stdout.replace('"@/etc/ichibase/jwt_secret"', f'"{SECRET}"')
    )
    assert run(str(example), "--dump-config").returncode == 0
    missing = run(str(tmp_path / "none.conf"))
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    assert run("--ready", PGRST_ADMIN_SERVER_PORT=str(free_port())).returncode == 1
