"""The running document servers, one process a project: started when somebody holds one, ended some
time after the last has let go.

A process of its own gives a project its own lock, interpreter, cache, memory and share of the
processors; and what ends it, ends nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

from server.base import processor
from server.base.ports import PortTakenError, free_port
from server.mongo import embedded
from server.mongo.folders import DATABASE, NEXT, Folders, rotate, shrink
from server.mongo.lease import Share
from server.mongo.zygote import Zygote, ZygoteError

IDLE_SECONDS = 30.0  # without a holder
SWEEP_SECONDS = 5.0
START_SECONDS = 120.0  # with the recovery of what a killed one left
STOP_SECONDS = 10.0
POLL = 0.003  # seconds between looks at one that starts
KNOCK = 0.02  # the same at one that ends
LOST = 8  # connections that one takes which should have ended
PORTS = 32_000, 32_768  # between those and the ephemeral ones
ROOM_SECONDS, ROOM_POLL = 4.0, 0.05  # for a place to become free, and between questions
TRIES = 3  # somebody else may take the port meanwhile
CACHE, SMALL_CACHE = "256M", "64M"
EACH = 64 << 20  # bytes of memory that a server is counted with


class InstanceError(RuntimeError):
    """code: missing, full or failed."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Instance:
    """A server that runs or starts. holders: those who may use it."""

    def __init__(self, database: str, port: int, pid: int) -> None:
        self.database = database
        self.port = port
        self.pid = pid
        self.holders = 0
        self.idle_since = time.monotonic()
        self.ended = asyncio.Event()
        self.on_end: set[Callable[[], None]] = set()  # of its holders
        self.on_need: set[Callable[[], None]] = set()  # the same, when somebody needs its place


