"""What the clients of one project notice of a free project that does all it can.

`measure` sends one project's reads at a steady rate, whatever becomes of them: a late answer delays
no later request, and its time counts from when it should have been sent. `Attack` keeps another
project busy meanwhile. Elsewhere both would be other machines: here, what makes the load runs at a
low priority and lets everything else interrupt it, and what measures interrupts, as far as the
system lets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import uvloop

from server.base import processor
from tests.oracle.websocket import TEXT, Client, frame

CONNECTIONS = 16  # of the steady client
SOCKETS = 20
SETTLE = 1.0  # seconds from the beginning of an attack until it is in full swing
SQL = """
create table heap (id bigint generated always as identity primary key, body text);
create function burn() returns bigint language sql volatile as
  'select count(*) from generate_series(1, 300000) a where md5(a::text) < ''8''';
"""
FUNCTION = """Deno.serve(() => {
  const end = Date.now() + 400; let n = 0;
  while (Date.now() < end) for (let i = 0; i < 1e5; i++) n = (n * 31 + i) | 0;
  return new Response(String(n));
});"""
RULES = {
    "tables": {"public.heap": {"enabled": True, "rule": {}}},
    "channels": {"room:*": {"subscribe": True, "send": True, "presence": True}},
}
KINDS = ("sql", "documents", "functions", "sockets")


# --- the client who is measured -----------------------------------------------------------------


class Steady(asyncio.Protocol):
    """One kept connection of the steady client."""

    def __init__(self, client: SteadyClient) -> None:
        self.client = client
        self.due = 0.0
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, due: float) -> None:
        self.due = due
        self.transport.write(self.client.request)

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
        self.client.answered(self, self.buffer[9:12])
        self.buffer = b""

    def connection_lost(self, error: Exception | None) -> None:
        self.client.lost += 1


class SteadyClient:
    """times: seconds of each answer from when its request was due."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.times: list[float] = []
        self.bad: list[bytes] = []
        self.lost = 0
        self._free: list[Steady] = []
        self._due: deque[float] = deque()

    async def run(self, port: int, rate: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        made = []
        for _ in range(CONNECTIONS):
            _, protocol = await loop.create_connection(lambda: Steady(self), "127.0.0.1", port)
            made.append(protocol)
        self._free = list(made)
        began, count = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + seconds:
            while began + count / rate <= now:
                self._due.append(began + count / rate)
                count += 1
            self._go()
            await asyncio.sleep(max(0.0, began + count / rate - time.perf_counter()))
        deadline = time.perf_counter() + 10
        while len(self.times) < count and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        lost, missing = self.lost, count - len(self.times)
        for protocol in made:
            protocol.transport.abort()
        if self.bad or lost or missing:
            raise RuntimeError(f"{self.bad[:3]} {lost} connections lost, {missing} unanswered")

    def _go(self) -> None:
        while self._due and self._free:
            self._free.pop().send(self._due.popleft())

    def answered(self, one: Steady, status: bytes) -> None:
        self.times.append(time.perf_counter() - one.due)
        if status != b"200":
            self.bad.append(status)
        self._free.append(one)
        self._go()


def request(method: str, path: str, headers: dict[str, str], body: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def measure(asked: list[tuple[bytes, float]], port: int, seconds: float) -> list[list[float]]:
    """Milliseconds of each answer, for each of the (request, times a second)."""
    clients = [SteadyClient(request) for request, _ in asked]

    async def together() -> None:
        await asyncio.gather(
            *(
                client.run(port, rate, seconds)
                for client, (_, rate) in zip(clients, asked, strict=True)
            )
        )

    with _at_once():
        uvloop.run(together())
    return [[one * 1000 for one in client.times] for client in clients]


@contextmanager
def _at_once() -> Iterator[None]:
    """This process runs as soon as it is woken, which only root may, and makes no pause for its
    garbage."""
    gc.collect()
    gc.disable()
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        gc.enable()


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


# --- the neighbour ------------------------------------------------------------------------------


def _wrk(url: str, headers: dict[str, str], lua: str, connections: int = 8) -> Callable[[], Any]:
    """A closed loop of clients that ask again as soon as they are answered, whatever the answer."""

    def start() -> Any:
        script = tempfile.NamedTemporaryFile("w", suffix=".lua")  # noqa: SIM115
        lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
        script.write("\n".join(lines) + "\n" + lua)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "20s", "-s",
                   script.name, url]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_elsewhere
        )
        return process, script

    return start


def _elsewhere() -> None:
    """Where Linux weighs sessions against each other, the measured client must not share its own
    with the load."""
    os.setsid()
    os.nice(10)
    processor.turns(0, os.SCHED_BATCH, processor.TURN)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("10\n")


