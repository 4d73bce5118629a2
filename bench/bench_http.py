"""The whole server against the database alone, both sides in one run.

Starts `ichibase serve` on a fresh data folder, makes the tables of the benchmark in the default
project, then alternates pgbench (the statements the server sends, on the same cluster, with the
same login and the same number of clients) and wrk (HTTP requests with a user's token). Prints a
table, or JSON with --json.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import jwt

from bench.loads import LoadError, pgbench, wrk
from bench.report import arguments, run_parts, show
from bench.statements import of_request
from server.base.ports import free_port

USER = "11111111-1111-4111-8111-111111111111"
ROWS = 10_000
CLIENTS = (8, 32)

SCHEMA = f"""
create table notes (
  id int primary key,
  user_id uuid not null default auth.uid(),
  body text not null,
  created_at timestamptz not null default now()
);
alter table notes enable row level security;
create policy own_rows on notes to authenticated
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
insert into notes
  select g, '{USER}', 'note number ' || g, now() from generate_series(1, {ROWS}) g;
create table wide (
  id int primary key, a int, b bigint, c text, d text, e numeric(10,2), f float8, g boolean,
  h timestamptz, i uuid
);
insert into wide
  select x, x, x * 1000000007::bigint, 'text ' || x, md5(x::text), x / 7.0, x / 3.0::float8,
         x % 2 = 0, '2026-01-01'::timestamptz + x * interval '1 second', md5(x::text)::uuid
  from generate_series(1, 1000) x;
create function wide_json() returns json language sql stable as
  'select json_agg(w) from (select * from wide order by id limit 1000) w';
create table log (id bigint generated always as identity primary key,
  user_id uuid not null default auth.uid(), body text not null);
alter table log enable row level security;
create policy own_log on log to authenticated
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create function slow_call() returns int language sql volatile as
  'select 1 from pg_sleep(0.05)';
create table big (id int primary key, payload text);
insert into big select x, repeat(md5(x::text), 32) from generate_series(1, 100000) x;
"""

# wrk: reads notes by primary key, in a scattered order. The requests are made beforehand: making
# one in Lua takes wrk as long as the database takes to answer it, on the same cores.
READ_BY_KEY = f"""
local made, n = {{}}, 0
init = function(args)
  for id = 1, {ROWS} do
    made[id] = wrk.format("GET", "/postgres/notes?id=eq." .. id)
  end
end
request = function()
  n = (n * 1103515245 + 12345) % 2147483648
  return made[n % {ROWS} + 1]
