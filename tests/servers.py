"""The PostgreSQL server of the tests: the embedded one, or another one's programs.

    ICHIBASE_TEST_POSTGRES=/usr/lib/postgresql/15/bin python -m pytest tests/server/realtime

runs them with the programs of that folder (postgres, initdb), of PostgreSQL 14 or newer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from server.node.embedded_pg import EmbeddedPostgres, EmbeddedPostgresError
from tests.ports import free_port

PROGRAMS = os.environ.get("ICHIBASE_TEST_POSTGRES", "")
OUTSIDE = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"


class OtherPostgres(EmbeddedPostgres):
    """Started as the embedded one, which is made with options that older ones do not know."""

    def _programs(self, account):
        return Path(PROGRAMS).resolve()

    def _initdb(self, programs, account):
        password = self.data_dir / "superuser"
        self._write_as(password, secrets.token_urlsafe(32), account)
        command = [
            str(programs / "initdb"), "-D", str(self._seen(self.pgdata)), "-U", "postgres",
            "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
            f"--pwfile={self._seen(password)}",
        ]  # fmt: skip
        process = self._launch(command, account, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, errors = process.communicate()
        if process.returncode:
            raise EmbeddedPostgresError(errors.decode(errors="replace")[-500:])


def server(folder, port, *, outside=False, **options):
    """A server that is not started yet. outside: one that somebody else runs, who takes every login
    by TCP."""
    made = (OtherPostgres if PROGRAMS else EmbeddedPostgres)(folder, port, **options)
    if outside:
        made.hba = OUTSIDE
    return made


@contextlib.contextmanager
def open_folder(prefix):
    """A folder that every account can reach, whatever pytest does to its own."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_server(*, outside=False, **options):
    """One in a folder of its own."""
    with open_folder("ichi-pg-") as folder:
        options = {"fsync": "off", **options}
        cluster = server(folder, free_port(), outside=outside, options=options)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
