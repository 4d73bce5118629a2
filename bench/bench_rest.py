"""`ichibase rest` reading by primary key under a policy with a user's token, against pgbench
sending the same statements to the same cluster: in one pipeline, and as the four statements one
after the other with which PostgREST serves a request. The rate, and processor time of a request in
the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil

from bench.bench_http import CLAIMS, READ_BY_KEY, ROWS, SCHEMA, Node, call, median_of, scripts
from bench.loads import LoadError, pgbench, wrk
from bench.report import arguments, run_parts, show
from bench.statements import of_request
from server.base.ports import free_port

CLIENTS = (8, 32)


@contextmanager
def program(node: Node) -> Iterator[tuple[str, psutil.Process]]:
    """URL and worker of a program that serves the node's default project."""
    port = free_port()
    environment = {
        **os.environ, "PGRST_DB_URI": node.project["database_url"], "PGRST_DB_CONFIG": "false",
        "PGRST_DB_ANON_ROLE": "anon", "PGRST_JWT_SECRET": node.project["jwt_secret"],
        "PGRST_SERVER_HOST": "127.0.0.1", "PGRST_SERVER_PORT": str(port),
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "server.standalone"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                call(f"{url}/wide?limit=1", {})
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise LoadError("the program did not become ready") from None
                time.sleep(0.05)
        worker = next(
            one for one in psutil.Process(process.pid).children(recursive=True)
            if one.name().startswith("ichibase-rest")
        )  # fmt: skip
        yield url, worker
    finally:
        process.terminate()
        process.wait(30)


def read(
    node: Node, url: str, worker: psutil.Process, seconds: float, rounds: int, clients: int
) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {node.token()}"}
    if [row["id"] for row in json.loads(call(f"{url}/notes?id=eq.7", headers))] != [7]:
        raise LoadError("the read by key answers something else")
    dsn = node.project["database_url"]
    pipelined, four = scripts(rf"\set id random(1, {ROWS})", of_request(
        dsn, "GET", "notes", "id=eq.7", {"host": "127.0.0.1:3000", **headers}, CLAIMS,
        variables={"7": ":id"},
    ))  # fmt: skip
    lua = READ_BY_KEY.replace("/postgres/", "/")
    load: dict[str, Any] = {"connections": clients, "headers": headers, "lua": lua}
    wrk(url, seconds=1, **load)
    http, pipe, plain, spent = [], [], [], []
    for _ in range(rounds):
        pipe.append(pgbench(dsn, pipelined, seconds=seconds, clients=clients))
        before = sum(worker.cpu_times()[:2])
        http.append(wrk(url, seconds=seconds, **load))
        spent.append({"us": (sum(worker.cpu_times()[:2]) - before) / http[-1]["requests"] * 1e6})
        plain.append(pgbench(dsn, four, seconds=seconds, clients=clients))
    rate = median_of(http)
    return {
        "http_rate": rate, "own_us": median_of(spent, "us"), "p99_ms": median_of(http, "p99_ms"),
        "pgbench_pipelined": median_of(pipe), "pgbench_four_statements": median_of(plain),
        "of_pipelined": rate / median_of(pipe), "of_four": rate / median_of(plain),
        "clients": clients,
    }  # fmt: skip


def main() -> int:
    options = arguments(__doc__, (f"read_{n}" for n in CLIENTS), timed=True).parse_args()
    node = Node()
    try:
        node.sql(SCHEMA)
        node.sql("analyze; alter table notes force row level security")
        with program(node) as (url, worker):
            parts = {
                f"read_{n}": partial(read, node, url, worker, options.seconds, options.rounds, n)
                for n in CLIENTS
            }
            results = run_parts(parts, options.only)
    finally:
        node.stop()
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
