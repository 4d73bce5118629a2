"""The change feed: from the database's log to the hub, and on to sockets.

decode: processor time of the decoder alone over rows of eight columns. stream: 200,000 rows of one
transaction from a real server to a sink. latency: rows committed by eight connections at a fixed
rate, from the moment the client sends the statement to the moment the feed hands the change over,
and from the moment the client has the commit's answer. sockets: the same to the frame's arrival at
one of 100 subscribers, through a whole node.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import uvloop

from bench.bench_fanout import Lines, client_program
from bench.bench_http import Node
from bench.loads import LoadError
from bench.report import arguments, run_parts, show
from ichicore.live.change import Change, Publish
from ichicore.live.pgoutput import Decoder
from ichicore.live.pgtypes import Types
from server.base.context import NodeConfig
from server.base.events import Events
from server.base.ports import free_port
from server.base.project import Project
from server.control import records
from server.control.database import Cluster, prepare
from server.control.projects import Projects
from server.node.embedded_pg import EmbeddedPostgres
from server.realtime.pg_feed import PgFeed

ROWS = 200_000
COLUMNS = [("id", 20), ("u", 2950), ("body", 25), ("at", 1184), ("n", 1700), ("ok", 16),
           ("j", 3802), ("tags", 1009)]  # fmt: skip
VALUES = [b"17", b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", b"hello " * 10,
          b"2024-07-01 12:00:00.123+00", b"12.50", b"t", b'{"a": 1, "b": [1, 2, 3]}',
          b'{a,"b c"}']  # fmt: skip
TABLE = """create table rows (id bigint primary key, u uuid default gen_random_uuid(), body text,
  at timestamptz default now(), n numeric default 12.50, ok bool default true,
  j jsonb default '{"a": 1, "b": [1, 2, 3]}', tags text[] default '{a,"b c"}')"""
WRITER = """
import asyncio, sys, time, psycopg
dsn, rate, seconds, first = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
async def main():
    links = [await psycopg.AsyncConnection.connect(dsn, autocommit=True) for _ in range(8)]
    count, answered, began = int(rate * seconds), {}, time.monotonic()
    async def work(number):
        link = links[number]
        for row in range(number, count, 8):
            wait = began + row / rate - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            sent = time.monotonic()
            await link.execute(
                "insert into events values (%s, %s, repeat('x', 100))", (first + row, sent))
            answered[first + row] = time.monotonic()
    await asyncio.gather(*[work(number) for number in range(8)])
    for link in links:
        await link.close()
    for row, at in answered.items():
        print(row, at)
asyncio.run(main())
"""


class Sink:
    def __init__(self) -> None:
        self.count = 0
        self.first = 0.0
        self.moments: dict[int, tuple[float, float]] | None = None

    def change(self, project_id: str, change: Change) -> bool:
        self.count += 1
        if self.count == 1:
            self.first = time.perf_counter()
        if self.moments is not None and change.record is not None:
            self.moments[change.record["id"]] = (change.record["sent"], time.monotonic())
        return True

    def publish(self, project_id: str, message: Publish) -> bool:
        return True

    def truncated(self, project_id: str, source: str) -> bool:
        return True

    def notice(self, project_id: str, code: str, detail: str) -> bool:
        raise LoadError(detail)


class Database:
    """A cluster of our own with one project."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-bench-"))
        self.folder.chmod(0o755)
        self.postgres = EmbeddedPostgres(self.folder, free_port())
        self.postgres.start()

    async def project(self) -> Project:
        cluster = Cluster(
            kind="embedded", admin_dsn=self.postgres.dsn(), host="127.0.0.1",
            port=self.postgres.port, socket_dir=str(self.postgres.socket_dir),
        )  # fmt: skip
        dsn = await prepare(cluster, "control password")
        config = NodeConfig(data_dir=self.folder, control_dsn=dsn)
        record = await Projects(dsn, {cluster.id: cluster}, config).create("bench")
        return records.to_project(record, config)

    def close(self) -> None:
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    def framed(body: bytes) -> bytes:
        return b"w" + struct.pack(">QQQ", 1, 2, 3) + body

    relation = b"R" + struct.pack(">I", 1) + b"public\0rows\0d" + struct.pack(">H", len(COLUMNS))
    for name, oid in COLUMNS:
        relation += bytes([name == "id"]) + name.encode() + b"\0" + struct.pack(">Ii", oid, -1)
    row = struct.pack(">H", len(VALUES))
    row += b"".join(b"t" + struct.pack(">I", len(value)) + value for value in VALUES)
    decoder = Decoder(Types())
    decoder.feed(framed(b"B" + struct.pack(">QQI", 9, 0, 1)))
    decoder.feed(framed(relation))
    figures: dict[str, Any] = {}
    for name, body in (("insert", b"I\0\0\0\1N" + row), ("update", b"U\0\0\0\1N" + row),
                       ("update_full", b"U\0\0\0\1O" + row + b"N" + row)):  # fmt: skip
        message = framed(body)
        rates = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(200):
                for _ in range(500):
                    decoder.feed(message)
                decoder.take()
            rates.append(100_000 / (time.process_time() - began))
        figures[f"{name}_per_cpu_second"] = statistics.median(rates)
    return figures


