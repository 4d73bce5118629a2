"""Calls of edge functions from a worker: leases from the functions process, pooled connections.

The functions process owns the Deno processes; a worker asks it once where a function listens and
then talks to that Deno process directly. `of(context)` gives a worker's one Functions object.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from ichicore.errors import ApiError
from server.base import unix
from server.base.project import Project
from server.base.unixhttp import Answer, BadAnswer, Connection, PeerClosed, Pool

if TYPE_CHECKING:
    from server.base.context import WorkerContext

MAX_MESSAGE = 64 << 20
RETRY = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts to reach the functions process
SWEEP = 0.05  # seconds between looks at the calls in flight
COUNT_EVERY = 20  # sweeps between reports of how many calls there were
SLOW = 0.1  # seconds after which a call is told to the functions process, which charges it
CONNECT_TRIES = 100
TRIES = 3  # processes that a call is sent to which ended before they had read anything of it
RELEASE_AFTER = 5.0  # seconds without a call until a lease is given back
TRUSTED, SCHEDULE = "x-ichibase-internal", "x-ichibase-schedule"  # headers of a scheduled call
INTERNAL_ANSWER = 1 << 20  # bytes of an answer to a call from inside


def socket_path(data_dir: Path) -> Path:
    """Where the functions process of a node listens, for the node's own processes."""
    return data_dir / "run" / "functions.sock"


def unavailable() -> ApiError:
    return ApiError(
        503, "unavailable", "The functions process is starting; try again.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip


class Link(asyncio.Protocol):
    """Messages to and from the functions process: 4 bytes of length, then JSON. A call has an
    "id" that its answer repeats; a message without one is passed to `pushed`."""

    def __init__(
        self,
        path: Path,
        pushed: Callable[[dict[str, Any]], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.pushed = pushed
        self.lost = lost
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._transport: Any = None
        self._buffer = bytearray()
        self._connecting: asyncio.Task[None] | None = None

    async def call(self, op: str, seconds: float = 90.0, **fields: Any) -> dict[str, Any]:
        """The answer; the other side's refusal is raised as the ApiError it is."""
        if self._transport is None:
            await self._connect()
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"op": op, "id": number, **fields})
            found = await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise ApiError(504, "timeout", "The functions process did not answer.") from None
        finally:
            self._waiting.pop(number, None)
        refusal = found.get("error")
        if refusal is not None:
            raise ApiError(
                refusal["status"], refusal["code"], refusal["detail"],
                details=refusal.get("details"),
                headers=tuple((name, value) for name, value in refusal.get("headers", ())),
            )  # fmt: skip
        return found

    def tell(self, op: str, **fields: Any) -> None:
        """A message without an answer; dropped when the functions process is away."""
        if self._transport is not None:
            self._send({"op": op, **fields})

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, message: dict[str, Any]) -> None:
        self._transport.write(packed(message))

    async def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._try())
        connecting = self._connecting
        try:
            await asyncio.shield(connecting)
        finally:
            if connecting.done():
                self._connecting = None
        if self._transport is None:
            raise unavailable()

    async def _try(self) -> None:
        for pause in RETRY:
            try:
                await asyncio.get_running_loop().create_unix_connection(
                    lambda: self, sock=unix.connect(self.path)
                )
                return
            except OSError:
                await asyncio.sleep(pause)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(unavailable())
        if self.lost is not None:
            self.lost()

    def data_received(self, data: bytes) -> None:
        for message in unpacked(self._buffer, data):
            waiter = self._waiting.get(message.get("id", 0))
            if waiter is not None:
                if not waiter.done():
                    waiter.set_result(message)
            elif self.pushed is not None and "id" not in message:
                self.pushed(message)


def packed(message: dict[str, Any]) -> bytes:
    """A message as it goes over the socket."""
    raw = orjson.dumps(message, default=msgspec.to_builtins)
    return len(raw).to_bytes(4, "big") + raw


def unpacked(buffer: bytearray, data: bytes) -> list[dict[str, Any]]:
    """The messages that are whole with `data`; the rest stays in the buffer. ValueError for one
    that is too large."""
    buffer += data
    found = []
    at = 0
    while len(buffer) - at >= 4:
        size = int.from_bytes(buffer[at : at + 4], "big")
        if size > MAX_MESSAGE:
            raise ValueError("a message is too large")
        if len(buffer) - at - 4 < size:
            break
        found.append(orjson.loads(buffer[at + 4 : at + 4 + size]))
        at += 4 + size
    if at:
        del buffer[:at]
    return found