class Attack:
    """What a free project's clients, functions and owner do as fast as they are let.

    url: of the node. headers: of the project's client. port: of the node. project: of the admin
    API's answer to its creation."""

    def __init__(self, url: str, headers: dict[str, str], project: dict[str, Any]) -> None:
        port = int(url.rpartition(":")[2])
        self.headers = headers
        post = {**headers, "content-type": "application/json"}
        secret = {**post, "apikey": project["service_key"]}
        secret["authorization"] = f"Bearer {project['service_key']}"
        find = '{"filter":{"n":{"$gte":5},"body":{"$regex":"^a.*z$"}},"limit":100}'
        burn = 'request = function() return wrk.format("POST", "/postgres/rpc/burn", nil, "{}") end'
        documents = (
            "local n = 0 request = function() n = n + 1 "
            'if n % 2 == 0 then return wrk.format("POST", "/mongo/v1/insertOne/heap", nil, '
            '\'{"doc":{"n":\' .. n .. \',"body":"abc"}}\') end '
            f'return wrk.format("POST", "/mongo/v1/find/heap", nil, \'{find}\') end'
        )
        call = 'request = function() return wrk.format("POST", "/functions/spin", nil, "{}") end'
        told = json.dumps({"port": port, "host": headers["Host"], "key": project["anon_key"],
                           "dsn": project["database_url"]})  # fmt: skip
        self._parts: dict[str, list[Callable[[], Any]]] = {
            "sql": [_wrk(url, post, burn), _helper("owner", told)],
            "documents": [_wrk(url, secret, documents)],
            "functions": [_wrk(url, post, call)],
            "sockets": [_helper("sockets", told)],
        }

    @contextmanager
    def going(self, kinds: tuple[str, ...]) -> Iterator[None]:
        begun = [start() for kind in kinds for start in self._parts[kind]]
        self.processes = processes = [process for process, _ in begun]
        try:
            time.sleep(SETTLE)
            for process in processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a load ended: {process.args}")
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _helper(kind: str, told: str) -> Callable[[], Any]:
    def start() -> Any:
        command = [sys.executable, "-m", "bench.neighbour", kind]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=_elsewhere)
        assert process.stdin is not None
        process.stdin.write(told.encode())
        process.stdin.close()
        return process, None

    return start


def owner(told: dict[str, Any]) -> None:
    """Writes, sorts and truncates without an end."""
    while True:
        with (
            contextlib.suppress(psycopg.Error),
            psycopg.connect(told["dsn"], autocommit=True) as session,
        ):
            while True:
                session.execute(
                    "insert into heap (body) select repeat(md5(a::text), 20) "
                    "from generate_series(1, 5000) a"
                )
                session.execute("select count(distinct body) from heap")
                session.execute("truncate heap")
        time.sleep(0.2)


def sockets(told: dict[str, Any]) -> None:
    """Twenty sockets that send as much as is taken of them and hear of each row, and whose project
    writes rows meanwhile. Those that the server cuts come back."""
    said = {"type": "broadcast", "channel": "room:1", "event": "x", "payload": "y" * 100}
    frames = frame(TEXT, json.dumps(said).encode()) * 32
    threading.Thread(target=rows, args=(told,), daemon=True).start()
    left: dict[socket.socket, bytes] = {}
    while True:
        while len(left) < SOCKETS:
            left[_socket(told)] = b""
        open_ = list(left)
        readable, writable, _ = select.select(open_, open_, [], 1)
        for sock in readable + writable:
            try:
                if sock in readable and not sock.recv(1 << 20):
                    raise ConnectionResetError
                if sock in writable:
                    data = left[sock] or frames
                    left[sock] = data[sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                left.pop(sock, None)
                sock.close()
        time.sleep(0.002)


def _socket(told: dict[str, Any]) -> socket.socket:
    path, headers = f"/realtime?token={told['key']}", (("Host", told["host"]),)
    while True:
        try:
            one = Client.connect("127.0.0.1", told["port"], path, headers)
        except OSError:
            time.sleep(0.1)
            continue
        for ref, more in (
            ("1", {"kind": "broadcast", "channel": "room:1"}),
            ("2", {"kind": "postgres", "table": "heap"}),
        ):
            one.send(TEXT, json.dumps({"type": "subscribe", "ref": ref, **more}).encode())
        one.sock.setblocking(False)
        return one.sock


def rows(told: dict[str, Any]) -> None:
    """One row at a time."""
    while True:
        with (
            contextlib.suppress(psycopg.Error),
            psycopg.connect(told["dsn"], autocommit=True) as session,
        ):
            while True:
                session.execute("insert into heap (body) values ('a row that others hear of')")
        time.sleep(0.2)


def main() -> int:
    kind, told = sys.argv[1], json.loads(sys.stdin.read())
    {"owner": owner, "sockets": sockets}[kind](told)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
