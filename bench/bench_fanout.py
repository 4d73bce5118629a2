"""Fan-out over WebSockets: the realtime process, with rules and indexes, against a bare picows loop
that sends the same bytes and against nginx with nchan, all counted by one compiled client.

    python -m bench.bench_fanout [--only NAME] [--json] [--sockets 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from bench.fanout_sides import anon_key, token
from bench.report import arguments, run_parts, show
from server.base.events import Events
from server.base.exchange import Exchange
from server.base.ports import free_port
from server.control.database import Cluster, prepare

HERE = Path(__file__).parent
ROUNDS = 3
PAYLOAD = 200  # bytes
SUBSCRIBE = '{"type":"subscribe","ref":"s1","kind":"broadcast","channel":"room:1"}'
SUBSCRIBED = '{"type":"subscribed","ref":"s1","kind":"broadcast","channel":"room:1"}'
SUBSCRIBE_ROWS = '{"type":"subscribe","ref":"s1","kind":"postgres","table":"public.notes"}'
SUBSCRIBED_ROWS = '{"type":"subscribed","ref":"s1","kind":"postgres","table":"public.notes"}'
FRAME = (
    len('{"type":"broadcast","channel":"room:1","event":"e","payload":,"from":""}') + PAYLOAD + 4
)
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
IDLE_GOAL_KB = 16


class Lines:
    """A process that answers each line with one."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent
        )

    def put(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def ask(self, text: str) -> list[str]:
        self.put(text)
        return self.line()

    def end(self) -> None:
        self.put("quit")
        self.process.wait(30)


def client_program() -> str:
    """The compiled client; built anew when its source is newer."""
    source = HERE / "sockets.c"
    program = Path(tempfile.gettempdir()) / f"ichi-bench-sockets-{int(source.stat().st_mtime)}"
    if not program.exists():
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    return str(program)


class Pair:
    """A server of one kind and the client."""

    def __init__(self, kind: str, path: str = "") -> None:
        self.kind = kind
        port = free_port()
        self.server = Lines(sys.executable, "-m", "bench.fanout_sides", kind, str(port))
        self.server.line()
        self.before = int(self.server.ask("memory")[0])
        path = path or f"/realtime?token={anon_key()}"
        self.client = Lines(client_program(), "127.0.0.1", str(port), path)

    def open(self, count: int) -> float:
        """Sockets opened a second."""
        seconds, opened, refused = self.client.ask(f"open {count}")
        if int(opened) != count:
            raise RuntimeError(f"{self.kind}: {refused} of {count} sockets were refused")
        return count / float(seconds)

    def subscribe(self, count: int) -> None:
        if self.kind == "ours":
            self.client.ask(f"send {SUBSCRIBE}")
            self.client.ask(f"wait {count * (len(SUBSCRIBED) + 2)}")

    def kilobytes(self, count: int) -> float:
        """Server memory of one socket."""
        time.sleep(0.5)
        return (int(self.server.ask("memory")[0]) - self.before) / 1024 / count

    def fan(self, sockets: int, rounds: int, joined: int) -> tuple[float, float]:
        """Delivered a second, and microseconds of the server's processor for each."""
        messages = sockets * rounds * joined
        self.client.put(f"wait {messages * FRAME}")
        self.server.put(f"fan {rounds} {joined} {PAYLOAD}")
        seconds, received = self.client.line()
        used, _ = self.server.line()
        if int(received) != messages * FRAME:
            raise RuntimeError(f"{self.kind}: {received} bytes instead of {messages * FRAME}")
        return messages / float(seconds), float(used) / messages * 1e6

    def end(self) -> None:
        self.server.end()
        self.client.end()


def fanout(options: argparse.Namespace) -> dict[str, Any]:
    """One message to all, and ten pending at once, both sides by turns."""
    count = options.sockets
    pairs = {kind: Pair(kind) for kind in ("ours", "picows")}
    found: dict[str, list[float]] = {}
    try:
        for pair in pairs.values():
            pair.open(count)
            pair.subscribe(count)
            pair.fan(count, 10, 1)
        for _ in range(ROUNDS):
            for joined, rounds in ((1, 100), (10, 50)):
                for kind, pair in pairs.items():
                    rate, used = pair.fan(count, rounds, joined)
                    found.setdefault(f"{kind}_{joined}_rate", []).append(rate)
                    found.setdefault(f"{kind}_{joined}_cpu_us", []).append(used)
    finally:
        for pair in pairs.values():
            pair.end()
    figures: dict[str, Any] = {name: statistics.median(values) for name, values in found.items()}
    for joined in (1, 10):
        figures[f"of_picows_{joined}"] = statistics.median(
            a / b
            for a, b in zip(
                found[f"ours_{joined}_rate"], found[f"picows_{joined}_rate"], strict=True
            )
        )
        figures[f"of_picows_{joined}_cpu"] = (
            figures[f"picows_{joined}_cpu_us"] / figures[f"ours_{joined}_cpu_us"]
        )
    figures["nchan_rate"] = nchan(count) if NCHAN.exists() else "nginx with nchan is not installed"
    figures["sockets"] = count
    figures["goal"] = "of_picows_1 >= 0.85, above nchan; ours_10_rate >= 500,000"
    return figures


def nchan(count: int) -> float:
    """The same message to as many sockets by nginx with nchan, one POST each."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-nchan-"))
    port = free_port()
    (folder / "nginx.conf").write_text(f"""
load_module {NCHAN}; daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 20000; }}
http {{ access_log off; server {{ listen 127.0.0.1:{port} backlog=4096;
  location = /pub {{ nchan_publisher; nchan_channel_id room; nchan_message_buffer_length 10; }}
  location = /realtime {{ nchan_subscriber websocket; nchan_channel_id room;
    nchan_subscriber_first_message newest; }} }} }}
