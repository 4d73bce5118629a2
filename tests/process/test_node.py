"""A node as its users run it: started, killed, started again, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import psycopg
import pytest

from tests.ports import free_port
from tests.process.running import RunningNode, wait_until
from tests.timing import slowness, within


@pytest.fixture(scope="module")
def module_node(module_folder):
    running = RunningNode(module_folder)
    try:
        running.start()
        running.sql(
            "create table kept (id int); insert into kept values (1), (2);"
            "create function wait(seconds float8) returns int language sql volatile as"
            " 'select 7 from pg_sleep(seconds)'; select 1"
        )
        yield running
    finally:
        running.end()


@pytest.fixture
def node(module_node):
    """It runs, whatever the test before has left of it."""
    if module_node.process.poll() is not None:
        module_node.start()
    return module_node


@pytest.fixture
def launch(folder):
    """Makes nodes in this folder, or another one, that are ended with the test."""
    made = []

    def make(at=folder, **options):
        made.append(RunningNode(at, **options))
        return made[-1]

    yield make
    for running in made:
        running.end()


def tree(running):
    """The node's processes, the database's and the workers included."""
    return [running.process_of(), *running.process_of().children(recursive=True)]


def all_gone(processes):
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def call_slowly(running, seconds):
    """A request in a thread, which the database has begun on and answers after `seconds`; gives
    (thread, answers)."""
    key = running.project()["anon_key"]
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(
            running.get(f"/postgres/rpc/wait?seconds={seconds}", {"authorization": f"Bearer {key}"})
        )
    )
    thread.start()
    waits = "select from pg_stat_activity where state = 'active' and wait_event = 'PgSleep'"
    assert wait_until(lambda: running.as_superuser(waits))
    return thread, answers


def test_status_prints_what_a_client_needs(node):
    found = json.loads(node.cli("status", "--json").stdout)
    assert set(found) == {"url", "cdn_url", "admin_url", "admin_token", "projects"}
    project = found["projects"][0]
    assert set(project) == {"name", "flavor", "tier", "url", "anon_key", "service_key",
                            "jwt_secret", "database_url", "mongo_url"}  # fmt: skip
    assert (project["name"], project["url"], project["mongo_url"]) == ("default", node.url, None)
    assert node.project() == project
    plain = node.cli("status").stdout
    assert project["service_key"] not in plain
    assert project["jwt_secret"] not in plain
    assert found["admin_token"] not in plain


def test_secrets_are_readable_by_the_account_alone(node):
    for path in (node.data_dir / "secrets", node.data_dir / "run"):
        assert path.stat().st_mode & 0o077 == 0
        for file in path.iterdir():
            assert file.is_dir() or file.stat().st_mode & 0o077 == 0, file


def test_a_second_node_on_the_same_folder_is_refused(node):
    done = node.cli("serve", "--port", str(free_port()), ok=False)
    assert done.returncode == 1
    assert "already runs" in done.stderr


def test_a_mistyped_project_command_or_setting_says_so(node):
    done = node.cli("status", "--project", "nope", ok=False)
    assert done.returncode == 1
    assert "project_not_found" in done.stderr
    assert node.cli("stauts", ok=False).returncode == 2
    node.environment["ICHIBASE_PROT"] = "1"
    done = node.cli("serve", ok=False)
    del node.environment["ICHIBASE_PROT"]
    assert (done.returncode, "did you mean port" in done.stderr) == (1, True)


def test_killed_it_leaves_no_process_and_loses_no_row(node):
    family = tree(node)
    assert len(family) >= 6
    node.kill()
    assert (
        node.start() < 10 * slowness()
    )  # at once, while the old database is still writing its checkpoint
    assert wait_until(lambda: all_gone(family))
    assert node.sql("select count(*) from kept") == [[2]]


def test_a_killed_worker_is_replaced(node):
    worker = next(p for p in tree(node) if p.name() == "ichibase-worker")
    worker.kill()
    assert wait_until(lambda: all_gone([worker]) and node.get("/readyz")[0] == 200)


def test_a_killed_listener_takes_its_workers_along_and_is_replaced(node):
    listener = next(p for p in tree(node) if p.name() == "ichibase-http")
    family = [listener, *listener.children(recursive=True)]
    assert len(family) > 1
    listener.kill()
    assert wait_until(lambda: all_gone(family))
    assert wait_until(lambda: node.get("/readyz")[0] == 200)


def test_a_killed_database_is_started_again(node):
    key = node.project()["anon_key"]
    old = node.postmaster()
    old.kill()
    headers = {"authorization": f"Bearer {key}"}
    path = "/postgres/kept?select=id"
    assert wait_until(lambda: not old.is_running() and node.get(path, headers)[0] == 200)
    assert node.sql("select count(*) from kept") == [[2]]


def test_without_its_database_it_runs_but_is_not_ready(node):
    keeper, database = node.process_of(), node.postmaster()
    keeper.suspend()  # it would start the database again
    try:
        database.kill()
        for admin in (False, True):
            assert wait_until(lambda admin=admin: node.get("/readyz", admin=admin)[0] == 503)
            told = json.loads(node.get("/readyz", admin=admin)[1])
            assert told["code"] == "unavailable"
            assert "database" in told["not_ready"]
            assert node.get("/healthz", admin=admin)[0] == 200
    finally:
        keeper.resume()
    for admin in (False, True):
        assert wait_until(lambda admin=admin: node.get("/readyz", admin=admin)[0] == 200)


def test_a_stop_lets_requests_finish(node):
    thread, answers = call_slowly(node, 1.0)
    node.stop()
    thread.join()
    assert answers == [(200, b"7")]


def test_a_second_interrupt_does_not_wait(node):
    thread, _ = call_slowly(node, 25)
    began = time.monotonic()
    node.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert node.process.poll() is None
    node.process.send_signal(signal.SIGINT)
    assert node.process.wait(20) == 0
    assert within(time.monotonic() - began, 8)
    thread.join(20)


def test_terminated_it_stops_with_code_zero_and_a_second_start_is_quick(node):
    family = tree(node)
    node.stop()
    assert all_gone(family)
    assert not (node.data_dir / "run" / "node.json").exists()
    done = node.cli("status", ok=False)
    assert (done.returncode, "ichibase serve" in done.stderr) == (1, True)
    assert within(node.start(), 3)


def test_left_lock_files_of_another_process_do_not_hinder(node):
    node.stop()
    folder = node.data_dir / "postgres"
    port = (node.data_dir / "run" / "postgres_port").read_text().strip()
    lines = [os.getpid(), folder / "pgdata", 1, port, folder / "socket", "localhost", "1 1", ""]
    text = "\n".join(str(line) for line in lines)
    (folder / "pgdata" / "postmaster.pid").write_text(text)
    (folder / "socket" / f".s.PGSQL.{port}.lock").write_text(text)
    (folder / "socket" / f".s.PGSQL.{port}").touch()
    node.start()
    assert node.sql("select count(*) from kept") == [[2]]


def test_a_taken_port_is_named_and_one_of_the_database_is_changed(node):
    node.stop()
    before = node.project_port()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", node.port))
        taken.listen()
        done = node.cli("serve", "--port", str(node.port), ok=False)
        assert done.returncode == 1
        assert f"127.0.0.1:{node.port} is in use" in done.stderr
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", before))
        taken.listen()
        node.start()
    assert node.project_port() != before
    with psycopg.connect(node.project()["database_url"]) as owner:
        assert owner.execute("select count(*) from kept").fetchone() == (2,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_while_starting_it_leaves_nothing_and_starts_again(launch, number):
    running = launch()
    for delay in (0.3, 0.7, 1.2):
        running.launch()
        time.sleep(delay)
        family = tree(running)
        running.process.send_signal(number)
        status = running.process.wait(40)
        if number == signal.SIGTERM and len(family) > 1:  # not while it still loads its modules
            assert status == 0
        assert wait_until(lambda family=family: all_gone(family))
    running.start()
    found = json.loads(running.cli("projects", "list", "--json").stdout)
    assert [project["name"] for project in found] == ["default"]
    running.stop()


def test_a_deep_data_folder_works(folder, launch):
    running = launch(data_dir=folder / ("d" * 90) / "data")
    running.start()
    assert running.sql("select 1") == [[1]]
    running.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets a folder that it alone may enter")
def test_root_runs_the_database_as_nobody_also_below_a_closed_folder(folder, launch):
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    running = launch(closed)
    running.start()
    try:
        assert running.postmaster().username() == "nobody"
        assert closed.stat().st_mode & 0o777 == 0o700
        running.sql("create table kept (id int); insert into kept values (1); select 1")
        family = tree(running)
        running.kill()
        assert within(running.start(), 10)
        assert wait_until(lambda: all_gone(family))
        assert running.sql("select count(*) from kept") == [[1]]
    finally:
        running.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_runs_everything_as_himself(folder, launch):
    python, path = interpreter_for_all()
    home = folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    running = launch(home, account=(65534, 65534), python=python)
    running.environment["PYTHONPATH"] = path
    running.start()
    try:
        assert {p.uids().real for p in tree(running)} == {65534}
        assert running.sql("select 1") == [[1]]
    finally:
        running.stop()


def interpreter_for_all():
    """(interpreter, PYTHONPATH) that another account can run, or the test is skipped."""
    path = os.pathsep.join([str(RunningNode.root), *(p for p in sys.path if "site-packages" in p)])
    for python in (sys.executable, "/usr/bin/python3"):
        probe = "import sys, server.cli.main, psycopg, granian; print(sys.version_info[:2])"
        try:
            done = subprocess.run(
                [python, "-c", probe], user=65534, group=65534, extra_groups=[], cwd="/",
                env={"PYTHONPATH": path}, capture_output=True, text=True,
            )  # fmt: skip
        except OSError:
            continue
        if done.stdout.strip() == str(sys.version_info[:2]):
            return python, path
    pytest.skip("no account but root can run this interpreter and read these packages")


def test_an_existing_server_is_used_instead(launch, postgres):
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute("create role keeper login superuser password 'pass word'")
    url = f"postgresql://keeper:pass%20word@127.0.0.1:{postgres.port}/postgres"
    running = launch(environment={"DATABASE_URL": url})
    running.start()
    running.sql("create table kept (id int); insert into kept values (1); select 1")
    assert f":{postgres.port}/" in running.project()["database_url"]
    assert not (running.data_dir / "postgres").exists()
    running.kill()
    running.start()
    assert running.sql("select count(*) from kept") == [[1]]
    running.stop()
    running.environment["DATABASE_URL"] = url.replace("pass%20word", "wrong")
    done = running.cli("serve", "--port", str(running.port), ok=False)
    assert done.returncode == 1
    assert "cannot log in to the database server" in done.stderr
    assert "wrong" not in done.stderr
