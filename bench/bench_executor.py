"""The executor alone: groups of the statements of real requests through a pool, without HTTP,
against pgbench sending the same statements to the same cluster with as many clients, each on a
connection of its own; the pool opens as many as it finds good.

Figures are groups a second, and processor time of one group in this process and in the server's.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from functools import partial
from typing import Any

import psutil

from bench.bench_http import CLAIMS, ROWS, USER, scripts
from bench.database import database
from bench.loads import pgbench
from bench.report import arguments, run_parts, show
from bench.statements import of_request, planned
from ichicore.pg.executor import Group
from server.postgres.pool import Pool

SCHEMA = f"""
create role authenticated;
create table notes (id int primary key, user_id uuid not null, body text not null,
  created_at timestamptz not null default now());
alter table notes enable row level security;
create policy own_rows on notes to authenticated using (user_id =
  (select (nullif(current_setting('request.jwt.claims', true), '')::json->>'sub')::uuid));
insert into notes select g, '{USER}', 'note number ' || g from generate_series(1, {ROWS}) g;
create table log (id bigint generated always as identity primary key, body text not null);
grant all on notes, log to authenticated;
analyze;
"""
HEADERS = {"host": "127.0.0.1:8000", "accept": "*/*", "authorization": "Bearer " + "x" * 300}
LINE = b'[{"body":"a line of the log"}]'


def processor(pool: Pool) -> float:
    """Seconds that the pool's server processes have worked."""
    times = [psutil.Process(one.backend_pid).cpu_times() for one in pool._executors]
    return sum(t.user + t.system for t in times)


async def drive(dsn: str, made: Any, clients: int, seconds: float) -> dict[str, float]:
    pool = Pool(dsn, max_size=clients)
    (opening, own), (main, values) = made
    place = values.index(b"7") if b"7" in values else None
    count = 0

    async def client(until: float) -> None:
        nonlocal count
        while time.perf_counter() < until:
            group = Group("authenticated")
            group.add(opening, own)
            if place is None:
                group.add(main, values)
            else:
                key = b"%d" % random.randint(1, ROWS)
                group.add(main, (*values[:place], key, *values[place + 1 :]))
            await pool.run(group)
            count += 1

    async def load(length: float) -> None:
        until = time.perf_counter() + length
        await asyncio.gather(*(client(until) for _ in range(clients)))

    try:
        await load(0.5)
        count, own_before, theirs_before = 0, time.process_time(), processor(pool)
        began = time.perf_counter()
        await load(seconds)
        return {
            "rate": count / (time.perf_counter() - began),
            "own_us": (time.process_time() - own_before) / count * 1e6,
            "server_us": (processor(pool) - theirs_before) / count * 1e6,
            "connections": len(pool._executors),
        }
    finally:
        await pool.close()


def measure(
    dsn: str, method: str, name: str, query: str, clients: int, seconds: float, rounds: int
) -> dict[str, Any]:
    body = LINE if method == "POST" else b""
    headers = HEADERS | ({"prefer": "return=minimal"} if body else {})
    made = planned(dsn, method, name, query, headers, CLAIMS, body=body)
    text = of_request(dsn, method, name, query, headers, CLAIMS, body=body,
                      variables={"7": ":id"})  # fmt: skip
    pipelined, _ = scripts(rf"\set id random(1, {ROWS})", text)
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(pgbench(dsn, pipelined, seconds=seconds, clients=clients)["rate"])
        ours.append(asyncio.run(drive(dsn, made, clients, seconds)))
    found = {key: statistics.median(one[key] for one in ours) for key in ours[0]}
    reference = statistics.median(theirs)
    return {
        **found, "pgbench_pipelined": reference, "of_pipelined": found["rate"] / reference,
        "clients": clients,
    }  # fmt: skip


def main() -> int:
    cases = {
        **{f"read_{n}": ("GET", "notes", "id=eq.7", n) for n in (1, 8, 32)},
        **{f"insert_{n}": ("POST", "log", "", n) for n in (8, 32)},
    }
    options = arguments(__doc__, cases, timed=True).parse_args()
    with database(SCHEMA) as dsn:
        parts = {
            name: partial(measure, dsn, *case, options.seconds, options.rounds)
            for name, case in cases.items()
        }
        results = run_parts(parts, options.only)
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