class Call:
    """One invocation in flight. give_up: called with the refusal when its time is over."""

    __slots__ = ("deadline", "failed", "give_up", "id", "lease", "number", "refusal", "started")

    def __init__(
        self, lease: Lease, id: str, number: int, seconds: float, give_up: Callable[[], object]
    ) -> None:
        self.lease = lease
        self.id = id  # what the caller may have chosen, and others too
        self.number = number
        self.started = monotonic()
        self.deadline = self.started + seconds
        self.give_up = give_up
        self.refusal: ApiError | None = None
        self.failed = False


class Lease:
    """Where a process of one version of a function listens. auth: key, user or none. others: the
    further processes of a busy function; they have none of their own. trusted: what the functions
    process sends with its own calls."""

    __slots__ = (
        "auth", "calls", "count", "done", "dropped", "last", "name", "others", "pool", "process",
        "project", "project_id", "told", "trusted", "version", "wall",
    )  # fmt: skip

    def __init__(self, project: Project, name: str, answer: dict[str, Any]) -> None:
        self.project = project
        self.project_id = project.id
        self.name = name
        self.process: str = answer["process"]
        self.version: int = answer["version"]
        self.auth: str = answer["auth"]
        self.trusted: str = answer["trusted"]
        self.pool = Pool(answer["socket"])
        self.wall = project.limits.function_wall_ms / 1000
        self.calls: dict[int, Call] = {}  # by their number in this worker
        self.told = False  # whether the functions process knows of slow calls
        self.count = [0, 0, 0.0]  # calls, those that failed, seconds since the last report
        self.done = 0  # calls since the last report
        self.last = monotonic()
        self.dropped = False  # no new calls
        self.others: list[Lease] = []

    def beside(self, told: dict[str, Any]) -> Lease:
        """The lease of a further process."""
        answer = {"version": self.version, "auth": self.auth, "trusted": self.trusted, **told}
        made = Lease(self.project, self.name, answer)
        self.others.append(made)
        return made

    def least(self) -> Lease:
        """Of all its processes the one with the fewest calls."""
        return min((self, *self.others), key=_calls)


def _calls(lease: Lease) -> int:
    return len(lease.calls)


def told_project(project: Project) -> dict[str, Any]:
    """What the functions process needs to know of a project."""
    limits = project.limits
    return {
        "id": project.id, "slug": project.slug, "url": project.url,
        "anon_key": project.anon_key, "service_key": project.service_key,
        "mongo": project.flavor != "postgres", "wall_ms": limits.function_wall_ms,
        "cpu_ms": limits.function_cpu_ms, "memory": limits.function_memory,
        "concurrency": limits.function_concurrency, "bundle": limits.function_bundle,
        "functions": limits.functions, "weight": limits.cpu_weight,
    }  # fmt: skip


