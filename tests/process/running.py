"""An `ichibase serve` in a process of its own, for the tests of its life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import psycopg

from tests.ports import free_port

ROOT = Path(__file__).parents[2]


class RunningNode:
    """account: (uid, gid) that runs it. environment: variables besides the inherited ones."""

    root = ROOT

    def __init__(
        self, folder, *, data_dir=None, account=None, environment=None, python=sys.executable
    ):
        self.folder = folder
        self.python = python
        self.data_dir = data_dir or folder / "data"
        self.account = account
        self.port, self.admin_port, self.realtime_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ICHIBASE_")},
            "ICHIBASE_DATA_DIR": str(self.data_dir), "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder),
            "ICHIBASE_DEFAULT_FLAVOR": "postgres",  # tests of documents ask for more
            "ICHIBASE_ADMIN_PORT": str(self.admin_port),  # of every command that is not given one
            "ICHIBASE_REALTIME_PORT": str(self.realtime_port),
            "ICHIBASE_MONGO_PORT": str(free_port()),
            **(environment or {}),
        }  # fmt: skip
        self.log = folder / "serve.log"
        self.process = None

    def command(self, *arguments):
        """Popen arguments of a command line of this node."""
        given = {"env": self.environment, "cwd": self.folder}
        if self.account:
            given |= {"user": self.account[0], "group": self.account[1], "extra_groups": []}
        return {"args": [self.python, "-m", "server.cli.main", *arguments], **given}

    def launch(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                **self.command(
                    "serve", "--port", str(self.port), "--admin-port", str(self.admin_port)
                ),
                stdout=log,
                stderr=log,
            )

    def start(self):
        """Gives the seconds until both listeners answer."""
        began = time.monotonic()
        before = self.log.stat().st_size if self.log.exists() else 0
        self.launch()
        while time.monotonic() - began < 120:
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text())
            # a node that was killed may answer for a moment longer; this one says when it is up
            said = self.log.read_bytes()[before:]
            if b"is running at" in said and self.get("/readyz")[0] == 200:
                return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError("the node did not become ready")

    def get(self, path, headers=None, *, admin=False):
        """(status, body) of the public listener, or the admin listener; status 0 for none."""
        base = f"http://127.0.0.1:{self.admin_port}" if admin else self.url
        request = urllib.request.Request(base + path, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def cli(self, *arguments, ok=True, **options):
        done = subprocess.run(
            **self.command(*arguments), capture_output=True, text=True, timeout=120, **options
        )
        if ok:
            assert done.returncode == 0, done.stderr
        return done

    def sql(self, text):
        """Rows of the last statement, run as the owner of the default project."""
        return json.loads(self.cli("sql", "default", "-c", text, "--json").stdout)[-1]["rows"]

    def as_superuser(self, text):
        """Rows of a statement, run by the embedded server's superuser."""
        folder = self.data_dir / "postgres"
        login = f"host={folder / 'socket'} port={self.project_port()} user=postgres dbname=postgres"
        password = (folder / "superuser").read_text().strip()
        with psycopg.connect(f"{login} password={password}") as connection:
            return connection.execute(text).fetchall()

    def slots(self):
        """Names of the feeds' replication slots."""
        names = "select slot_name from pg_replication_slots where starts_with(slot_name, 'ichi_')"
        return [row[0] for row in self.as_superuser(names)]

    def project(self, name="default"):
        return json.loads(self.cli("status", "--project", name, "--json").stdout)

    def project_port(self):
        """Port of the embedded database, as it is kept."""
        return int((self.data_dir / "run" / "postgres_port").read_text())

    def process_of(self):
        return psutil.Process(self.process.pid)

    def postmaster(self):
        pid = (self.data_dir / "postgres/pgdata/postmaster.pid").read_text().split("\n")[0]
        return psutil.Process(int(pid))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self):
        """After a test, whatever became of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.end()
            assert self.process.returncode == 0


def wait_until(condition, seconds=60.0):
    """Whether it came true. Where the time is what is asserted, give the seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
