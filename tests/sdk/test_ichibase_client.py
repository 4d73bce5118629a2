"""The published client keeps up with a node whose processes and database are killed.

ICHIBASE_CLIENT names a checkout of the client (github.com/ichi-base/ichibase-client), which is in
no package registry. What it does is done in Python by tests/process/test_feed_kills.py in any case.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from server.functions.confine import deno_binary
from tests.process.running import RunningNode, wait_until

HERE = Path(__file__).parent
RULES = {
    "tables": {
        "log": {"rule": {"owner": "$auth.role"}},
        "marks": {"rule": True},
    },
    "channels": {"room:*": {"subscribe": True, "send": True, "presence": True}},
}


@pytest.fixture(scope="module")
def source():
    folder = os.environ.get("ICHIBASE_CLIENT")
    if not folder:
        pytest.skip("ICHIBASE_CLIENT names no checkout of the published client")
    return Path(folder) / "src" / "realtime.ts"


@pytest.fixture(scope="module")
def node(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    running = RunningNode(folder, environment={"ICHIBASE_WORKERS": "2"})
    try:
        running.start()
        running.sql(
            "create table log (id int primary key, owner text);"
            "create table marks (id int primary key)"
        )
        running.cli("settings", "default", "set", "realtime", json.dumps(RULES))
        yield running
    finally:
        running.end()


class Client(threading.Thread):
    """One process of the client."""

    def __init__(self, source, url, token, name):
        super().__init__(daemon=True)
        self.process = subprocess.Popen(
            [str(deno_binary()), "run", "--quiet", "--allow-all", str(HERE / "realtime.ts"),
             str(source), url, token, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.rows, self.marks, self.room = [], [], []
        self.start()

    def run(self):
        for line in self.process.stdout:
            told = json.loads(line)
            message = told["message"]
            if told["what"] == "log":
                self.rows.append((message["record"]["id"], message["record"]["owner"]))
            elif told["what"] == "mark":
                self.marks.append(message["record"]["id"])
            else:
                self.room.append(message)

    def heard(self, expected):
        """Whether these rows come, and no others."""
        return wait_until(lambda: self.rows == expected)

    def say(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.join(10)
        self.process.stdin.close()
        self.process.stdout.close()


def marked(clients, dsn):
    """Writes marks until every client hears one: all are subscribed again."""
    deadline = time.monotonic() + 60
    with psycopg.connect(dsn, autocommit=True) as connection:
        (last,) = connection.execute("select coalesce(max(id), 0) from marks").fetchone()
        heard = [len(client.marks) for client in clients]
        while any(len(client.marks) == n for client, n in zip(clients, heard, strict=True)):
            assert time.monotonic() < deadline, "the clients do not come back"
            last += 1
            connection.execute("insert into marks values (%s)", (last,))
            time.sleep(0.2)


def write(dsn, first, count):
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(first, first + count):
            owner = "anon" if number % 2 == 0 else "authenticated"
            connection.execute("insert into log values (%s, %s)", (number, owner))


def test_every_later_change_comes_exactly_once(node, source):
    project = node.project()
    dsn = project["database_url"]
    clients = [
        Client(source, url, project["anon_key"], name)
        for url, name in ((node.url, "one"), (f"http://127.0.0.1:{node.realtime_port}", "two"))
    ]
    one, two = clients

    def kill_postgres():
        postmaster = node.postmaster().pid
        node.postmaster().send_signal(signal.SIGKILL)
        assert wait_until(lambda: _up(dsn) and node.postmaster().pid != postmaster)

    def kill(name):
        for process in node.process_of().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    process.kill()

    try:
        marked(clients, dsn)
        assert any(m["type"] == "presence_state" for m in one.room)
        expected = []
        victims = (
            lambda: None, kill_postgres, lambda: kill("ichibase-rt"),
            lambda: kill("ichibase-worker"),
        )  # fmt: skip
        for turn, strike in enumerate(victims):
            strike()
            marked(clients, dsn)
            first = 1_000 * (turn + 1)
            write(dsn, first, 60)
            expected += [(number, "anon") for number in range(first, first + 60, 2)]
            for client in clients:
                assert client.heard(expected), (expected[-3:], client.rows)
        for client in clients:
            assert client.marks == sorted(set(client.marks)), "told twice"
        seen = len(two.room)
        one.say("still here")
        assert wait_until(lambda: any(
            m["type"] == "broadcast" and m["payload"] == "still here" for m in two.room[seen:]
        ))  # fmt: skip
        assert not any(m["type"] == "broadcast" and m["payload"] == "still here" for m in one.room)
        time.sleep(0.5)
        assert one.rows == two.rows == expected
    finally:
        for client in clients:
            client.end()


def _up(dsn):
    try:
        with psycopg.connect(dsn, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