class Functions:
    """The functions as one worker calls them."""

    def __init__(self, data_dir: Path) -> None:
        self.link = Link(socket_path(data_dir), self._pushed, self._link_lost)
        self.leases: dict[tuple[str, str], Lease] = {}
        self.in_flight: dict[str, int] = {}  # by project id
        self.granted: dict[str, int] = {}  # calls that this worker may have at once, by project id
        self._leasing: dict[tuple[str, str], asyncio.Task[Lease]] = {}
        self._draining: set[Lease] = set()
        self._numbers = itertools.count(1)
        self._name = os.getpid()
        self._sweeper: asyncio.Task[None] | None = None

    def find(self, project: Project, name: str) -> Lease | None:
        """The lease that is at hand."""
        lease = self.leases.get((project.id, name))
        if lease is None or lease.project is not project:
            return None
        return lease.least() if lease.others else lease

    async def lease(self, project: Project, name: str) -> Lease:
        """Where the function listens, its process started when there is none. ApiError 404
        function_not_found, 502 function_load_failed, 503."""
        key = (project.id, name)
        known = self.leases.get(key)
        if known is not None and known.project is not project:
            self._drop(known)
        task = self._leasing.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(project, name))
            self._leasing[key] = task
            task.add_done_callback(lambda _: self._leasing.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, project: Project, name: str) -> Lease:
        answer = await self.link.call("lease", project=told_project(project), name=name)
        lease = Lease(project, name, answer)
        for other in answer["others"]:
            lease.beside(other)
        before = self.leases.get((project.id, name))
        if before is not None:
            self._drop(before)
        self.leases[project.id, name] = lease
        if self._sweeper is None:
            self._sweeper = asyncio.ensure_future(self._sweep())
        return lease

    async def room(self, lease: Lease) -> None:
        """Asks for more of the calls that the project may have at once, over all workers;
        ApiError 429 when there are no more."""
        project_id, limit = lease.project_id, lease.project.limits.function_concurrency
        answer = await self.link.call("slots", project=project_id, limit=limit, seconds=5.0)
        self.granted[project_id] = self.granted.get(project_id, 0) + answer["granted"]
        if self.full(lease):
            raise ApiError(
                429, "function_concurrency",
                f"The project has {limit} invocations in flight, as many as it may.",
                headers=(("retry-after", "1"),),
            )  # fmt: skip

    def full(self, lease: Lease) -> bool:
        """Whether room() must be asked before another call may begin."""
        project_id = lease.project_id
        return self.in_flight.get(project_id, 0) >= self.granted.get(project_id, 0)

    def begin(self, lease: Lease, id: str, seconds: float, give_up: Callable[[], object]) -> Call:
        """Counts a call, for which there is room."""
        flying = self.in_flight
        project_id = lease.project_id
        count = flying.get(project_id, 0)
        flying[project_id] = count + 1
        number = next(self._numbers)
        call = lease.calls[number] = Call(lease, id, number, seconds, give_up)
        return call

    def end(self, call: Call, taken: bool = True) -> None:
        """taken: False for a call that the process has not had."""
        lease = call.lease
        if lease.calls.pop(call.number, None) is None:
            return
        lease.last = now = monotonic()
        if taken:
            lease.done += 1
            count = lease.count
            count[0] += 1
            count[1] += call.failed
            count[2] += now - call.started
        left = self.in_flight[lease.project_id] - 1
        if left:
            self.in_flight[lease.project_id] = left
        else:
            del self.in_flight[lease.project_id]
        if lease.dropped and not lease.calls:
            self._give_back(lease)

    async def connection(self, lease: Lease) -> Connection:
        """A new connection to the function's process. PeerClosed when it has ended."""
        for _ in range(CONNECT_TRIES):
            try:
                return await lease.pool.connect()
            except BlockingIOError:  # it is busy: as many wait to be taken in as may
                await asyncio.sleep(0.01)
            except OSError:
                break
        raise PeerClosed(False, taken=False)

    async def send(self, lease: Lease, request: bytes, head_only: bool = False) -> Answer:
        """The answer to a request that is here as a whole. A free connection that the process has
        just closed is no failure while it is there: the request goes over a new one. PeerClosed
        when it has ended."""
        taken = False
        connection = lease.pool.idle()
        if connection is not None:
            try:
                return await _answered(connection, request, head_only)
            except PeerClosed as error:
                if error.begun:
                    raise
                taken = error.taken
        try:
            connection = await self.connection(lease)
        except PeerClosed:
            raise PeerClosed(False, taken) from None
        return await _answered(connection, request, head_only)

    async def why_ended(self, lease: Lease) -> ApiError:
        """What to tell the caller whose process is gone."""
        self._drop(lease)
        try:
            answer = await self.link.call("ended", process=lease.process, seconds=2.0)
        except ApiError as error:
            return error
        return ApiError(answer["status"], answer["code"], answer["detail"])

    async def call_internal(self, project: Project, name: str, body: bytes) -> bytes:
        """Posts JSON to a function of the project, also to one that no URL reaches, and gives the
        body of its answer. ApiError when there is no such function, when it fails or takes too
        long, and 502 function_error when its answer is not a 2xx."""
        for _ in range(TRIES):
            lease = self.find(project, name) or await self.lease(project, name)
            try:
                return await self._call_once(lease, name, body)
            except PeerClosed as error:
                refusal = await self.why_ended(lease)
                if error.taken:
                    break
        raise refusal

    async def _call_once(self, lease: Lease, name: str, body: bytes) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        if self.full(lease):
            await self.room(lease)
        number = f"internal-{next(self._numbers)}"
        call = self.begin(lease, number, lease.wall, task.cancel)
        head = (
            f"POST /functions/{name} HTTP/1.1\r\nhost: internal\r\ncontent-type: application/json"
            f"\r\nx-request-id: {call.id}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        try:
            answer = await self.send(lease, head + body)
            found = answer.body if answer.body is not None else await _whole(answer)
        except BadAnswer:
            raise ApiError(502, "function_error", f"The function {name} gave no answer.") from None
        except asyncio.CancelledError:
            if call.refusal is None:
                raise
            if (current := asyncio.current_task()) is not None:
                current.uncancel()
            raise call.refusal from None
        finally:
            self.end(call)
        if not 200 <= answer.status <= 299:
            call.failed = True
            raise ApiError(502, "function_error", f"The function {name} answered {answer.status}.")
        return found

    # Time and the functions process

    async def _sweep(self) -> None:
        """Ends calls whose time is over, reports slow ones, gives back what is not used."""
        looks = 0
        while True:
            await asyncio.sleep(SWEEP)
            looks += 1
            if looks % COUNT_EVERY == 0:
                for lease in self._all():
                    self._tell_count(lease)
            now = monotonic()
            slow: dict[str, dict[str, Any]] = {}
            for lease in [*self._all(), *self._draining]:
                if lease.calls or lease.told:
                    self._look(lease, now, slow)
                elif now - lease.last > RELEASE_AFTER and not lease.dropped:
                    self._drop(lease)
            if slow:
                self.link.tell("slow", processes=slow)

    def _all(self) -> list[Lease]:
        """Those that take calls."""
        found = list(self.leases.values())
        for lease in list(found):
            found += lease.others
        return found

    def _look(self, lease: Lease, now: float, slow: dict[str, dict[str, Any]]) -> None:
        ages = {}
        for call in list(lease.calls.values()):
            age = now - call.started
            if age > SLOW:
                ages[f"{self._name}.{call.number}"] = round(age, 3)
            if now > call.deadline and call.refusal is None:
                call.refusal = ApiError(
                    504, "function_timeout",
                    f"The function {lease.name} took longer than {lease.wall:g} s.",
                )  # fmt: skip
                self.link.tell("expired", process=lease.process, call=call.id, seconds=age)
                call.give_up()
        if ages or lease.told:  # also once when there are none any more
            slow[lease.process] = {"calls": ages, "done": lease.done}
        lease.told = bool(ages)
        lease.done = 0

    def _drop(self, lease: Lease) -> None:
        """No new calls; given back once the last one has ended. A first one takes the others with
        it: the next call asks anew which there are."""
        if lease.dropped:
            return
        lease.dropped = True
        key = (lease.project_id, lease.name)
        first = self.leases.get(key)
        if first is lease:
            del self.leases[key]
        elif first is not None and lease in first.others:
            first.others.remove(lease)
        others, lease.others = lease.others, []
        for other in others:
            self._drop(other)
        if lease.calls:
            self._draining.add(lease)
        else:
            self._give_back(lease)

    def _tell_count(self, lease: Lease) -> None:
        if lease.count[0]:
            self.link.tell("count", project=lease.project.slug, name=lease.name, count=lease.count)
            lease.count = [0, 0, 0.0]

    def _give_back(self, lease: Lease) -> None:
        self._tell_count(lease)
        self._draining.discard(lease)
        lease.pool.close()
        self.link.tell("release", process=lease.process)

    def _pushed(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "recall":
            self._give_back_room(message["project"])
            return
        if op == "more":
            self._beside(message)
            return
        for lease in self._all():
            if (op == "gone" and lease.process == message["process"]) or (
                op == "changed" and lease.project_id == message["project"]
            ):
                self._drop(lease)

    def _beside(self, message: dict[str, Any]) -> None:
        """A function that is called here has one more process."""
        first = self.leases.get((message["project"], message["name"]))
        if first is None or first.process != message["beside"]:
            self.link.tell("release", process=message["process"])
        else:
            first.beside({"process": message["process"], "socket": message["socket"]})

    def _give_back_room(self, project_id: str) -> None:
        spare = self.granted.get(project_id, 0) - self.in_flight.get(project_id, 0)
        if spare > 0:
            self.granted[project_id] -= spare
            self.link.tell("unslots", project=project_id, count=spare)

    def _link_lost(self) -> None:
        """The functions process ended, and its Deno processes with it."""
        self.granted.clear()
        for lease in list(self.leases.values()):
            self._drop(lease)

    def forget(self, project_id: str) -> None:
        """A project has changed or is gone: what was leased for it is asked for anew."""
        self._give_back_room(project_id)
        for key, lease in list(self.leases.items()):
            if key[0] == project_id:
                self._drop(lease)

    async def stop(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        for lease in list(self.leases.values()):
            self._drop(lease)
        self.link.close()


async def _whole(answer: Answer) -> bytes:
    assert answer.stream is not None
    parts, size = [], 0
    try:
        async for part in answer.stream:
            parts.append(part)
            size += len(part)
            if size > INTERNAL_ANSWER:
                raise ApiError(502, "function_error", "The function's answer is too large.")
    finally:
        await answer.stream.aclose()
    return b"".join(parts)


def of(context: WorkerContext) -> Functions:
    """The worker's one Functions object, made on first use."""
    found: Functions | None = context.functions
    if found is None:
        found = context.functions = Functions(context.config.data_dir)
        context.on_stop.append(found.stop)
    return found


async def _answered(connection: Connection, request: bytes, head_only: bool) -> Answer:
    """The answer; a caller that gives up closes the connection, which tells the function."""
    try:
        return await connection.request(request, head_only)
    except asyncio.CancelledError:
        connection.close()
        raise


async def call_internal(context: WorkerContext, project: Project, name: str, body: bytes) -> bytes:
    """Functions.call_internal of the worker's own."""
    return await of(context).call_internal(project, name, body)
