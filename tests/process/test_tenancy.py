"""Many projects on a whole node: sleep, quotas, usage, backups, and who sees to them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
import psycopg
import pytest
from pymongo import MongoClient

from server.backup.archive import DOCUMENTS, MANIFEST, Reader, Writer, mac
from server.backup.store import open_store
from server.node.embedded_pg import binaries
from tests.process.running import RunningNode, wait_until
from tests.timing import within


@pytest.fixture(scope="module")
def node(module_folder):
    folder = module_folder
    (folder / "tiers.toml").write_text("[free]\nsleep_days = 3000\nprojects = 50\n")
    (folder / "key").write_text("a passphrase that nobody guesses\n")
    node = RunningNode(
        folder,
        environment={
            "ICHIBASE_MAINTENANCE_SECONDS": "0.3", "ICHIBASE_DEFAULT_FLAVOR": "postgres",
            "ICHIBASE_TIERS_FILE": str(folder / "tiers.toml"),
            "ICHIBASE_BACKUP_KEY_FILE": str(folder / "key"),
        },
    )  # fmt: skip
    node.start()
    yield node
    node.end()


def cli(node, *arguments):
    return json.loads(node.cli(*arguments, "--json").stdout)


def api(node, path, method="GET", body=None):
    """An answer of the admin API: what needs no command line is quicker without one."""
    token = (node.data_dir / "secrets" / "admin_token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.admin_port}/admin/v1/{path}", method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {token}"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def step(node, action, name="kitchen"):
    api(node, f"projects/{name}/{action}", "POST", {})


def limits(node, **numbers):
    """The project's own numbers, all of them."""
    api(node, "projects/kitchen", "PATCH", {"limits": numbers})


def sql(node, text, name="kitchen"):
    api(node, f"projects/{name}/sql", "POST", {"sql": text})


def job(node, path, body=None):
    """The result of a job, once it is done."""
    made = api(node, path, "POST", body)
    done = []

    def ended():
        done[:] = [api(node, f"jobs/{made['id']}")]
        return done[0]["state"] in ("done", "failed")

    assert wait_until(ended)
    assert done[0]["state"] == "done", done
    return done[0]["result"]


@pytest.fixture
def project(node):
    """The same for all tests, until one deletes it."""
    if state(node) is None:
        cli(node, "projects", "create", "kitchen", "--tier", "free", "--owner", "ann")
        sql(node, "create table pots (id int primary key, filler text)")
    limits(node)
    return node.project("kitchen")


@pytest.fixture
def pot(node, project):
    """One row, whatever the tests before have left."""
    sql(node, "truncate pots; insert into pots (id) values (1)")