end
"""


def call(url: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


class Node:
    """An `ichibase serve` of our own, with one worker. flavor: databases of its project."""

    def __init__(self, flavor: str = "postgres") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-bench-"))
        self.folder.chmod(0o755)
        port, admin = free_port(), free_port()
        self.base = [sys.executable, "-m", "server.cli.main"]
        self.environment = {
            **os.environ,
            "ICHIBASE_DATA_DIR": str(self.folder / "data"),
            "ICHIBASE_DEFAULT_FLAVOR": flavor,
        }
        self.log = open(self.folder / "serve.log", "wb")  # noqa: SIM115
        command = [*self.base, "serve", "--port", str(port), "--workers", "1"]
        command += ["--admin-port", str(admin)]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=self.log, stderr=self.log
        )
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait()
            status = subprocess.run(
                [*self.base, "status", "--project", "default", "--json"],
                env=self.environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        except BaseException:
            self.stop()
            raise
        self.project: dict[str, Any] = json.loads(status.stdout)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise LoadError(f"serve stopped: {(self.folder / 'serve.log').read_text()[-800:]}")
            try:
                said = (self.folder / "serve.log").read_bytes()
                if b"is running at" in said and call(f"{self.url}/readyz", {}):
                    return
                time.sleep(0.05)
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise LoadError("serve did not become ready within 60 s")

    def sql(self, text: str) -> None:
        done = subprocess.run(
            [*self.base, "sql", "default", "-"], input=text, env=self.environment,
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise LoadError(f"sql failed: {done.stderr[-500:]}")

    def token(self) -> str:
        now = int(time.time())
        claims = {"sub": USER, "role": "authenticated", "iat": now, "exp": now + 3600}
        claims |= {"aud": "authenticated", "iss": self.project["url"]}
        return jwt.encode(claims, self.project["jwt_secret"], "HS256")

    def workers(self) -> list[int]:
        """Process ids of the HTTP workers: the descendants that run the gateway."""
        import psutil

        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any("ichibase-worker" in part for part in [child.name(), *child.cmdline()[:1]]):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


CLAIMS = {"sub": USER, "role": "authenticated", "iat": 1, "exp": 2, "aud": "authenticated",
          "iss": "http://127.0.0.1"}  # fmt: skip


def scripts(setup: str, statements: tuple[str, str]) -> tuple[str, str]:
    """(one pipeline with one sync, four statements one after the other) for pgbench."""
    settings, main = statements
    pipelined = f"{setup}\n\\startpipeline\n{settings}\n{main}\n\\endpipeline\n"
    four = f"{setup}\nbegin;\n{settings}\n{main}\ncommit;\n"
    return pipelined, four


def median_of(runs: list[dict[str, float]], key: str = "rate") -> float:
    return statistics.median(run[key] for run in runs)


def bench_read(node: Node, dsn: str, seconds: float, rounds: int, clients: int) -> dict[str, Any]:
    setup = rf"\set id random(1, {ROWS})"
    headers = {"authorization": f"Bearer {node.token()}"}
    pipelined, four = scripts(setup, of_request(
        dsn, "GET", "notes", "id=eq.7", {"host": "127.0.0.1:8000", **headers}, CLAIMS,
        variables={"7": ":id"},
    ))  # fmt: skip
    first = json.loads(call(f"{node.url}/postgres/notes?id=eq.7", headers))
    if [row["id"] for row in first] != [7]:
        raise LoadError(f"the read by key answers {first!r}")
    load: dict[str, Any] = {"connections": clients, "headers": headers, "lua": READ_BY_KEY}
    wrk(node.url, seconds=1, **load)
    http, pipe, plain = [], [], []
    for _ in range(rounds):
        pipe.append(pgbench(dsn, pipelined, seconds=seconds, clients=clients))
        http.append(
            wrk(node.url, seconds=seconds, connections=clients, headers=headers, lua=READ_BY_KEY)
        )
        plain.append(pgbench(dsn, four, seconds=seconds, clients=clients))
    rate = median_of(http)
    return {
        "http_rate": rate, "pgbench_pipelined": median_of(pipe),
        "pgbench_four_statements": median_of(plain), "clients": clients,
        "p99_ms": median_of(http, "p99_ms"), "of_pipelined": rate / median_of(pipe),
        "of_four": rate / median_of(plain), "goal": "of_pipelined >= 0.60 and of_four >= 1.3",
    }  # fmt: skip


def bench_insert(node: Node, dsn: str, seconds: float, rounds: int, clients: int) -> dict[str, Any]:
    # the same bytes each time, which wrk then makes once
    lua = """
