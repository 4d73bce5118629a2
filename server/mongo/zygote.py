"""The loaded document server that the projects' servers are forked from, seen from the manager."""

from __future__ import annotations

import asyncio
import itertools
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from server.base.lifeline import die_with_parent
from server.mongo import embedded

READY_SECONDS = 60.0
STACK = 2 << 20  # bytes of a thread's stack: what is reserved counts as the server's memory
# The first folder that a process opens has WiredTiger measure the clock for most of a second.
WARM = f"""
import tempfile, threading, wiredtiger
threading.stack_size({STACK})
with tempfile.TemporaryDirectory() as folder:
    wiredtiger.wiredtiger_open(folder, "create").close()
"""


class ZygoteError(RuntimeError):
    """No server can be started; the text says why."""


class Zygote:
    """log: where it writes. ended: called with the process id and the status of each server that
    ends."""

    def __init__(self, log: int, ended: Callable[[int, int], None]) -> None:
        self.log = log
        self.ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._alive: set[int] = set()
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Loads the program, unless it is."""
        async with self._starting:
            if self._reader is not None and not self._reader.done():
                return
            lifeline = die_with_parent()

            def prepare() -> None:
                hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
                resource.setrlimit(resource.RLIMIT_STACK, (STACK, hard))
                lifeline()

            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).with_name("forkserver.py")), embedded.PACKAGE,
                "--load", f"{embedded.PACKAGE}.cli", "--warm", WARM,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=self.log,
                start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip
            loop = asyncio.get_running_loop()
            self._ready = loop.create_future()
            self._reader = loop.create_task(self._read(self._process), name="forkserver")
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await asyncio.shield(self._ready)
            except TimeoutError:
                self._process.kill()
                raise ZygoteError("the document server is not loaded in time") from None

    async def fork(self, argv: list[str], folder: Path, log: Path, memory: int) -> int:
        """A server's process id. memory: bytes that it may have, 0 for any. ZygoteError. Whoever is
        cancelled meanwhile does not learn of what has been started."""
        await self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        wanted = {"id": number, "argv": argv, "folder": str(folder), "log": str(log),
                  "memory": memory}  # fmt: skip
        try:
            self._process.stdin.write(orjson.dumps(wanted) + b"\n")
            return await future
        except ConnectionError:
            raise ZygoteError("the loaded document server has ended") from None
        finally:
            self._asked.pop(number, None)

    async def stop(self) -> None:
        """Ends it, and with it every server that still runs."""
        if self._process is None or self._reader is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(5.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
        await asyncio.wait([self._reader])

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._take(orjson.loads(line))
        finally:
            await process.wait()
            gone = ZygoteError("the loaded document server has ended; see mongo.log")
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(gone)
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(gone)
            for pid in self._alive.copy():  # the kernel ends them with it
                self._end(pid, -9)

    def _take(self, told: dict[str, Any]) -> None:
        if "ready" in told and self._ready is not None:
            self._ready.set_result(None)
        elif "ended" in told:
            self._end(told["ended"], told["status"])
        elif "pid" in told:
            self._alive.add(told["pid"])
            future = self._asked.get(told["id"])
            if future is not None and not future.done():
                future.set_result(told["pid"])
        elif "failed" in told:
            future = self._asked.get(told["id"])
            if future is not None and not future.done():
                future.set_exception(ZygoteError(told["failed"]))

    def _end(self, pid: int, status: int) -> None:
        self._alive.discard(pid)
        self.ended(pid, status)