""")
    nginx = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        time.sleep(0.5)
        client = Lines(client_program(), "127.0.0.1", str(port), "/realtime")
        client.ask(f"open {count}")
        body = b"x" * (FRAME - 4)
        publisher = http.client.HTTPConnection("127.0.0.1", port)
        rounds = 100
        client.put(f"wait {count * rounds * FRAME}")
        for _ in range(rounds):
            publisher.request("POST", "/pub", body)
            publisher.getresponse().read()
        seconds, received = client.line()
        client.end()
        return int(received) / FRAME / float(seconds)
    finally:
        nginx.terminate()
        nginx.wait()
        shutil.rmtree(folder, ignore_errors=True)


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of idle connections and the rate at which they are accepted: all with the anon key
    (and then a subscription to a channel each), beside a bare picows server that keeps nothing of
    them; and each of another user, whose token is verified and whose claims are kept, with a
    subscription to the user's own rows."""
    count = options.idle
    figures: dict[str, Any] = {"sockets": count}
    for kind in ("ours", "picows"):
        pair = Pair(kind)
        try:
            figures[f"{kind}_accepted_per_s"] = pair.open(count)
            figures[f"{kind}_idle_kb"] = pair.kilobytes(count)
            if kind == "ours":
                pair.subscribe(count)
                figures["ours_subscribed_kb"] = pair.kilobytes(count)
        finally:
            pair.end()
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as paths:
        for number in range(count):
            print(f"/realtime?token={token(f'user-{number:08d}')}", file=paths)
        paths.flush()
        pair = Pair("ours", "@" + paths.name)
        try:
            figures["users_accepted_per_s"] = pair.open(count)
            figures["users_idle_kb"] = pair.kilobytes(count)
            pair.client.ask(f"send {SUBSCRIBE_ROWS}")
            pair.client.ask(f"wait {count * (len(SUBSCRIBED_ROWS) + 2)}")
            figures["users_own_rows_kb"] = pair.kilobytes(count)
        finally:
            pair.end()
    figures["ours_of_picows_kb"] = figures["ours_idle_kb"] / figures["picows_idle_kb"]
    figures["goal"] = f"all of ours < {IDLE_GOAL_KB} kB, accepted >= 3,000/s"
    return figures


def lag(options: argparse.Namespace) -> dict[str, Any]:
    """How long another socket waits for its pong while messages go to all the others, and the
    longest that the loop was held: processor time, which others' load does not lengthen."""
    count = options.idle
    pair = Pair("ours")
    other = Lines(client_program(), *pair.client.process.args[1:])  # type: ignore[index]
    try:
        pair.open(count - 1)
        pair.subscribe(count - 1)
        other.ask("open 1")
        ping = '{"type":"ping"}'
        alone = other.ask(f"lag 1000 {ping}")
        pair.server.ask("turns")
        rounds = 40
        pair.client.put(f"wait {(count - 1) * rounds * FRAME}")
        pair.server.put(f"fan {rounds} 1 {PAYLOAD}")
        beside = other.ask(f"lag 1500 {ping}")
        pair.client.line()
        pair.server.line()
        turns = pair.server.ask("turns")
    finally:
        other.end()
        pair.end()
    return {
        "sockets": count, "alone_worst_ms": float(alone[0]), "alone_mean_ms": float(alone[1]),
        "worst_ms": float(beside[0]), "mean_ms": float(beside[1]), "pings": int(beside[2]),
        "loop_held_ms": float(turns[0]), "loop_turns": int(turns[1]),
        "goal": "loop_held_ms < 5; worst_ms < 5 with a processor free for the client",
    }  # fmt: skip


