"""The functions process: which Deno process serves what, from blank to ended.

Two projects never share a process. A process serves one version of one function with one set of
secrets; when any of that changes, another takes its place and it drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import signal
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import orjson

from ichicore.errors import ApiError
from server.base.metrics import Labels
from server.functions import ends, network
from server.functions.cells import Cell, clear
from server.functions.confine import ConfineError, Confinement, private_folder
from server.functions.crowds import Crowds
from server.functions.ends import named
from server.functions.journal import Journal, say
from server.functions.origin import Origin
from server.functions.running import IDLE_SECONDS, REASONS, Loop, Running, ToldProject
from server.functions.slots import Slots
from server.functions.store import Store, Version, not_found
from server.functions.vault import VaultError

METRICS_EVERY = 10  # looks
ADDRESSES_EVERY = 100
LOOK = 0.1  # seconds between looks at the processes
SPARES = 2  # blank processes kept ready
WARM_SECONDS = 600.0  # the same, of functions called from inside
FILL_AFTER = 0.1  # seconds
WARM_UP_SECONDS = 1.0
BLANK_SECONDS = 30.0  # for a process to come up
LOAD_SECONDS = 10.0  # of a module that is tried out
REMEMBERED = 512  # ended processes whose reason is kept
STARTING = 8  # processes that come up at the same time


class Manager:
    """Of one node. listener: (host, port) of the public listener. gone(process): told to all
    workers when a process takes no new calls. more(worker, message): told to a worker when a
    function that it calls has one more process."""

    def __init__(
        self, data_dir: Path, store: Store, listener: tuple[str, int], *, spares: int = SPARES,
        idle_seconds: float = IDLE_SECONDS, namespaces: bool = True,
    ) -> None:  # fmt: skip
        self.store = store
        self.listener = listener
        self.spares_wanted = spares
        self.idle_seconds = idle_seconds
        self.journal = Journal(data_dir / "functions" / "logs", data_dir / "run" / "metrics")
        self.logs = self.journal.logs
        self.confinement = Confinement(data_dir, namespaces=namespaces)
        self.running: dict[str, Running] = {}  # by cell name
        self.current: dict[tuple[str, str], Running] = {}
        self.gone: Any = lambda process: None
        self.more: Any = lambda worker, message: None
        self.cells: dict[str, Cell] = {}
        self._spares: deque[Cell] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._starting: dict[tuple[str, str], asyncio.Task[Running]] = {}
        self.crowds = Crowds(self.current, self._another, self.retire, self._joined)
        self._coming_up = asyncio.Semaphore(STARTING)
        self._loops: dict[tuple[str, str], Loop] = {}
        self._ended: dict[str, str] = {}  # cell name > reason
        self._versions: dict[tuple[str, str], Version | None] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self.slots = Slots()
        self.journal.metrics.gauges.append(self._gauges)
        self._ticks = 0

    # Life of the manager

    async def start(self) -> None:
        base = self.confinement.base
        clear(base)
        private_folder(base / "deno-dir", 0o755)
        (base / "deno-dir").chmod(0o555)
        shutil.copyfile(Path(__file__).parent / "runtime" / "boot.js", base / "boot.js")
        (base / "boot.js").chmod(0o444)
        for line in self.confinement.lines:
            say(f"isolation: {line}")
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._watcher = loop.create_task(self._watch(), name="watch")
        if await self.store.any():
            self.fill()

    async def stop(self) -> None:
        self._stopping = True
        for task in (self._watcher, self._filling):
            if task is not None:
                task.cancel()
        for cell in list(self.cells.values()):
            cell.kill("stop")
        deadline = monotonic() + 5
        while self.cells and monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reap()
        self.logs.close()
        await self.store.close()
        if self.confinement.cgroups is not None:
            self.confinement.cgroups.close()
        shutil.rmtree(self.confinement.base, ignore_errors=True)

    def fill(self) -> None:
        """Brings the blank processes back to their number, in the background."""
        if self._stopping:
            return
        if self._filling is None or self._filling.done():
            self._filling = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        while len(self._spares) < self.spares_wanted and not self._stopping:
            try:
                cell = await self._blank(None)
            except (ApiError, ConfineError, OSError) as error:
                say(f"a function process could not be started: {error}")
                await asyncio.sleep(1.0)
                continue
            await _warm(cell)
            self._spares.append(cell)

    async def _blank(self, outbound: tuple[str, ...] | None) -> Cell:
        async with self._coming_up:
            cell = Cell(self.confinement, outbound=outbound, told=self._told, wrote=self._wrote)
            self.cells[cell.name] = cell
            try:
                async with asyncio.timeout(BLANK_SECONDS):
                    await cell.blank
            except (TimeoutError, asyncio.CancelledError) as error:
                cell.kill("crash")
                if isinstance(error, asyncio.CancelledError) and cell.poll() is None:
                    raise
                tail = cell.tail.decode("utf-8", "replace").strip()
                why = named(cell.poll() or 0) if cell.poll() is not None else "it takes too long"
                raise ApiError(
                    503, "unavailable", f"Deno did not start ({why}). {tail[-300:]}"
                ) from None
        return cell

    # Leases

    async def lease(self, worker: Any, told: dict[str, Any], name: str) -> dict[str, Any]:
        """Where the function listens."""
        project = msgspec.convert(told, ToldProject)
        version = await self._version(project.id, name)
        if version is None:
            raise not_found(name)
        running = await self._running(project, version)
        others = [one for one in self.crowds.beside(project.id, name) if one.able]
        for one in (running, *others):
            one.leases.add(worker)
        return {
            "process": running.cell.name, "socket": running.cell.socket,
            "version": version.version, "auth": version.auth,
            "others": [{"process": one.cell.name, "socket": one.cell.socket} for one in others],
        }  # fmt: skip

    async def _version(self, project_id: str, name: str) -> Version | None:
        key = (project_id, name)
        if key in self._versions:
            return self._versions[key]
        found = await self.store.find(project_id, name)
        if found is not None:  # names that are none are asked anew: there is no end of them
            self._versions[key] = found
        return found

    async def _running(self, project: ToldProject, version: Version) -> Running:
        place = (project.id, version.name)
        environment = await self._environment(project)
        key = hashlib.sha256(
            orjson.dumps([version.version, version.digest, version.outbound, project.memory,
                          project.cpu_ms, project.weight, sorted(environment.items())])
        ).hexdigest()  # fmt: skip
        current = self.current.get(place)
        if current is not None and current.key == key and current.able:
            return current
        task = self._starting.get(place)
        if task is None:
            loop = self._loops.get(place)
            if loop is not None and loop.until > monotonic():
                seconds = max(1, round(loop.until - monotonic()))
                raise ApiError(
                    502, "function_load_failed",
                    f"The function's process has ended again and again; the next attempt is in "
                    f"{seconds} s.", headers=(("retry-after", str(seconds)),),
                )  # fmt: skip
            task = asyncio.ensure_future(self._start(project, version, environment, key))
            self._starting[place] = task
            task.add_done_callback(lambda _: self._starting.pop(place, None))
        return await asyncio.shield(task)

    async def _environment(self, project: ToldProject) -> dict[str, str]:
        try:
            secrets = self._secrets.get(project.id)
            if secrets is None:
                secrets = self._secrets[project.id] = await self.store.secrets(project.id)
        except VaultError as error:
            say(f"project {project.slug}: {error}")
            raise ApiError(
                502, "function_load_failed", "The project's secrets cannot be read."
            ) from None
        found = {
            **secrets,
            "ICHIBASE_PROJECT_URL": project.url,
            "ICHIBASE_SERVICE_KEY": project.service_key,
            "ICHIBASE_ANON_KEY": project.anon_key,
        }
        if project.mongo:
            found["ICHIBASE_MONGO_URL"] = project.url
        return found

    async def _start(
        self, project: ToldProject, version: Version, environment: dict[str, str], key: str
    ) -> Running:
        """A process that takes the place of the one before, and of all beside that."""
        running = await self._loaded(project, version, environment, key)
        place = (project.id, version.name)
        before = self.current.get(place)
        self.current[place] = running
        if before is not None:
            self.retire(before)
        self.crowds.disband(place)
        return running

    async def _loaded(
        self, project: ToldProject, version: Version, environment: dict[str, str], key: str
    ) -> Running:
        code = await self.store.code(version)
        running = Running(await self._take(version.outbound), version, project, key)
        running.keep = WARM_SECONDS if version.name.startswith("_") else self.idle_seconds
        problem = await self._load(running, code, environment, project.wall_ms / 1000)
        if problem is not None:
            self.journal.line(running, "error", problem)
            running.cell.kill("load")
            self._loops.setdefault((project.id, version.name), Loop()).ended()
            raise ApiError(*REASONS["load"])
        running.cell.forget_code()
        running.cell.state = "ready"
        return running

    async def _load(
        self, running: Running, code: bytes, environment: dict[str, str], seconds: float
    ) -> str | None:
        """Makes a blank process one of the function; gives what went wrong."""
        cell, project = running.cell, running.project
        self.running[cell.name] = running
        cell.weigh(project.weight)
        running.origin = Origin(project.url, self.listener)
        await running.origin.start(cell.origin)
        try:
            await cell.assign(code, environment, project.url, project.memory)
            async with asyncio.timeout(seconds):
                return await running.loaded
        except TimeoutError:
            cell.kill("wall")
            return f"It took longer than {seconds:g} s to load."
        except OSError:
            cell.kill("crash")
            return "Its process ended while it was loading."

    async def try_out(
        self, told: dict[str, Any], name: str, outbound: tuple[str, ...] | None, code: bytes
    ) -> str | None:
        """Loads a module as a call would, in a process that serves nothing; gives what went
        wrong. No blank process is taken: those are for callers."""
        project = msgspec.convert(told, ToldProject)
        environment = await self._environment(project)
        version = Version(project.id, name, 0, "key", outbound, "")
        running = Running(await self._blank(outbound), version, project, "")
        try:
            seconds = min(LOAD_SECONDS, project.wall_ms / 1000)
            return await self._load(running, code, environment, seconds)
        finally:
            running.cell.kill("replaced")

    async def _another(self, first: Running) -> Running:
        """One more process of a busy function."""
        environment = await self._environment(first.project)
        return await self._loaded(first.project, first.version, environment, first.key)

    def _joined(self, first: Running, made: Running) -> None:
        message = {
            "op": "more", "project": first.project.id, "name": first.version.name,
            "beside": first.cell.name, "process": made.cell.name, "socket": made.cell.socket,
        }  # fmt: skip
        for worker in first.leases:
            made.leases.add(worker)
            self.more(worker, message)

    async def _take(self, outbound: tuple[str, ...] | None) -> Cell:
        while outbound is None and self._spares:
            cell = self._spares.popleft()
            # another comes up once this one serves: a start would take its time from the caller
            asyncio.get_running_loop().call_later(FILL_AFTER, self.fill)
            if cell.state == "blank" and cell.poll() is None:
                return cell
        if outbound is None:
            self.fill()
        return await self._blank(outbound)

    # Ends

    def retire(self, running: Running) -> None:
        """No new calls; it ends with the last lease, or after the longest time of a call."""
        if running.retired_at is not None:
            return
        running.retired_at = monotonic()
        running.cell.state = "retired"
        self.crowds.leave(running)
        self.gone(running.cell.name)

    def retire_all(self, project_id: str, name: str) -> None:
        """The processes of a function that is gone."""
        while (current := self.current.get((project_id, name))) is not None:
            self.retire(current)

    def release(self, worker: Any, process: str) -> None:
        running = self.running.get(process)
        if running is None:
            return
        running.leases.discard(worker)
        running.charge.report(worker, set(), 0)
        if not running.leases:
            running.idle_since = monotonic()

    def worker_gone(self, worker: Any) -> None:
        self.slots.forget(worker)
        for running in self.running.values():
            if worker in running.leases:
                self.release(worker, running.cell.name)

    def expired(self, process: str, call: str, seconds: float) -> None:
        """A worker has given up waiting for a call."""
        running = self.running.get(process)
        if running is None or running.cell.state == "ended":
            return
        self.journal.line(
            running, "error",
            f"stopped (wall): the invocation took longer than {running.project.wall_ms / 1000:g} s;"
            " the process is replaced", call,
        )  # fmt: skip
        self.journal.ended(running, "wall")
        running.cell.reason, running.cell.detail = "wall", ""
        self.retire(running)

    async def why_ended(self, process: str) -> dict[str, Any]:
        """Status, code and detail for the callers of a process that is gone."""
        for _ in range(100):
            if process in self._ended or process not in self.running:
                break
            if self.running[process].cell.reason is not None:
                break
            await asyncio.sleep(0.01)
        reason = self._ended.get(process)
        if reason is None and process in self.running:
            reason = self.running[process].cell.reason
        status, code, detail = REASONS.get(reason or "crash", REASONS["crash"])
        return {"status": status, "code": code, "detail": detail}

    def _reap(self) -> None:
        for cell in list(self.cells.values()):
            code = cell.poll()
            if code is not None:
                self._cell_ended(cell, code)

    def _cell_ended(self, cell: Cell, code: int) -> None:
        del self.cells[cell.name]
        running = self.running.pop(cell.name, None)
        if running is not None and running.origin is not None:
            running.origin.close()  # before its descriptor is closed and used for something else
        cell.ended()
        if running is None:
            if cell in self._spares:
                self._spares.remove(cell)
                self.fill()
            return
        tail = cell.tail.decode("utf-8", "replace")
        expected = running.retired_at is not None
        if cell.reason is None:
            cell.reason = ends.reason(tail, code)
            cell.detail = "" if cell.reason != "crash" else f"it ended with {named(code)}"
        self._ended[cell.name] = cell.reason
        while len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        place = (running.project.id, running.version.name)
        self.crowds.leave(running)
        self.gone(cell.name)
        if not running.loaded.done():
            running.loaded.set_result(ends.while_loading(cell.reason, tail, code))
            return
        if cell.reason in ("memory", "cpu", "crash") and not (expected and cell.reason == "crash"):
            detail = f": {cell.detail}" if cell.detail else ""
            self.journal.line(running, "error", f"ended ({cell.reason}){detail}")
            self.journal.ended(running, cell.reason)
            if cell.reason == "crash":  # what a single call can bring about holds up no other
                self._loops.setdefault(place, Loop()).ended()

    # What processes tell

    def _told(self, cell: Cell, message: dict[str, Any]) -> None:
        running = self.running.get(cell.name)
        if running is None:
            return
        kind = message.get("t")
        if kind == "log":
            if running.version.version:
                self.journal.logged(running, message)
        elif kind == "background":
            running.background = bool(message.get("n"))
            running.idle_since = monotonic()
        elif running.loaded.done():
            return
        elif kind == "ready":
            running.loaded.set_result(None)
        elif kind == "failed":
            running.loaded.set_result(str(message.get("x", ""))[:16_384] or "It failed to load.")

    def _wrote(self, cell: Cell, text: str) -> None:
        running = self.running.get(cell.name)
        if running is not None and running.version.version:
            self.journal.wrote(running, text)

    def _gauges(self) -> list[tuple[str, Labels, float]]:
        return self.journal.gauges(len(self._spares), list(self.running.values()))

    # The watchdog

    def report(self, worker: Any, processes: dict[str, Any]) -> None:
        """Calls that a worker has had in flight for a while."""
        for name, told in processes.items():
            running = self.running.get(name)
            if running is not None:
                running.charge.report(worker, set(told["calls"]), told["done"])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._ticks += 1
            if self._ticks % METRICS_EVERY == 0:
                if self.confinement.cgroups is not None:
                    self.confinement.cgroups.sweep()
                with contextlib.suppress(OSError):
                    self.journal.file.write()
            if self._ticks % ADDRESSES_EVERY == 0:
                self._close_addresses()
            try:
                self._look()
            except Exception as error:  # one process must not end the watch over all
                say(f"the watchdog failed: {error!r}")

    def _close_addresses(self) -> None:
        """Replaces the processes from before the machine got an address that must be closed."""
        now = set(network.own_addresses())
        for cell in list(self.cells.values()):
            if now <= set(cell.closed):
                continue
            running = self.running.get(cell.name)
            if running is not None:
                self.retire(running)
            elif cell in self._spares:
                cell.kill("replaced")

    def _look(self) -> None:
        now = monotonic()
        for cell in self.cells.values():
            cell.read_on()
        for running in list(self.running.values()):
            cell = running.cell
            idle = not running.leases and not running.background
            if idle and self._ticks % 5 and not running.charge.spent:
                continue
            wall = running.project.wall_ms / 1000
            cpu, memory = cell.usage()
            self.journal.used(running, running.looked(cpu, memory, now))
            verdict = running.charge.look(
                cpu, memory, cpu_limit=running.project.cpu_ms / 1000,
                memory_limit=running.project.memory, background=running.background,
                leased=bool(running.leases),
            )  # fmt: skip
            if verdict is not None:
                cell.kill(verdict.reason, verdict.detail)
            elif running.retired_at is not None:
                self._drain(running, now)
            elif not running.loaded.done():
                continue
            elif running.background and not running.leases and now - running.idle_since > wall:
                self._overdue(running, wall)
            elif running.worn(now) or (idle and now - running.idle_since > running.keep):
                self.retire(running)
        self.crowds.look(now)

    def _overdue(self, running: Running, seconds: float) -> None:
        """Work after the last answer has taken as long as an invocation may."""
        self.journal.line(
            running, "error",
            f"stopped (wall): the work after the answer took longer than {seconds:g} s",
        )  # fmt: skip
        self.journal.ended(running, "wall")
        running.cell.kill("wall")

    def _drain(self, running: Running, now: float) -> None:
        assert running.retired_at is not None
        waited = now - running.retired_at
        most = running.project.wall_ms / 1000 + 1
        if (not running.leases and not running.background) or waited > most:
            running.cell.kill(running.cell.reason or "replaced")

    # Changes

    def changed(self, project_id: str) -> None:
        """Something of the project was deployed, deleted or set anew."""
        self._secrets.pop(project_id, None)
        for key in [key for key in self._versions if key[0] == project_id]:
            del self._versions[key]
        for key in [key for key in self._loops if key[0] == project_id]:
            del self._loops[key]
        if not self._spares:
            self.fill()

    def project_deleted(self, project_id: str) -> None:
        self.changed(project_id)
        for running in list(self.running.values()):
            if running.project.id == project_id:
                running.cell.kill("replaced")
        self.logs.forget(project_id)

    def state(self) -> dict[str, Any]:
        """For people: what is in force, what runs."""
        return {
            "isolation": self.confinement.lines,
            "spares": len(self._spares),
            "processes": [
                {
                    "function": running.version.name, "version": running.version.version,
                    "project": running.project.slug, "state": running.cell.state,
                    "pid": running.cell.pid, "uid": running.cell.uid,
                    "memory": running.cell.usage()[1], "cpu": running.cell.usage()[0],
                    "leases": len(running.leases),
                }
                for running in self.running.values()
            ],
        }  # fmt: skip


async def _warm(cell: Cell) -> None:
    """Has it answer a request while nobody waits: the first one takes milliseconds more. There is
    no function yet, so boot.js answers."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(WARM_UP_SECONDS):
            reader, writer = await asyncio.open_unix_connection(cell.socket)
            try:
                writer.write(b"GET / HTTP/1.1\r\nhost: blank\r\nconnection: close\r\n\r\n")
                await reader.read()
            finally:
                writer.close()
