"""What holds a function's process besides Deno's permissions: account, limits, filter, namespaces.

Probed once at start: what the machine does not allow is left out and named in `Confinement.lines`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from server.base import processor
from server.functions import landlock
from server.functions.cgroups import Cgroups
from server.functions.seccomp import Filter, program

FIRST_UID = 2_000_000_000  # accounts without an entry anywhere, one for each process
UIDS_OF_A_NODE = 4_000
NODES = 1_000
V8_RESERVED = 512 << 20  # RLIMIT_DATA counts V8's reserved code range as well
THREADS = 128
OPEN_FILES = 1024
PR_SET_PDEATHSIG = 1
SIGKILL = 9
SOCKET_PATH = 107  # bytes in sockaddr_un, without the final zero
LIBRARIES = ("/usr", "/lib", "/lib64", "/bin", "/etc/ssl", "/etc/ca-certificates", "/etc/pki",
             "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/localtime")  # fmt: skip

RUNTIME = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")


class ConfineError(RuntimeError):
    """Functions cannot be run here; the text says why."""


def deno_binary() -> Path:
    """The program of the deno package, else one that is installed otherwise."""
    with contextlib.suppress(PackageNotFoundError):
        for entry in files("deno") or ():
            if entry.name == "deno" and entry.parent.name == "bin":
                path = Path(str(entry.locate())).resolve()
                if path.exists():
                    return path
    found = shutil.which("deno")
    if found is None:
        raise ConfineError("the deno package is not installed")
    return Path(found).resolve()


class Confinement:
    """Of one node. base: folder that function processes can reach, closed to listing."""

    def __init__(self, data_dir: Path, *, namespaces: bool = True) -> None:
        digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()
        self.root = os.geteuid() == 0
        self.base = _base(data_dir, digest[:12], self.root)
        self.lines: list[str] = []
        self.first_uid = FIRST_UID + int(digest[:8], 16) % NODES * UIDS_OF_A_NODE
        self._used: set[int] = set()
        self._next = 0
        self.own_uid = self.root and self._can_change_account()
        steps = program()
        self.filter = Filter(steps) if steps is not None else None
        if self.filter is not None and not _works(self.filter.install):
            self.filter = None
        self.cgroups = Cgroups(digest[:12]) if self.root else None
        if self.cgroups is not None and not self.cgroups.usable:
            self.cgroups = None
        self.deno = deno_binary()
        if self.own_uid and not reachable(self.deno):
            self.deno = self._copied(self.deno)
        self.bwrap = self._find_bwrap() if namespaces else None
        self.landlock = self.bwrap is None and landlock.version() > 0
        self._describe()

    def build_folder(self, inside: Path) -> Path:
        """Where builds are made, on disk: in the folder `inside`, or where other accounts reach
        it without the help of namespaces."""
        if self.own_uid and self.bwrap is None:
            return Path("/var/tmp") / f"ichibase-build-{self.base.name}"  # noqa: S108
        return inside / "build"

    def take_uid(self) -> int | None:
        """An account that no living process has; None where processes keep the node's own."""
        if not self.own_uid:
            return None
        for _ in range(UIDS_OF_A_NODE):
            uid = self.first_uid + self._next
            self._next = (self._next + 1) % UIDS_OF_A_NODE
            if uid not in self._used:
                self._used.add(uid)
                return uid
        raise ConfineError("too many function processes")

    def give_back(self, uid: int | None) -> None:
        if uid is not None:
            self._used.discard(uid)

    def view(self, seen: list[Path], own: Path) -> landlock.View | None:
        """What a process may see where it has no namespaces for that: libraries, Deno, what is
        `seen` besides, and the folder that is its own. None where that cannot be held."""
        if not self.landlock:
            return None
        return landlock.View([*LIBRARIES, *RUNTIME, self.deno, *seen], [own])

    def before_exec(
        self, cpu_seconds: int, memory: int, view: landlock.View | None
    ) -> Callable[[], None]:
        """What a new process does between fork and exec. memory: bytes, bounded from outside
        too; this is the bound that holds when nobody watches."""
        libc = ctypes.CDLL(None, use_errno=True)
        install = self.filter.install if self.filter is not None and self.bwrap is None else None
        parent = os.getpid()
        limits = [
            (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_DATA, V8_RESERVED + memory), (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
        ]  # fmt: skip
        if self.own_uid and self.bwrap is None:  # elsewhere it would count the node's own threads
            limits.append((resource.RLIMIT_NPROC, THREADS))

        def confine() -> None:
            libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(SIGKILL))
            if os.getppid() != parent:
                os._exit(1)
            os.nice(processor.ASIDE)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
            for kind, value in limits:
                resource.setrlimit(kind, (value, value))
            if view is not None and not view.install():
                os._exit(1)
            if install is not None and not install():
                os._exit(1)

        return confine

    def seen(self, path: Path, place: Path, inside: str) -> Path:
        """A path in `place` as a process in namespaces sees it, where `place` is `inside`."""
        return Path(inside) / path.relative_to(place) if self.bwrap is not None else path

    def wrapped(
        self, command: list[str], place: Path, inside: str, uid: int | None, extra: list[str]
    ) -> list[str]:
        """The command inside namespaces of its own: it sees system libraries, Deno as /deno and
        one folder, `place` as `inside`; no other process and no file of the node. extra: further
        arguments of bubblewrap."""
        assert self.bwrap is not None
        arguments = [
            self.bwrap, "--unshare-ipc", "--unshare-uts", "--unshare-pid", "--as-pid-1",
            "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        ]  # fmt: skip
        if uid is not None:
            arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            arguments += ["--unshare-user"]
        # bubblewrap makes missing parents for its own account alone
        arguments += ["--proc", "/proc", "--dev", "/dev", "--perms", "0755", "--dir", "/etc"]
        for path in LIBRARIES:
            if os.path.islink(path) and path in ("/lib", "/lib64", "/bin"):
                arguments += ["--symlink", os.readlink(path), path]
            elif os.path.exists(path):
                arguments += ["--ro-bind", path, path]
        arguments += ["--ro-bind", str(self.deno), "/deno", "--bind", str(place), inside, *extra]
        arguments += ["--chdir", "/", "--"]
        if uid is not None:
            arguments += [
                "setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups",
                "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig", "KILL",
            ]  # fmt: skip
        return arguments + command

    @property
    def program(self) -> str:
        """Deno's path as the process sees it."""
        return "/deno" if self.bwrap is not None else str(self.deno)

    def _can_change_account(self) -> bool:
        uid = self.first_uid

        def change() -> bool:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return os.getuid() == uid

        return _works(change)

    def _find_bwrap(self) -> str | None:
        found = shutil.which("bwrap")
        needs = shutil.which("setpriv") if self.own_uid else "none"
        if found is None or needs is None or self.filter is None:
            return None
        command = [found, "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--ro-bind", "/", "/",
                   "--proc", "/proc", "--dev", "/dev"]  # fmt: skip
        if not self.own_uid:
            command.append("--unshare-user")
        try:
            done = subprocess.run([*command, "--", "true"], capture_output=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found if done.returncode == 0 else None

    def _copied(self, source: Path) -> Path:
        """A copy of the program at a place that other accounts reach."""
        found = source.stat()
        digest = hashlib.sha256(f"{source} {found.st_size} {found.st_mtime_ns}".encode())
        folder = Path("/var/tmp") / f"ichibase-deno-{digest.hexdigest()[:12]}"  # noqa: S108
        private_folder(folder, 0o755)
        target = folder / "deno"
        if not target.exists() or target.stat().st_size != found.st_size:
            partial = folder / f"deno.{os.getpid()}"
            shutil.copyfile(source, partial)
            partial.chmod(0o755)
            partial.replace(target)
        return target

    def _describe(self) -> None:
        def say(held: object, yes: str, no: str) -> None:
            self.lines.append(yes if held else f"NOT IN FORCE: {no}")

        self.lines.append("Deno permissions, resource limits and a watchdog for each process")
        say(
            self.own_uid,
            "an account of its own for each process",
            "processes run under the node's own account (start the node as root for others)",
        )
        say(
            self.filter,
            "a system call filter (no IPv6, no new processes, no tracing)",
            "no system call filter on this machine; IPv6 is open but for loopback",
        )
        say(
            self.bwrap,
            "namespaces of its own by bubblewrap (files, processes, IPC)",
            "no namespaces: bubblewrap (bwrap) is missing or not allowed here",
        )
        if self.bwrap is None:
            say(
                self.landlock,
                "no other files than its own, by Landlock",
                "no Landlock: a build can read what the node's account can",
            )
        if self.cgroups is None:
            say(False, "", "no cgroup: the memory control group cannot be written here")
        else:
            self.lines.append(f"a {self.cgroups.version} of its own (memory)")


def _base(data_dir: Path, digest: str, root: bool) -> Path:
    """Where sockets are: short enough for their paths, and reachable by other accounts."""
    inside = data_dir / "run" / "functions"
    if not root and len(os.fsencode(inside / "00000000" / "o")) <= SOCKET_PATH:
        private_folder(inside, 0o700)
        return inside
    parent = Path("/run") if root and os.access("/run", os.W_OK) else Path("/tmp")  # noqa: S108
    base = parent / f"ichibase-{os.geteuid()}-{digest}"
    private_folder(base, 0o711 if root else 0o700)
    return base


def private_folder(path: Path, mode: int) -> None:
    """Makes a folder that is ours; ConfineError when somebody else was there first."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfineError(f"{path} belongs to somebody else; remove it") from None
    path.chmod(mode)


def reachable(path: Path) -> bool:
    """Whether every account can run this program."""
    if not path.stat().st_mode & stat.S_IXOTH:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)


def _works(action: Callable[[], bool]) -> bool:
    """Whether it succeeds, tried in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if action() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