wrk.method = "POST"
wrk.body = '[{"body":"a line of the log"}]'
"""
    load: dict[str, Any] = {"connections": clients, "lua": lua}
    headers = {
        "authorization": f"Bearer {node.token()}", "content-type": "application/json",
        "prefer": "return=minimal",
    }  # fmt: skip
    pipelined, _ = scripts("", of_request(
        dsn, "POST", "log", "", {"host": "127.0.0.1:8000", **headers}, CLAIMS,
        body=b'[{"body":"a line of the log"}]',
    ))  # fmt: skip
    url = f"{node.url}/postgres/log"
    wrk(url, seconds=1, headers=headers, **load)
    http, pipe = [], []
    for _ in range(rounds):
        pipe.append(pgbench(dsn, pipelined, seconds=seconds, clients=clients))
        http.append(wrk(url, seconds=seconds, headers=headers, **load))
    rate = median_of(http)
    return {
        "http_rate": rate, "pgbench_pipelined": median_of(pipe), "clients": clients,
        "of_pipelined": rate / median_of(pipe), "goal": "of_pipelined >= 0.55",
    }  # fmt: skip


def bench_wide(node: Node, seconds: float, rounds: int) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {node.project['anon_key']}"}
    ours = f"{node.url}/postgres/wide?order=id&limit=1000"
    theirs = f"{node.url}/postgres/rpc/wide_json"
    a, b = json.loads(call(ours, headers)), json.loads(call(theirs, headers))
    if a != b or len(a) != 1000:
        raise LoadError("the two ways of reading 1,000 rows give different values")
    binary, aggregated = [], []
    for _ in range(rounds):
        binary.append(wrk(ours, seconds=seconds, connections=4, headers=headers))
        aggregated.append(wrk(theirs, seconds=seconds, connections=4, headers=headers))
    return {
        "binary_rate": median_of(binary), "json_agg_rate": median_of(aggregated),
        "times": median_of(binary) / median_of(aggregated), "goal": "times >= 2",
    }  # fmt: skip


def bench_mixed(node: Node, seconds: float, clients: int) -> dict[str, Any]:
    """One connection in twenty calls a function that sleeps 50 ms (5 % of the requests).

    wrk reports one latency for all requests, so two wrk processes run side by side: the quick one
    is measured, the slow one is paced to send 5 % of the quick one's requests.
    """
    import threading

    headers = {"authorization": f"Bearer {node.token()}"}
    quick = f"{node.url}/postgres/notes?id=eq.7"
    call(f"{node.url}/postgres/rpc/slow_call", {**headers, "content-type": "application/json"},
         b"{}")  # fmt: skip
    rate_limit = 400.0  # quick requests a second: 5 % of it is one slow call every 50 ms

    def paced(stop: threading.Event, latencies: list[float]) -> None:
        import http.client

        host = node.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        while not stop.is_set():
            began = time.perf_counter()
            connection.request("GET", "/postgres/notes?id=eq.7", headers=headers)
            connection.getresponse().read()
            latencies.append((time.perf_counter() - began) * 1000)
            time.sleep(max(0.0, clients / rate_limit - (time.perf_counter() - began)))

    def slow(stop: threading.Event) -> None:
        while not stop.is_set():
            call(f"{node.url}/postgres/rpc/slow_call",
                 {**headers, "content-type": "application/json"}, b"{}")  # fmt: skip

    def run(slow_callers: int) -> float:
        stop, latencies = threading.Event(), []
        threads = [threading.Thread(target=paced, args=(stop, latencies)) for _ in range(clients)]
        threads += [threading.Thread(target=slow, args=(stop,)) for _ in range(slow_callers)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        return statistics.quantiles(latencies, n=100)[98]

    call(quick, headers)
    run(0)
    alone, mixed = run(0), run(1)
    return {
        "p99_alone_ms": alone, "p99_mixed_ms": mixed, "times": mixed / alone,
        "quick_per_second": rate_limit, "slow_share": 20 / rate_limit, "goal": "times < 3",
    }  # fmt: skip


def bench_memory(node: Node) -> dict[str, Any]:
    import psutil

    headers = {"authorization": f"Bearer {node.token()}"}
    service = {"authorization": f"Bearer {node.project['service_key']}"}
    workers = [psutil.Process(pid) for pid in node.workers()]
    if not workers:
        raise LoadError("found no worker process to measure")

    def resident() -> float:
        return sum(p.memory_info().rss for p in workers) / 1e6

    before = resident()
    count = 0.0
    while count < 10_000:
        count += wrk(node.url, seconds=1, connections=8, headers=headers, lua=READ_BY_KEY)[
            "requests"
        ]
    after = resident()
    peak = after
    stop_at = time.monotonic() + 120
    load = subprocess.Popen(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}",
         "-H", f"authorization: {service['authorization']}", f"{node.url}/postgres/big"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while load.poll() is None and time.monotonic() < stop_at:
        peak = max(peak, resident())
        time.sleep(0.01)
    status, size = (load.communicate()[0] or "0 0").split()
    return {
        "idle_mb": before, "after_mb": after, "requests": count, "big_status": int(status),
        "big_bytes": int(size), "big_above_mb": peak - after,
        "goal": "idle < 100, no growth, big_above < 40",
    }  # fmt: skip


def main() -> int:
    parser = arguments(__doc__, timed=True)
    parser.add_argument("--clients", type=int, action="append", help="instead of 8 and 32")
    options = parser.parse_args()
    node = Node()
    try:
        node.sql(SCHEMA)
        node.sql("analyze")
        dsn = node.project["database_url"]
        node.sql(
            "alter table notes force row level security; alter table log force row level security"
        )
        parts = {
            "memory": lambda: bench_memory(node),
            **{
                f"{name}_{clients}": partial(
                    work, node, dsn, options.seconds, options.rounds, clients
                )
                for name, work in (("read", bench_read), ("insert", bench_insert))
                for clients in options.clients or CLIENTS
            },
            "wide": lambda: bench_wide(node, options.seconds, options.rounds),
            "mixed": lambda: bench_mixed(node, options.seconds, 8),
        }  # fmt: skip
        results = run_parts(parts, options.only)
    finally:
        node.stop()
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
