"""A node as its users run it: started, killed, started again, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from server.node.embedded_pg import free_port


class RunningNode:
    def __init__(self, folder):
        self.folder = folder
        self.data_dir = folder / "data"
        self.environment = {**os.environ, "ICHIBASE_DATA_DIR": str(self.data_dir)}
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        with open(self.folder / "serve.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli.main", "serve", "--port", str(self.port),
                 "--admin-port", str(self.admin_port)],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        began = time.monotonic()
        while time.monotonic() - began < 60:
            if self.process.poll() is not None:
                raise AssertionError((self.folder / "serve.log").read_text())
            if self.get("/readyz")[0] == 200:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError("the node did not become ready")

    def get(self, path, headers=None):
        request = urllib.request.Request(self.url + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def cli(self, *arguments, ok=True):
        done = subprocess.run(
            [sys.executable, "-m", "server.cli.main", *arguments], env=self.environment,
            capture_output=True, text=True,
        )  # fmt: skip
        if ok:
            assert done.returncode == 0, done.stderr
        return done

    def family(self):
        mine = str(self.data_dir)
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            try:
                words = process.info["cmdline"] or []
                environment = process.info["environ"] or {}
            except psutil.Error:
                continue
            if any(mine in word for word in words) or (
                environment.get("ICHIBASE_NODE_FILE", "").startswith(mine)
            ):
                found.append(process)
        return found

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    running = RunningNode(folder)
    running.start()
    yield running
    running.stop()


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_status_prints_what_a_client_needs(node):
    found = json.loads(node.cli("status", "--json").stdout)
    assert set(found) == {"url", "cdn_url", "admin_url", "admin_token", "projects"}
    project = found["projects"][0]
    assert set(project) == {"name", "flavor", "tier", "url", "anon_key", "service_key",
                            "jwt_secret", "database_url", "mongo_url"}  # fmt: skip
    assert (project["name"], project["url"], project["mongo_url"]) == ("default", node.url, None)
    assert json.loads(node.cli("status", "--project", "default", "--json").stdout) == project
    plain = node.cli("status").stdout
    assert project["service_key"] not in plain
    assert project["jwt_secret"] not in plain
    assert found["admin_token"] not in plain


def test_a_second_node_on_the_same_folder_is_refused(node):
    done = node.cli("serve", "--port", str(free_port()), ok=False)
    assert done.returncode == 1
    assert "already runs" in done.stderr


def test_a_mistyped_project_or_command_says_so(node):
    done = node.cli("status", "--project", "nope", ok=False)
    assert done.returncode == 1
    assert "project_not_found" in done.stderr
    assert node.cli("stauts", ok=False).returncode == 2


def test_killed_it_leaves_no_process_and_loses_no_row(node):
    node.cli("sql", "default", "-c", "create table kept (id int); insert into kept values (1), (2)")
    assert len(node.family()) >= 3
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    assert wait_until(lambda: not node.family())
    assert node.start() < 10
    rows = json.loads(
        node.cli("sql", "default", "-c", "select count(*) from kept", "--json").stdout
    )
    assert rows[0]["rows"] == [[2]]


def test_a_killed_worker_is_replaced(node):
    name = "ichibase-worker"
    workers = [p for p in node.family() if p.name() == name]
    assert workers
    workers[0].kill()
    assert wait_until(lambda: node.get("/readyz")[0] == 200, 15)


def test_terminated_it_stops_with_code_zero_and_a_second_start_is_quick(node):
    node.stop()
    assert wait_until(lambda: not node.family())
    assert node.start() < 3