class Instances:
    """log: of what starts them, each has its own. most: servers at once, 0 for half of the
    machine's memory."""

    def __init__(
        self, folders: Folders, log: int, most: int = 0, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self.folders = folders
        self.most = most or fitting()
        self.idle_seconds = idle_seconds
        self.zygote = Zygote(log, self._ended)
        self.running: dict[str, Instance] = {}
        self.shares: dict[str, Share] = {}
        self.used: set[str] = set()  # databases held since somebody last asked
        self._by_pid: dict[int, Instance] = {}
        self._early: dict[int, int] = {}  # statuses of those that ended before they were known
        # As long as somebody has one, or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._leaving: dict[str, asyncio.Event] = {}  # servers that end, by database
        self._unwanted: set[asyncio.Task[None]] = set()  # what ends those that nobody waits for
        self._starting = 0
        self._ports: set[int] = set()  # of those that run, start or end
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.zygote.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="idle servers")

    async def hold(
        self, database: str, share: Share | None = None, *, make: bool = False, look: bool = False
    ) -> Instance:
        """The project's server, which does not end until release(). make: its folder, if there is
        none. look: only to measure it. InstanceError."""
        if not DATABASE.match(database) or not (make or self.folders.there(database)):
            raise InstanceError("missing", "there is no such database")
        async with self._lock(database):
            await self._left(database)
            found = self.running.get(database)
            if found is None:
                if make:
                    try:
                        await asyncio.to_thread(self.folders.make, database)
                    except OSError as error:
                        raise InstanceError("failed", f"no folder can be made: {error}") from None
                if share is not None:
                    self.shares[database] = share
                found = await self._start(database, look)
            elif share is not None:
                self.weigh(database, share)
            found.holders += 1
            if not look:
                self.used.add(database)
            return found

    def release(self, instance: Instance) -> None:
        instance.holders -= 1
        instance.idle_since = time.monotonic()

    def weigh(self, database: str, share: Share) -> None:
        """Gives the project's server another share."""
        if self.shares.get(database, Share()) != share:
            self.shares[database] = share
            if database in self.running:
                self._apply(self.running[database].pid, share)

    def take_used(self) -> list[str]:
        """Databases in use since the last call."""
        found = self.used | {name for name, one in self.running.items() if one.holders}
        self.used = set()
        return sorted(found)

    async def end(self, database: str) -> None:
        """Ends the server now, whoever holds it; it is started again for the next who does."""
        async with self._lock(database):
            if found := self.running.get(database):
                await self._stop(found)
            await self._left(database)

    async def remove(self, database: str) -> None:
        """Ends the server and removes its files; done again, it does nothing."""
        if not self.folders.there(database):
            return
        async with self._lock(database):
            await self._left(database)
            found = self.running.get(database)
            if found is not None:
                await self._stop(found, kill=True)
            await asyncio.to_thread(self.folders.remove, database)
            self.shares.pop(database, None)
            self.used.discard(database)

    async def replace(self, database: str) -> None:
        """Puts what was made as the next of a project in the place of what it has; done again, it
        does nothing."""
        by = NEXT + database
        async with self._lock(by), self._lock(database):
            if not self.folders.there(by):
                return
            for name, kill in ((by, False), (database, True)):
                await self._left(name)
                if found := self.running.get(name):
                    await self._stop(found, kill=kill)
            await asyncio.to_thread(self.folders.replace, database, by)
            self.used.add(database)

    async def stop(self) -> None:
        """Ends all of them in order."""
        await asyncio.gather(*(self._stop(one) for one in list(self.running.values())))
        await asyncio.gather(*map(self._left, list(self._leaving)))
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.zygote.stop()

    def _lock(self, database: str) -> asyncio.Lock:
        lock = self._locks.get(database)
        if lock is None:
            lock = self._locks[database] = asyncio.Lock()
        return lock

    async def _start(self, database: str, look: bool) -> Instance:
        if not self.folders.there(database):  # it was removed meanwhile
            raise InstanceError("missing", "there is no such database")
        try:
            await self._make_room()
            self._starting += 1  # whoever waits for a place has none yet
            try:
                return await self._try_often(database)
            finally:
                self._starting -= 1
        except InstanceError:
            if look:  # another time then
                self.used.add(database)
            raise

    async def _try_often(self, database: str) -> Instance:
        for left in reversed(range(TRIES)):
            await self._left(database)
            try:
                return await self._try(database)
            except (ZygoteError, OSError) as error:
                raise InstanceError("failed", str(error)) from None
            except InstanceError:
                if not left:
                    raise
        raise AssertionError

    async def _try(self, database: str) -> Instance:
        folder = self.folders.of(database)
        share = self.shares.get(database, Share())
        log = folder / "mongo.log"
        full = share.weight >= processor.FULL
        rotate(log)
        port = self._free_port()
        argv = embedded.arguments(folder, port, cache=CACHE if full else SMALL_CACHE)
        forking = asyncio.get_running_loop().create_task(
            self._fork(database, port, argv, folder, log, share.memory)
        )
        deadline = time.monotonic() + START_SECONDS
        try:
            instance = await asyncio.shield(forking)
            while not await _listens(port):
                if instance.ended.is_set():
                    raise InstanceError("failed", f"the server of {database} ended; see {log}")
                if time.monotonic() > deadline:
                    raise InstanceError("failed", f"the server of {database} does not answer")
                await asyncio.sleep(POLL)
        except BaseException:
            self._give_up(database, forking)
            raise
        self.running[database] = instance
        self._apply(instance.pid, share)  # somebody waits for it until now
        return instance

    async def _fork(
        self, database: str, port: int, argv: list[str], folder: Path, log: Path, memory: int
    ) -> Instance:
        """To be waited for to its end: else nobody would know what has been started."""
        try:
            pid = await self.zygote.fork(argv, folder, log, memory)
        except BaseException:
            self._ports.discard(port)
            raise
        instance = self._by_pid[pid] = Instance(database, port, pid)
        if pid in self._early:
            self._ended(pid, self._early.pop(pid))
        return instance

    def _give_up(self, database: str, forking: asyncio.Task[Instance]) -> None:
        """Ends what nobody waits for any more as soon as it is known. Until it has ended, nobody
        else opens its files or gets its port."""
        left = self._leaving[database] = asyncio.Event()

        async def end() -> None:
            try:
                with contextlib.suppress(ZygoteError, OSError):
                    instance = await forking
                    os.kill(instance.pid, signal.SIGKILL)
                    await instance.ended.wait()
            finally:
                del self._leaving[database]
                left.set()

        task = asyncio.get_running_loop().create_task(end(), name="unwanted server")
        self._unwanted.add(task)
        task.add_done_callback(self._unwanted.discard)

    async def _make_room(self) -> None:
        """Ends the longest idle one where there are as many as may be, and asks for the places of
        those who hold one without using it."""
        deadline = time.monotonic() + ROOM_SECONDS
        while len(self.running) + self._starting >= self.most:
            idle = [one for one in self.running.values() if not one.holders]
            if idle:
                await self._stop(min(idle, key=lambda one: one.idle_since))
                continue
            if time.monotonic() > deadline:
                raise InstanceError("full", "there are as many document servers as may run")
            for one in self.running.values():
                for ask in list(one.on_need):
                    ask()
            await asyncio.sleep(ROOM_POLL)

    async def _stop(self, instance: Instance, *, kill: bool = False) -> None:
        database = instance.database
        if self.running.get(database) is not instance:
            return
        del self.running[database]
        left = self._leaving[database] = asyncio.Event()
        try:
            self._apply(instance.pid, Share())  # whoever needs its place waits
            await _end(instance, signal.SIGKILL if kill else signal.SIGTERM)
            await asyncio.to_thread(shrink, self.folders.of(database))
        finally:
            del self._leaving[database]
            left.set()

    async def _left(self, database: str) -> None:
        """Until nobody has the files open any more."""
        while database in self._leaving:
            await self._leaving[database].wait()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self.idle_seconds))
            limit = time.monotonic() - self.idle_seconds
            for one in list(self.running.values()):
                if one.holders or one.idle_since > limit:
                    continue
                async with self._lock(one.database):
                    if not one.holders and self.running.get(one.database) is one:
                        await self._stop(one)

    def _ended(self, pid: int, status: int) -> None:
        instance = self._by_pid.pop(pid, None)
        if instance is None:
            self._early[pid] = status
            return
        if self.running.get(instance.database) is instance:
            del self.running[instance.database]
            reason = f"by signal {-status}" if status < 0 else f"with status {status}"
            print(f"documents: the server of {instance.database} ended {reason}",
                  file=sys.stderr, flush=True)  # fmt: skip
        self._ports.discard(instance.port)
        instance.ended.set()
        for tell in list(instance.on_end):
            tell()

    def _free_port(self) -> int:
        """Kept for one server: another that starts at the same time would have its clients."""
        while (port := _port()) in self._ports:
            pass
        self._ports.add(port)
        return port

    @staticmethod
    def _apply(pid: int, share: Share) -> None:
        """Where the system lets us."""
        full = share.weight >= processor.FULL
        processor.arrange(pid, share.weight, processor.USUAL if full else processor.YIELDING)
        with contextlib.suppress(OSError, ValueError):
            bound = share.memory or resource.RLIM_INFINITY
            resource.prlimit(pid, resource.RLIMIT_DATA, (bound, resource.RLIM_INFINITY))


def fitting() -> int:
    """How many servers half of the machine's memory has room for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(4, memory // 2 // EACH)


async def _end(instance: Instance, number: int) -> None:
    """Until the process has ended."""
    deadline = time.monotonic() + STOP_SECONDS
    knocks = 0
    while not instance.ended.is_set():
        if late := time.monotonic() > deadline:
            number = signal.SIGKILL
        if late or knocks % LOST == 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(instance.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOCK):
                await instance.ended.wait()
                return
        # It waits for a connection before it sees that it is to end. As long as it takes them, a
        # thread that was just woken may have got the signal, which does not reach the right one.
        knocks = knocks + 1 if await _listens(instance.port) else 1


def _port() -> int:
    """Not one of those that a node keeps, and which may be free for a moment."""
    try:
        return free_port(*PORTS)
    except PortTakenError:
        return free_port()


async def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", port))
        except OSError:
            return False
    return True