async def _stream(database: Database) -> dict[str, Any]:
    project = await database.project()
    sink = Sink()
    feed = PgFeed(project, sink, node="b", tables=frozenset({"public.rows"}), events=Events())
    assert project.owner_dsn is not None
    rates, cpu = [], []
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute(TABLE.encode())
        feed.start()
        await feed.ready()
        for turn in range(3):
            sink.count = 0
            before = time.process_time()
            insert = (f"insert into rows (id, body) select g, repeat('hello ', 10) from"
                      f" generate_series({turn * ROWS + 1}, {(turn + 1) * ROWS}) g")  # fmt: skip
            await asyncio.to_thread(owner.execute, insert.encode())
            while sink.count < ROWS:
                await asyncio.sleep(0.005)
            rates.append(ROWS / (time.perf_counter() - sink.first))
            cpu.append((time.process_time() - before) / ROWS * 1e6)
    await feed.stop(drop=True)
    return {
        "rows_per_second": statistics.median(rates),
        "cpu_us_per_row": statistics.median(cpu),
    }


def stream(options: argparse.Namespace) -> dict[str, Any]:
    database = Database()
    try:
        return uvloop.run(_stream(database))
    finally:
        database.close()


def _writer(dsn: str, options: argparse.Namespace, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, dsn, str(options.rate), str(options.seconds), str(first)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def _figures(moments: dict[int, tuple[float, float]], written: str) -> dict[str, Any]:
    answered = {int(row): float(at) for row, at in (line.split() for line in written.splitlines())}
    if len(answered) == 0 or set(answered) - set(moments):
        raise LoadError(f"{len(set(answered) - set(moments))} changes did not come")
    kept = sorted(answered)[len(answered) // 5 :]  # after a warm-up
    sent = sorted(1000 * (moments[row][1] - moments[row][0]) for row in kept)
    after = sorted(max(0.0, 1000 * (moments[row][1] - answered[row])) for row in kept)
    span = max(answered.values()) - min(moments[row][0] for row in answered)

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(len(values) * share))]

    return {
        "changes_per_second": len(answered) / span,
        "sent_p50_ms": at(sent, 0.5), "sent_p99_ms": at(sent, 0.99),
        "committed_p50_ms": at(after, 0.5), "committed_p99_ms": at(after, 0.99),
    }  # fmt: skip


async def _latency(database: Database, options: argparse.Namespace) -> dict[str, Any]:
    project = await database.project()
    sink = Sink()
    sink.moments = {}
    feed = PgFeed(project, sink, node="b", tables=frozenset({"public.events"}), events=Events())
    assert project.owner_dsn is not None
    with psycopg.connect(project.owner_dsn, autocommit=True) as owner:
        owner.execute("create table events (id int primary key, sent float8, body text)")
    feed.start()
    await feed.ready()
    writer = _writer(project.owner_dsn, options, 0)
    written, _ = await asyncio.to_thread(writer.communicate)
    await asyncio.sleep(0.5)
    await feed.stop(drop=True)
    return _figures(sink.moments, written)


def latency(options: argparse.Namespace) -> dict[str, Any]:
    database = Database()
    try:
        return uvloop.run(_latency(database, options))
    finally:
        database.close()


async def _sockets(node: Node, options: argparse.Namespace) -> dict[str, Any]:
    from picows import WSListener, WSMsgType, ws_connect

    moments: dict[int, tuple[float, float]] = {}
    ready = asyncio.Event()

    class Probe(WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            now = time.monotonic()
            message = json.loads(frame.get_payload_as_bytes())
            if message["type"] == "change":
                moments[message["record"]["id"]] = (message["record"]["sent"], now)
            else:
                ready.set()

    subscribe = json.dumps({"type": "subscribe", "ref": "s", "kind": "postgres", "table": "events"})
    port = int((node.folder / "data" / "run" / "realtime_port").read_text())
    path = f"/realtime?token={node.project['anon_key']}"
    others = Lines(client_program(), "127.0.0.1", str(port), path)
    others.ask(f"open {options.receivers - 1}")
    others.ask(f"send {subscribe}")
    transport, _ = await ws_connect(Probe, f"ws://127.0.0.1:{port}{path}")
    transport.send(WSMsgType.TEXT, subscribe.encode())
    await ready.wait()
    await asyncio.sleep(0.5)
    others.put("wait 1000000000000")  # reads on for as long as it lives
    writer = _writer(node.project["database_url"], options, 0)
    written, _ = await asyncio.to_thread(writer.communicate)
    await asyncio.sleep(0.5)
    transport.disconnect()
    others.process.kill()
    return _figures(moments, written)


def sockets(options: argparse.Namespace) -> dict[str, Any]:
    node = Node()
    try:
        node.sql("create table events (id int primary key, sent float8, body text)")
        rules = json.dumps({"tables": {"events": {"rule": True}}})
        subprocess.run(
            [*node.base, "settings", "default", "set", "realtime", rules],
            env=node.environment, check=True, capture_output=True,
        )  # fmt: skip
        return uvloop.run(_sockets(node, options))
    finally:
        node.stop()


PARTS = {"decode": decode, "stream": stream, "latency": latency, "sockets": sockets}


def main() -> int:
    parser = arguments(__doc__, PARTS)
    parser.add_argument("--rate", type=int, default=1000, help="changes a second")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--receivers", type=int, default=100)
    options = parser.parse_args()
    parts = {name: (lambda part=part: part(options)) for name, part in PARTS.items()}
    show(run_parts(parts, options.only), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
