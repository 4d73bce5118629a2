"""One Deno process: started blank, assigned to one version of one function, ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import socket as sockets
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import orjson

from server.base import processor
from server.functions import network
from server.functions.confine import V8_RESERVED, Confinement
from server.functions.origin import ALIAS

FLAGS = ("--quiet", "--no-prompt", "--no-config", "--no-lock", "--no-remote", "--no-npm",
         "--cached-only", "--no-check")  # fmt: skip
BLANK_MEMORY = 1 << 30  # bound of a process that has no project yet
LIFETIME_CPU = 600  # seconds of processor time after which the kernel ends any process
GROUP_MARGIN = 96 << 20  # bytes: the program's own pages, which the group counts too
LINE = 64 << 10  # bytes of one line on the pipe
TAIL = 8 << 10  # bytes kept of standard error
INSIDE = "/cell"  # where a process in namespaces sees its folder
READ = 256 << 10  # bytes taken from a pipe in one turn
BUDGET = 512 << 10  # bytes taken between two looks: to read more would be at the others' cost

_numbers = itertools.count(1)


class Cell:
    """A process. told(cell, message): a message of boot.js; wrote(cell, text): plain output.

    state: blank, assigned, ready, retired or ended. reason: why it was killed. closed: the
    machine's own addresses that it cannot reach.
    """

    def __init__(
        self,
        confinement: Confinement,
        *,
        outbound: tuple[str, ...] | None = None,
        told: Callable[[Cell, dict[str, Any]], None],
        wrote: Callable[[Cell, str], None],
    ) -> None:
        self.name = f"{next(_numbers):08x}"
        self.confinement = confinement
        self.folder = confinement.base / self.name
        self.outbound = outbound
        self.closed = network.own_addresses()
        self.told = told
        self.wrote = wrote
        self.state = "starting"
        self.blank: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reason: str | None = None
        self.detail = ""
        self.started = monotonic()
        self.memory = BLANK_MEMORY
        self.tail = b""
        self._out = b""
        self._taken = 0  # bytes since the last look
        self._held: list[tuple[Any, Callable[[bytes], None]]] = []  # pipes that wait for the next
        self._skip = False  # the rest of a line that is too long
        self.uid = confinement.take_uid()
        self.pid = 0
        self.origin = self._listen()
        self.process = self._spawn()
        self._watch_pipes()

    @property
    def socket(self) -> str:
        return str(self.folder / "s")

    # Start

    def _listen(self) -> sockets.socket:
        """The folder, and the socket by which the function reaches its project."""
        self.folder.mkdir(mode=0o700)
        made = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK)
        made.bind(str(self.folder / "o"))
        made.listen(128)
        if self.uid is not None:
            os.chown(self.folder, self.uid, self.uid)
            os.chown(self.folder / "o", self.uid, self.uid)
        return made

    def _command(self) -> list[str]:
        confinement = self.confinement
        serve, origin, code = (
            str(confinement.seen(self.folder / part, self.folder, INSIDE))
            for part in ("s", "o", "f/index.js")
        )
        allowed = "--allow-net"
        if self.outbound is not None:
            own = [f"unix:{serve}", f"unix:{origin}", ALIAS, *self.outbound]
            allowed = f"--allow-net={','.join(own)}"
        return [
            confinement.program, "run", *FLAGS, allowed,
            f"--deny-net={network.denied(self.closed)}",
            f"--allow-read={serve},{origin},{code}", f"--allow-write={serve},{origin}",
            "/boot.js" if confinement.bwrap is not None else str(confinement.base / "boot.js"),
            serve, origin, code,
        ]  # fmt: skip

    def _spawn(self) -> subprocess.Popen[bytes]:
        confinement = self.confinement
        command = self._command()
        account: dict[str, Any] = {}
        passed: list[int] = []
        info = filter_fd = -1
        if confinement.bwrap is not None:
            info, told = os.pipe()
            assert confinement.filter is not None
            filter_fd = os.memfd_create("filter")
            os.write(filter_fd, confinement.filter.steps)
            os.lseek(filter_fd, 0, os.SEEK_SET)
            passed = [told, filter_fd]
            extra = ["--info-fd", str(told), "--seccomp", str(filter_fd), "--ro-bind",
                     str(confinement.base / "boot.js"), "/boot.js", "--ro-bind",
                     str(confinement.base / "deno-dir"), "/deno-dir"]  # fmt: skip
            command = confinement.wrapped(command, self.folder, INSIDE, self.uid, extra)
        elif self.uid is not None:
            account = {"user": self.uid, "group": self.uid, "extra_groups": []}
        base = confinement.base
        view = confinement.view([base / "boot.js", base / "deno-dir"], self.folder)
        cache = "/deno-dir" if confinement.bwrap is not None else confinement.base / "deno-dir"
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd="/", start_new_session=True, pass_fds=passed, bufsize=0,
                env={"DENO_DIR": str(cache), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1",
                     "DENO_TLS_CA_STORE": "mozilla,system", "PATH": "/usr/bin:/bin"},
                preexec_fn=confinement.before_exec(LIFETIME_CPU, BLANK_MEMORY, view), **account,
            )  # fmt: skip
        finally:
            for descriptor in passed:
                os.close(descriptor)
        self.pid = process.pid
        if info >= 0:
            self._learn_pid(info)
        elif confinement.cgroups is not None:
            self._group()
        return process

    def _learn_pid(self, info: int) -> None:
        """bubblewrap tells the id of the process inside as soon as it has made it."""
        loop = asyncio.get_running_loop()
        parts: list[bytes] = []

        def read() -> None:
            data = os.read(info, 4096)
            if data:  # it writes in pieces, and ends when nobody reads them
                parts.append(data)
                return
            loop.remove_reader(info)
            os.close(info)
            with contextlib.suppress(ValueError, KeyError):
                self.pid = int(json.loads(b"".join(parts))["child-pid"])
                if self.confinement.cgroups is not None:
                    self._group()

        loop.add_reader(info, read)

    def _group(self) -> None:
        with contextlib.suppress(OSError):
            assert self.confinement.cgroups is not None
            self.confinement.cgroups.add(self.name, self.pid, self.memory + GROUP_MARGIN)

    # Pipes

    def _watch_pipes(self) -> None:
        loop = asyncio.get_running_loop()
        for pipe, take in ((self.process.stdout, self._take_out), (self.process.stderr,
                                                                   self._take_error)):  # fmt: skip
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            loop.add_reader(pipe.fileno(), self._read, pipe, take)

    def _read(self, pipe: Any, take: Callable[[bytes], None]) -> None:
        try:
            data = os.read(pipe.fileno(), READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_pipe(pipe)
            return
        self._taken += len(data)
        if self._taken > BUDGET and self.state != "ended":
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            self._held.append((pipe, take))
        take(data)

    def read_on(self) -> None:
        """With each look: what the process writes is taken again, up to the next BUDGET."""
        self._taken = 0
        held, self._held = self._held, []
        for pipe, take in held:
            if not pipe.closed:
                asyncio.get_running_loop().add_reader(pipe.fileno(), self._read, pipe, take)

    @staticmethod
    def _close_pipe(pipe: Any) -> None:
        if pipe is not None and not pipe.closed:
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            pipe.close()

    def _take_out(self, data: bytes) -> None:
        lines = (self._out + data).split(b"\n")
        self._out = lines.pop()
        if self._skip and lines:
            lines.pop(0)
            self._skip = False
        for line in lines:
            self._line(line)
        if len(self._out) > LINE:
            if not self._skip:
                self._line(self._out[:LINE])
            self._out, self._skip = b"", True

    def _line(self, line: bytes) -> None:
        if line.startswith(b"\x1e"):
            try:
                message = orjson.loads(line[1:])
            except ValueError:
                message = None
            if isinstance(message, dict):
                if message.get("t") == "blank" and not self.blank.done():
                    self.state = "blank"
                    self.blank.set_result(None)
                else:
                    self.told(self, message)
                return
        self.wrote(self, line.decode("utf-8", "replace"))

    def _take_error(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL:]

    # Life

    async def assign(
        self, code: bytes, environment: dict[str, str], origin: str, memory: int
    ) -> None:
        """Makes the blank process one version of a function. The secrets go over the pipe."""
        self.state = "assigned"
        self.set_memory(memory)
        place = self.folder / "f"
        place.mkdir(mode=0o711)
        (place / "index.js").write_bytes(code)
        (place / "index.js").chmod(0o444)
        message = orjson.dumps(
            {"env": environment, "origin": origin, "process": b"process" in code}
        )
        data = memoryview(len(message).to_bytes(4, "big") + message)
        pipe = self.process.stdin
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        while data:
            try:
                data = data[os.write(pipe.fileno(), data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    def forget_code(self) -> None:
        """The module is loaded: its file is not needed any more."""
        shutil.rmtree(self.folder / "f", ignore_errors=True)

    def set_memory(self, memory: int) -> None:
        self.memory = memory
        with contextlib.suppress(OSError, ValueError):
            bound = V8_RESERVED + memory
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (bound, bound))
        if self.confinement.cgroups is not None:
            with contextlib.suppress(OSError):
                self.confinement.cgroups.resize(self.name, memory + GROUP_MARGIN)

    def weigh(self, weight: int) -> None:
        """Its share of the processors beside others, where the system lets us."""
        if weight < processor.FULL:
            for process in {self.process.pid, self.pid}:
                processor.arrange(process, weight, processor.YIELDING)

    def kill(self, reason: str, detail: str = "") -> None:
        """Ends it at once; the first reason given stays."""
        if self.reason is None:
            self.reason, self.detail = reason, detail
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with what is on its way to be inside
        if self.pid != self.process.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self.process.poll()

    def usage(self) -> tuple[float, int]:
        """(processor seconds, bytes of its own memory); zeros when it has ended."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open(f"/proc/{self.pid}/status", "rb") as file:
                status = file.read()
        except OSError:
            return 0.0, 0
        own = 0
        for line in status.splitlines():
            if line.startswith((b"RssAnon:", b"RssShmem:")):
                own += int(line.split()[1]) << 10
        return (int(fields[11]) + int(fields[12])) / TICKS, own

    def ended(self) -> None:
        """Takes in what is left on the pipes and gives back what it held."""
        self.state = "ended"
        for pipe in (self.process.stdout, self.process.stderr):
            for _ in range(16):
                if pipe is None or pipe.closed:
                    break
                self._read(pipe, self._take_out if pipe is self.process.stdout else
                           self._take_error)  # fmt: skip
            self._close_pipe(pipe)
        if self.process.stdin is not None:
            self.process.stdin.close()
        if not self.blank.done():
            self.blank.cancel()
        if self.confinement.cgroups is not None and self.reason is None:
            if self.confinement.cgroups.killed(self.name):
                self.reason = "memory"
        self.origin.close()
        if self.confinement.cgroups is not None:
            self.confinement.cgroups.remove(self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.confinement.give_back(self.uid)


TICKS = os.sysconf("SC_CLK_TCK")


def clear(base: Path) -> None:
    """Ends the processes and removes the folders of an earlier run that was killed."""
    mark = os.fsencode(base) + b"/"
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if any(word.startswith(mark) for word in words[1:]):
                os.kill(int(path.name), signal.SIGKILL)
    for path in base.iterdir():
        if len(path.name) == 8 and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