def http_beside(options: argparse.Namespace) -> dict[str, Any]:
    """How long HTTP requests to a worker of a whole node wait while messages go to all sockets of
    its realtime process, one after the other; alone, and beside. `during` leaves out the requests
    that publish."""
    from bench.bench_http import Node

    count = options.idle
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as tiers:
        tiers.write("[pro]\nrealtime_connections = 1000000\nrealtime_messages = 1000000\n")
        tiers.flush()
        os.environ["ICHIBASE_TIERS_FILE"] = tiers.name
        node = Node()
    try:
        rules = json.dumps({"channels": {"room:*": {"subscribe": True}}})
        subprocess.run(
            [*node.base, "settings", "default", "set", "realtime", rules],
            env=node.environment, check=True, capture_output=True,
        )  # fmt: skip
        port = (node.folder / "data" / "run" / "realtime_port").read_text().strip()
        path = f"/realtime?token={node.project['anon_key']}"
        client = Lines(client_program(), "127.0.0.1", port, path)
        _, opened, _ = client.ask(f"open {count}")
        if int(opened) != count:
            raise RuntimeError(f"{count - int(opened)} of {count} sockets were refused")
        client.ask(f"send {SUBSCRIBE}")
        client.ask(f"wait {count * (len(SUBSCRIBED) + 2)}")
        address = urllib.parse.urlsplit(node.url).netloc
        alone = _requests(address, lambda: False, 2.0)
        ended = threading.Event()
        rounds = 60
        publisher = threading.Thread(
            target=_publish, args=(address, node.project["service_key"], rounds, ended)
        )
        client.put(f"wait {count * rounds * FRAME}")
        publisher.start()
        beside = _requests(address, ended.is_set, 60.0)
        publisher.join()
        client.line()
        client.end()
    finally:
        node.stop()
    return {
        "sockets": count, "requests": len(beside),
        "alone_p99_ms": alone[int(len(alone) * 0.99)], "alone_worst_ms": alone[-1],
        "p99_ms": beside[int(len(beside) * 0.99)], "worst_ms": beside[-1],
        "goal": "worst_ms < 5 with processors free for the client and the worker",
    }  # fmt: skip


def _requests(address: str, ended: Callable[[], bool], seconds: float) -> list[float]:
    """Milliseconds of requests of which one is made every 2 ms, sorted."""
    connection = http.client.HTTPConnection(address)
    found = []
    deadline = time.monotonic() + seconds
    while not ended() and time.monotonic() < deadline:
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        found.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)
    return sorted(found)


def _publish(address: str, key: str, rounds: int, ended: threading.Event) -> None:
    connection = http.client.HTTPConnection(address)
    body = json.dumps({"channel": "room:1", "event": "e", "payload": "x" * (PAYLOAD - 2)})
    for _ in range(rounds):
        connection.request("POST", "/realtime/publish", body, {"authorization": f"Bearer {key}"})
        connection.getresponse().read()
    ended.set()


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """Hub time of a change that concerns one of many subscribers, each with an own-rows rule."""
    count = options.idle
    figures: dict[str, Any] = {"subscribers": count}
    from bench.hub_alone import own_rows

    for name, table in (("equality", "public.notes"), ("either_of_two", "public.either")):
        figures[f"{name}_us"] = own_rows(count, table)
    figures["goal"] = "under 20"
    return figures


async def _crossing(dsn: str) -> dict[str, Any]:
    moments: list[float] = []
    come = asyncio.Event()
    ends = [
        Exchange(dsn, Events(), lambda run, number, message: None, lambda: None),
        Exchange(dsn, Events(), lambda run, number, message: told(message), lambda: None),
    ]

    def told(message: dict[str, Any]) -> None:
        moments.append(time.perf_counter() - message["at"])
        if len(moments) >= message["of"]:
            come.set()

    for end in ends:
        end.start()
    while not all(end.connected for end in ends):
        await asyncio.sleep(0.01)
    figures: dict[str, Any] = {}
    text = "x" * PAYLOAD
    for name, count, pause in (("paced", 1_000, 0.001), ("burst", 20_000, 0.0)):
        moments.clear()
        come.clear()
        began, spent = time.perf_counter(), time.process_time()
        for _ in range(count):
            ends[0].send({"at": time.perf_counter(), "of": count, "d": text})
            if pause:
                await asyncio.sleep(pause)
        await come.wait()
        figures[f"{name}_per_s"] = count / (time.perf_counter() - began)
        figures[f"{name}_cpu_us"] = (time.process_time() - spent) / count * 1e6
        figures[f"{name}_p50_ms"] = statistics.median(moments) * 1000
        figures[f"{name}_p99_ms"] = sorted(moments)[int(count * 0.99)] * 1000
    for end in ends:
        await end.stop()
    return figures


def between_nodes(options: argparse.Namespace) -> dict[str, Any]:
    """Messages of 200 bytes from one realtime process to another over the control database: 1,000 a
    second, and as many as there are. Processor time is that of both ends."""
    from bench.bench_feed import Database

    database = Database()
    try:
        cluster = Cluster(
            kind="embedded", admin_dsn=database.postgres.dsn(), host="127.0.0.1",
            port=database.postgres.port, socket_dir=str(database.postgres.socket_dir),
        )  # fmt: skip
        return uvloop.run(_crossing(asyncio.run(prepare(cluster, "control password"))))
    finally:
        database.close()


PARTS = {
    "fanout": fanout,
    "idle": idle,
    "lag": lag,
    "http": http_beside,
    "rows": rows,
    "nodes": between_nodes,
}


def main() -> int:
    parser = arguments(__doc__, PARTS)
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--idle", type=int, default=10_000, help="sockets of all other parts")
    options = parser.parse_args()
    parts = {name: (lambda part=part: part(options)) for name, part in PARTS.items()}
    show(run_parts(parts, options.only), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
