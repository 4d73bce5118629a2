"""What the clients of the measured projects ask for, and how long they wait.

Each sends its requests at a steady rate, whatever becomes of them: a late answer delays no later
request, and its time counts from when it should have been sent. An answer that is an error, or none
within LATE, counts as LATE.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from tests.oracle.websocket import TEXT, frame, parse

CONNECTIONS = 16  # of one kind of request
LATE = 10.0  # seconds


@dataclass
class Asked:
    """Requests of one kind. name: of the figures. make: the bytes of the n-th one. rate: a second.
    told: a kind of figures besides, from the same moment until a socket hears of the n-th one."""

    name: str
    make: Callable[[int], bytes]
    rate: float
    told: str | None = None


@dataclass
class Socket:
    """A socket that hears of requests, or of itself. path: with the token. subscribe: frames sent
    first. number: which request a frame is about, None for other frames. says: the n-th frame that
    it sends itself, `rate` a second, as figures `name`."""

    path: str
    host: str
    subscribe: list[dict[str, Any]]
    number: Callable[[dict[str, Any]], int | None]
    name: str
    says: Callable[[int], dict[str, Any]] | None = None
    rate: float = 0.0


@dataclass
class Taken:
    """Seconds of the answers of one kind, and how many were errors or missing."""

    times: list[float] = field(default_factory=list)
    failed: int = 0
    why: dict[str, int] = field(default_factory=dict)

    def add(self, other: Taken) -> None:
        self.times += other.times
        self.failed += other.failed
        for why, count in other.why.items():
            self.why[why] = self.why.get(why, 0) + count

    def fail(self, why: str, count: int = 1) -> None:
        self.failed += count
        self.times += [LATE] * count
        self.why[why] = self.why.get(why, 0) + count


def request(method: str, path: str, headers: dict[str, str], body: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class Steady(asyncio.Protocol):
    """One kept connection of a steady client."""

    def __init__(self, client: SteadyClient) -> None:
        self.client = client
        self.due = 0.0
        self.busy = False
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, due: float, data: bytes) -> None:
        self.due = due
        self.busy = True
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = 0
        for line in self.buffer[:head].lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(self.buffer) < head + 4 + length:
            return
        status, self.buffer, self.busy = self.buffer[9:12], b"", False
        self.client.answered(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        self.client.lost(self)


class SteadyClient:
    def __init__(self, asked: Asked, first: int, port: int) -> None:
        self.asked = asked
        self.port = port
        self.taken = Taken()
        self.number = first
        self.due_at: dict[int, float] = {}  # of the numbers that a socket is to hear of
        self._free: list[Steady] = []
        self._made: set[Steady] = set()
        self._due: deque[tuple[float, bytes]] = deque()
        self._over = False

    async def run(self, seconds: float) -> None:
        for _ in range(CONNECTIONS):
            await self._connect()
        rate = self.asked.rate
        began, count = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + seconds:
            while (due := began + count / rate) <= now:
                if self.asked.told:
                    self.due_at[self.number] = due
                self._due.append((due, self.asked.make(self.number)))
                count += 1
                self.number += 1
            self._go()
            await asyncio.sleep(max(0.0, began + count / rate - time.perf_counter()))
        deadline = time.perf_counter() + LATE
        while len(self.taken.times) < count and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        self._over = True
        for protocol in self._made:
            protocol.transport.abort()
        self.taken.fail("no answer", max(0, count - len(self.taken.times)))

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, one = await loop.create_connection(lambda: Steady(self), "127.0.0.1", self.port)
        self._made.add(one)
        self._free.append(one)
        self._go()

    def _go(self) -> None:
        while self._due and self._free:
            self._free.pop().send(*self._due.popleft())

    def answered(self, one: Steady, status: bytes) -> None:
        if status[:1] == b"2":
            self.taken.times.append(min(LATE, time.perf_counter() - one.due))
        else:
            self.taken.fail(status.decode("latin-1"))
        self._free.append(one)
        self._go()

    def lost(self, one: Steady) -> None:
        """Kept connections may be closed by the server; others take their place."""
        if self._over:
            return
        self._made.discard(one)
        if one.busy:
            self.taken.fail("connection lost")
        else:
            self._free.remove(one)
        self._again = asyncio.ensure_future(self._connect())


class Listener(asyncio.Protocol):
    """One socket."""

    def __init__(self, socket: Socket, due_at: dict[int, float], first: int) -> None:
        self.socket = socket
        self.due_at = due_at
        self.taken = Taken()
        self.number = first
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = len(socket.subscribe)
        self._buffer = b""
        self._open = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(
            (f"GET {self.socket.path} HTTP/1.1\r\nHost: {self.socket.host}\r\n"
             "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").encode()
        )  # fmt: skip

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 101 " not in head:
                self.ready.set_exception(RuntimeError(head.decode()))
                return
            self._open, self._buffer = True, rest
            for message in self.socket.subscribe:
                self.say(message)
        frames, self._buffer = parse(self._buffer)
        now = time.perf_counter()
        for opcode, _, payload in frames:
            if opcode == TEXT:
                self._take(json.loads(payload), now)

    def _take(self, message: dict[str, Any], now: float) -> None:
        if self._left and message.get("type") == "subscribed":
            self._left -= 1
            if not self._left:
                self.ready.set_result(None)
            return
        number = self.socket.number(message)
        due = None if number is None else self.due_at.pop(number, None)
        if due is not None:
            self.taken.times.append(min(LATE, now - due))

    def say(self, message: dict[str, Any]) -> None:
        self.transport.write(frame(TEXT, json.dumps(message).encode()))

    async def run(self, seconds: float) -> None:
        """Sends what it says itself."""
        if self.socket.says is None:
            await asyncio.sleep(seconds)
            return
        began, count = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + seconds:
            while (due := began + count / self.socket.rate) <= now:
                self.due_at[self.number] = due
                self.say(self.socket.says(self.number))
                self.number += 1
                count += 1
            await asyncio.sleep(max(0.0, began + count / self.socket.rate - time.perf_counter()))

    async def finish(self) -> None:
        deadline = time.perf_counter() + LATE
        while self.due_at and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        self.taken.fail("not told", len(self.due_at))
        self.transport.abort()


class Victims:
    """The clients of the measured projects. sockets: by the name of the figures that they give."""

    def __init__(self, asked: list[Asked], sockets: list[Socket], port: int) -> None:
        self.asked = asked
        self.sockets = sockets
        self.port = port
        self._next: dict[str, int] = {}  # numbers are never used twice

    def measure(self, seconds: float) -> dict[str, Taken]:
        """Figures by name."""
        with _at_once():
            return uvloop.run(self._together(seconds))

    async def _together(self, seconds: float) -> dict[str, Taken]:
        first = self._next
        clients = [SteadyClient(one, first.get(one.name, 1), self.port) for one in self.asked]
        told = {one.asked.told: one for one in clients if one.asked.told}
        listeners = []
        loop = asyncio.get_running_loop()
        for one in self.sockets:
            client = told.get(one.name)
            due_at = {} if client is None else client.due_at
            number = first.get(one.name, 1)
            _, listener = await loop.create_connection(
                lambda one=one, due_at=due_at, number=number: Listener(one, due_at, number),
                "127.0.0.1", self.port,
            )  # fmt: skip
            await asyncio.wait_for(listener.ready, 2 * LATE)
            listeners.append(listener)
        await asyncio.gather(*(one.run(seconds) for one in (*clients, *listeners)))
        await asyncio.gather(*(one.finish() for one in listeners))
        first |= {one.asked.name: one.number for one in clients}
        first |= {one.socket.name: one.number for one in listeners}
        found = {one.asked.name: one.taken for one in clients}
        return found | {one.socket.name: one.taken for one in listeners}


@contextmanager
def _at_once() -> Iterator[None]:
    """This process runs as soon as it is woken, which only root may, and makes no pause for its
    garbage. It keeps to the last processor, with or without load: wandering, it would take now one
    and now the other from what it measures."""
    gc.collect()
    gc.disable()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)
        gc.enable()


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] if times else 0.0