def get(node, project, path="/postgres/pots?id=eq.1", method="GET", body=None):
    request = urllib.request.Request(
        node.url + path, method=method, data=None if body is None else json.dumps(body).encode(),
        headers={"host": f"kitchen.localhost:{node.port}", "content-type": "application/json",
                 "authorization": f"Bearer {project['anon_key']}"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def state(node, name="kitchen"):
    found = api(node, "projects?deleted=true")
    return next((p["state"] for p in found if p["name"] == name), None)


def usage(node):
    return api(node, "projects/kitchen/usage")


def audit(node):
    return [entry["action"] for entry in api(node, "projects/kitchen/audit")]


def test_usage_is_counted_and_shown(node, project):
    for _ in range(25):
        assert get(node, project)[0] == 200
    assert wait_until(lambda: usage(node)["month"].get("requests", 0) >= 25)
    assert wait_until(lambda: usage(node)["quotas"]["database_bytes"]["used"] > 5_000_000)
    found = cli(node, "usage", "kitchen")
    assert found["quotas"]["database_bytes"]["limit"] == 500_000_000
    assert "database_bytes" in node.cli("usage", "kitchen").stdout
    assert wait_until(lambda: usage(node)["live"]["database_sessions"] > 0)
    shown = b'ichibase_project_live{project="kitchen",kind="database_sessions"}'
    token = (node.data_dir / "secrets/admin_token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    assert shown in node.get("/metrics", headers, admin=True)[1]
    assert "database_sessions" in node.cli("usage", "kitchen").stdout
    token = (node.data_dir / "secrets" / "admin_token").read_text().strip()
    assert wait_until(
        lambda: (
            b'ichibase_project_bytes{project="kitchen",kind="database"}'
            in node.get("/metrics", {"authorization": f"Bearer {token}"}, admin=True)[1]
        )
    )


def test_a_full_project_is_read_only_until_there_is_room(node, project):
    sql(node, "truncate pots")
    used = usage(node)["quotas"]["database_bytes"]["used"]
    limits(node, database_bytes=used + 1_000_000)
    assert wait_until(lambda: "quota.warning" in audit(node))
    body = [{"id": n, "filler": "x" * 2000} for n in range(1500)]
    assert get(node, project, "/postgres/pots", "POST", body)[0] == 201
    assert wait_until(lambda: state(node) == "read-only")
    assert wait_until(lambda: get(node, project, "/postgres/pots", "POST", {"id": 9999})[0] == 507)
    _, answer = get(node, project, "/postgres/pots", "POST", {"id": 9999})
    assert json.loads(answer)["code"] == "quota_exceeded"
    assert get(node, project)[0] == 200
    assert get(node, project, "/postgres/pots?id=lt.1500", "DELETE")[0] == 204
    sql(node, "set default_transaction_read_only = off; commit; truncate pots")
    assert wait_until(lambda: state(node) == "active")
    assert wait_until(lambda: get(node, project, "/postgres/pots", "POST", {"id": 1})[0] == 201)
    done = audit(node)
    assert done.count("quota.warning") == 2  # at 80 % and at 100 %
    assert {"project.read_only", "project.writable"} <= set(done)
    limits(node)


def test_an_idle_project_sleeps_and_its_next_request_wakes_it(node, project, pot):
    limits(node, sleep_days=0.00002)
    times = []
    for _ in range(3):
        assert wait_until(lambda: state(node) == "sleeping")
        began = time.perf_counter()
        assert get(node, project) == (200, b'[{"id":1,"filler":null}]')
        times.append(time.perf_counter() - began)
        assert state(node) in ("active", "sleeping")
    assert wait_until(lambda: state(node) == "sleeping")
    with ThreadPoolExecutor(50) as many:
        answers = [one[0] for one in many.map(lambda _: get(node, project), range(150))]
    assert set(answers) == {200}
    limits(node)
    assert within(min(times), 1.0)


def test_requests_are_answered_while_their_project_sleeps_wakes_and_changes(node, project, pot):
    limits(node, requests_per_second=0)  # a quick machine asks for more than the tier's
    time.sleep(0.5)
    until = time.monotonic() + 5
    answers = Counter()

    def ask(number):
        while time.monotonic() < until:
            answers[get(node, project)] += 1
            time.sleep(0.02 * number)

    with ThreadPoolExecutor(4) as many:
        asking = [many.submit(ask, number) for number in range(4)]
        while time.monotonic() < until:
            limits(node, connections=5, requests_per_second=0)
            step(node, "sleep")
            time.sleep(0.05)
            limits(node, requests_per_second=0)
        for one in asking:
            one.result()
    limits(node)
    assert set(answers) == {(200, b'[{"id":1,"filler":null}]')}, answers


def test_backups_are_made_verified_and_restored_by_command(node, project, pot):
    before = {b["id"] for b in cli(node, "backups", "list", "kitchen")}
    made = cli(node, "backups", "create", "kitchen")
    listed = [b for b in cli(node, "backups", "list", "kitchen") if b["id"] not in before]
    assert [(b["id"], b["state"], b["encrypted"]) for b in listed] == [
        (made["backup"], "done", True)]  # fmt: skip
    assert "good: " in node.cli("backups", "verify", made["backup"]).stdout
    assert get(node, project, "/postgres/pots?id=eq.1", "DELETE")[0] == 204
    assert "restored" in node.cli("backups", "restore", made["backup"], "--yes").stdout
    assert wait_until(lambda: get(node, project)[1] == b'[{"id":1,"filler":null}]')
    job(node, f"backups/{made['backup']}/restore", {"into": "kitchen-two"})
    assert node.project("kitchen-two")["anon_key"] != project["anon_key"]
    refused = node.cli("backups", "verify", "nothing", ok=False)
    assert "backup_not_found" in refused.stderr
    assert "say --yes" in node.cli("backups", "restore", made["backup"], ok=False).stderr
    api(node, "projects/kitchen-two?now=true", "DELETE")
    api(node, "projects/kitchen?now=true", "DELETE")  # whatever became of it, it comes back
    assert "into kitchen" in node.cli("backups", "restore", made["backup"]).stdout
    assert node.project("kitchen")["anon_key"] == project["anon_key"]
    assert wait_until(lambda: get(node, project)[1] == b'[{"id":1,"filler":null}]')
    assert "made kitchen-" in node.cli("backups", "create", "kitchen").stdout
    node.cli("backups", "delete", made["backup"])
    assert made["backup"] not in [b["id"] for b in api(node, "backups")]


def test_what_the_owner_has_made_is_dumped_and_loads_into_another_project(node, project, tmp_path):
    sql(node, """
        create schema if not exists menu; create extension if not exists pg_trgm;
        create table if not exists menu.dishes (name text, cook uuid references auth.users);
        truncate menu.dishes; insert into menu.dishes (name) values (E'CREATE SCHEMA public;\\n');
        revoke all on pots from anon; alter default privileges in schema menu grant select on
        tables to anon""")  # fmt: skip
    script = tmp_path / "kitchen.sql"
    node.cli("dump", "kitchen", "--file", str(script))
    assert script.stat().st_mode & 0o777 == 0o600
    assert node.cli("dump", "kitchen").stdout.count("COPY menu.dishes (name, cook)") == 1
    url = node.project("kitchen")["database_url"]
    assert urlsplit(url).path.strip("/") not in script.read_text()
    api(node, "projects", "POST", {"name": "diner"})
    into = node.project("diner")["database_url"]
    loaded = subprocess.run(
        [binaries() / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-f", script, into],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (loaded.returncode, loaded.stderr) == (0, "")
    with psycopg.connect(into) as owner:
        rows = owner.execute("select name, has_table_privilege('anon', 'pots', 'select') from "
                             "menu.dishes").fetchall()  # fmt: skip
    assert rows == [("CREATE SCHEMA public;\n", False)]
    api(node, "projects/diner?now=true", "DELETE")
    sql(node, "drop schema menu cascade; drop extension pg_trgm; grant all on pots to anon")
    assert "project_not_found" in node.cli("dump", "nothing", ok=False).stderr


def maintenance(node):
    for child in psutil.Process(node.process.pid).children(recursive=True):
        if "server.maintenance.main" in child.cmdline():
            return child
    return None


def test_a_backup_whose_process_is_killed_is_said_to_have_failed(node, project):
    sql(
        node, "insert into pots select n, repeat(md5(n::text), 60) from generate_series(2, 60000) n"
    )
    before = maintenance(node)
    socket_dir, port = node.data_dir / "postgres" / "socket", node.project_port()
    database = urlsplit(project["database_url"]).path.strip("/")
    password = (node.data_dir / "postgres" / "superuser").read_text().strip()
    with psycopg.connect(
        host=str(socket_dir), port=port, user="postgres", password=password, dbname=database
    ) as holds:
        holds.execute("lock table public.pots in access exclusive mode")  # no backup gets past it
        running = subprocess.Popen(
            **node.command("backups", "create", "kitchen"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert wait_until(lambda: [b for b in api(node, "backups") if b["state"] == "running"])
        os.kill(before.pid, signal.SIGKILL)
    out, error = running.communicate(timeout=60)
    assert running.returncode == 1, out
    assert "interrupted" in error
    assert maintenance(node).pid != before.pid
    states = [b["state"] for b in api(node, "backups")]
    assert "running" not in states
    left = [p for p in (node.data_dir / "backups").rglob("*") if p.name.endswith(".part")]
    assert left == []
    made = job(node, "projects/kitchen/backups")
    assert job(node, f"backups/{made['backup']}/verify")["rows"] >= 60_000


def test_owners_have_bounds_and_are_suspended_with_their_projects(node, project):
    cli(node, "owners", "put", "ben", "--bound", "1", "--email", "ben@example.com")
    api(node, "projects", "POST", {"name": "bens", "tier": "free", "owner": "ben"})
    refused = node.cli("projects", "create", "more", "--tier", "free", "--owner", "ben", ok=False)
    assert "project_limit" in refused.stderr
    assert "ben@example.com" in node.cli("owners", "list").stdout
    node.cli("owners", "put", "ben", "--suspended", "yes")
    assert state(node, "bens") == "suspended"
    node.cli("owners", "put", "ben", "--suspended", "no")
    assert state(node, "bens") == "active"
    assert "owner_has_projects" in node.cli("owners", "delete", "ben", ok=False).stderr
    api(node, "projects/bens?now=true", "DELETE")
    node.cli("owners", "delete", "ben")
    entries = [(one["action"], one["actor"]) for one in api(node, "owners/ben/audit")]
    names = ["delete", "resume", "suspend", "change", "create"]
    assert entries == [(f"owner.{name}", "admin") for name in names]


def test_the_database_restarts_and_all_goes_on(node, project):
    node.cli("projects", "sleep", "kitchen")
    assert wait_until(lambda: state(node) == "sleeping")
    before = node.postmaster().pid
    node.postmaster().send_signal(signal.SIGQUIT)

    def another():
        try:
            return node.postmaster().pid != before
        except (FileNotFoundError, psutil.NoSuchProcess):  # it is between two servers
            return False

    assert wait_until(another)
    assert wait_until(lambda: get(node, project)[0] == 200)
    made = job(node, "projects/kitchen/backups")  # the maintenance leads again
    assert job(node, f"backups/{made['backup']}/verify")["tables"] > 0
    assert wait_until(lambda: usage(node)["today"].get("requests", 0) > 0)


def open_socket(node, project):
    """A realtime socket of the project; the handshake's status and the connection."""
    peer = socket.create_connection(("127.0.0.1", node.port), timeout=60)
    peer.sendall(
        f"GET /realtime?token={project['anon_key']} HTTP/1.1\r\nHost: kitchen.localhost\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head and (piece := peer.recv(4096)):
        head += piece
    return int(head.split()[1]), peer


def heard(peer):
    """What the server says until it closes."""
    found = b""
    try:
        while piece := peer.recv(4096):
            found += piece
            if b"\x88" in found:  # a close frame
                break
    except TimeoutError:
        pass
    peer.close()
    return found


def test_sockets_are_told_when_their_project_sleeps_and_wake_it(node, project):
    status, peer = open_socket(node, project)
    assert status == 101
    step(node, "sleep")
    said = heard(peer)
    assert b'"closing"' in said
    assert b'"sleep"' in said

    def answered(expected):
        status, peer = open_socket(node, project)
        peer.close()
        return status == expected

    assert wait_until(lambda: answered(101))
    assert state(node) == "active"
    status, peer = open_socket(node, project)
    step(node, "suspend")
    assert b"project_suspended" in heard(peer)
    assert wait_until(lambda: answered(403))
    step(node, "resume")
    assert wait_until(lambda: answered(101))


def test_a_silent_socket_keeps_its_project_awake(node, project):
    limits(node, sleep_days=0.00008)  # 7 seconds; use is written down every 3
    status, peer = open_socket(node, project)
    assert status == 101
    until = time.monotonic() + 14
    while time.monotonic() < until:
        assert state(node) == "active"
        time.sleep(0.2)
    peer.close()
    assert wait_until(lambda: state(node) == "sleeping")
    limits(node)


def documents(node, project, operation, body):
    request = urllib.request.Request(
        f"{node.url}/mongo/v1/{operation}/things", method="POST", data=json.dumps(body).encode(),
        headers={"host": f"both.localhost:{node.port}", "content-type": "application/json",
                 "apikey": project["service_key"]},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


async def without_the_last_document(node, backup, key):
    """Makes a backup anew, with all of its checksums, that has a document less than it counts."""
    folder = next((node.data_dir / "backups").glob(f"*/{backup}"))
    store = open_store(None, node.data_dir)
    reader = Reader(store, folder.parent.name, backup, key)
    manifest = await reader.open()
    stream = b"".join([piece async for piece in reader.get(DOCUMENTS)])
    at, starts = 0, []
    while at < len(stream):  # length, kind, body
        starts.append(at)
        at += 5 + int.from_bytes(stream[at : at + 4], "little")

    async def once(text):
        yield text

    writer = Writer(store, folder.parent.name, backup, reader.key)
    await writer.put(DOCUMENTS, once(stream[: starts[-2]] + stream[starts[-1] :]))
    manifest = msgspec.structs.replace(manifest, files={**manifest.files, **writer.files})
    manifest = msgspec.structs.replace(manifest, mac=mac(manifest, reader.key))
    await store.put(f"{writer.where}/{MANIFEST}", once(msgspec.json.encode(manifest)))


def test_documents_are_backed_up_and_restored_with_their_ids(node):
    project = api(node, "projects", "POST", {"name": "both", "flavor": "both"})
    docs = [
        {"_id": n, "text": f"document {n}", "deep": {"list": [n, None, 1.5]}} for n in range(40)
    ]
    assert wait_until(
        lambda: "insertedIds" in documents(node, project, "insertMany", {"docs": docs}), 30
    )
    before = documents(node, project, "find", {"filter": {}, "sort": {"_id": 1}})
    made = job(node, "projects/both/backups")
    assert job(node, f"backups/{made['backup']}/verify")["documents"] == 40
    assert documents(node, project, "deleteMany", {"filter": {"_id": {"$gt": 4}}})["deleted"] == 35
    documents(node, project, "insertOne", {"doc": {"_id": "later"}})
    assert "and 40 documents" in node.cli("backups", "restore", made["backup"], "--yes").stdout
    assert documents(node, project, "find", {"filter": {}, "sort": {"_id": 1}}) == before

    # One that lacks a document, with sums that fit: nothing of the project changes.
    documents(node, project, "insertOne", {"doc": {"_id": "later"}})
    node.cli("sql", "both", "-c", "create table later ()")
    key = Path(node.environment["ICHIBASE_BACKUP_KEY_FILE"]).read_text().strip()
    asyncio.run(without_the_last_document(node, made["backup"], key))
    done = node.cli("backups", "restore", made["backup"], "--yes", ok=False)
    assert (done.returncode, "differs from the backup" in done.stderr) == (1, True), done.stderr
    now = documents(node, project, "find", {"filter": {}, "sort": {"_id": 1}})
    assert len(now["docs"]) == 41
    node.cli("sql", "both", "-c", "table later")
    with MongoClient(node.project("both")["mongo_url"]) as client:
        assert client.get_default_database().list_collection_names() == ["things"]
    api(node, "projects/both?now=true", "DELETE")


def test_a_restore_ends_the_sessions_of_users(node):
    project = api(node, "projects", "POST", {"name": "people"})

    def auth(path, body):
        request = urllib.request.Request(
            f"{node.url}/auth/{path}", method="POST", data=json.dumps(body).encode(),
            headers={"host": f"people.localhost:{node.port}", "content-type": "application/json",
                     "apikey": project["anon_key"]},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    person = {"email": "ann@example.com", "password": "tangerine lamp 41"}
    assert auth("signup", person)[0] == 201
    early = auth("login", person)[1]
    made = job(node, "projects/people/backups")
    late = auth("login", person)[1]
    assert auth("signup", {**person, "email": "ben@example.com"})[0] == 201
    restored = job(node, f"backups/{made['backup']}/restore", {"keep_sessions": True})
    assert (restored["warnings"], restored["sessions"]) == ([], 0)
    assert wait_until(lambda: auth("refresh", {"refresh_token": early["refresh_token"]})[0] == 200)
    status, answer = auth("refresh", {"refresh_token": late["refresh_token"]})
    assert (status, answer["code"]) == (401, "invalid_refresh_token")
    restored = node.cli("backups", "restore", made["backup"], "--yes")
    assert "1 sessions of users were ended" in restored.stdout
    assert wait_until(lambda: auth("refresh", {"refresh_token": early["refresh_token"]})[0] == 401)
    assert auth("login", {**person, "email": "ben@example.com"})[0] == 401
    assert auth("login", person)[0] == 200
    api(node, "projects/people?now=true", "DELETE")


PLACES = (
    "/postgres/pots", "/auth/me", "/functions/x", "/storage/x", "/mongo/v1/find/x", "/nothing",
    "/cdn/{}/bucket/x", "/realtime?token={key}",
)  # fmt: skip


def said(node, name, path, project):
    """The answer at a project's host, all but what differs from one to the next."""
    asked = path.format(name, key=project["anon_key"])
    headers = [f"Host: {name}.localhost", f"Authorization: Bearer {project['anon_key']}",
               f"apikey: {project['anon_key']}"]  # fmt: skip
    if "token" in path:
        headers += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]  # fmt: skip
    else:
        headers += ["Connection: close"]
    answer = b""
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as peer:
        peer.sendall("\r\n".join([f"GET {asked} HTTP/1.1", *headers, "", ""]).encode())
        while piece := peer.recv(4096):
            answer += piece
    lines = answer.split(b"\r\n")
    assert lines[0].endswith(b"404 Not Found")
    return sorted(one for one in lines if not one.startswith((b"date:", b"x-request-id:")))


def test_a_deleted_project_comes_back_and_goes_for_good(node, project):
    assert "undelete kitchen" in node.cli("projects", "delete", "kitchen", "--yes").stdout
    assert wait_until(lambda: get(node, project)[0] == 404)
    for path in PLACES:  # nobody learns that it was there
        assert said(node, "kitchen", path, project) == said(node, "gardens", path, project), path
    node.cli("projects", "undelete", "kitchen")
    assert wait_until(lambda: get(node, project)[0] == 200)
    node.cli("projects", "suspend", "kitchen", "--reason", "unpaid")
    assert wait_until(lambda: get(node, project)[0] == 403)
    node.cli("projects", "resume", "kitchen")
    node.cli("projects", "change", "kitchen", "--tier", "pro")
    assert wait_until(lambda: get(node, project)[0] == 200)
    assert node.project("kitchen")["tier"] == "pro"
    node.cli("projects", "delete", "kitchen", "--yes", "--now")
    assert state(node) is None
