"""Rows to JSON: what a value of each type and a row of ten columns cost, against json_agg.

`types`: nanoseconds of processor time to receive and encode one value, from a query of 10,000 rows
of eight such columns through the executor, less the same query without rows. `row`: microseconds
for one of 1,000 rows of ten columns, in this process and in the server's, encoded here and by
json_agg.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

from bench.bench_http import SCHEMA as TABLES
from bench.database import database
from bench.report import arguments, run_parts, show
from ichicore.pg.executor import JSON, VALUES, Group, Statement
from server.postgres.pool import Pool

ROWS, COLUMNS = 10_000, 8
WIDE = TABLES[TABLES.index("create table wide") : TABLES.index("create function wide_json")]
EXPRESSIONS = {
    "bool": "g % 2 = 0", "int4": "g * 1000", "int8": "g * 1000000007::bigint",
    "float8": "g / 3.0::float8", "numeric": "(g / 7.0)::numeric(10,2)",
    "text": "'text number ' || g", "text to escape": "'say \"' || g || E'\"\\n'",
    "uuid": "md5(g::text)::uuid", "date": "'2026-01-01'::date + g",
    "timestamptz": "'2026-01-01'::timestamptz + g * interval '1 second'",
    "interval": "g * interval '1 minute'", "bytea": "decode(md5(g::text), 'hex')",
    "int4[]": "array[g, g + 1, g + 2]", "jsonb": "jsonb_build_object('a', g, 'b', 'x')",
    "int4range": "int4range(g, g + 10)",
}  # fmt: skip


def own_time(pool: Pool) -> float:
    return time.process_time()


def server_time(pool: Pool) -> float:
    times = psutil.Process(pool._executors[0].backend_pid).cpu_times()
    return times.user + times.system


async def spent(
    pool: Pool, statement: Statement, calls: int, clocks: list[Callable[[Pool], float]]
) -> list[float]:
    """Seconds of each clock for one call."""
    before: list[float] = []
    for number in range(calls + 1):
        if number == 1:  # the first one prepares
            before = [clock(pool) for clock in clocks]
        group = Group("r")
        group.add(statement)
        await pool.run(group)
    return [(clock(pool) - was) / calls for clock, was in zip(clocks, before, strict=True)]


def types(dsn: str, rounds: int) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        pool = Pool(dsn, max_size=1)
        figures: dict[str, Any] = {}
        try:
            for name, expression in EXPRESSIONS.items():
                table = f"t_{len(figures)}"
                columns = ", ".join(f"{expression} as c{n}" for n in range(COLUMNS))
                await pool.fetch(
                    f"create table {table} as select {columns} from generate_series(1, {ROWS}) g"
                )
                sql = f"select * from {table}"
                found = []
                for _ in range(rounds):
                    (encoded,) = await spent(pool, Statement(sql, result=JSON), 5, [own_time])
                    (bare,) = await spent(
                        pool, Statement(f"{sql} where c0 is null", result=JSON), 5, [own_time]
                    )
                    found.append((encoded - bare) / ROWS / COLUMNS * 1e9)
                figures[f"{name}_ns"] = statistics.median(found)
        finally:
            await pool.close()
        return figures

    return asyncio.run(work())


def row(dsn: str, rounds: int) -> dict[str, Any]:
    ours = Statement("select * from wide order by id", result=JSON)
    theirs = Statement("select json_agg(w) from (select * from wide order by id) w", result=VALUES)

    async def work() -> dict[str, Any]:
        pool = Pool(dsn, max_size=1)
        found: dict[str, list[float]] = {}
        clocks = [own_time, server_time]
        try:
            for _ in range(rounds):
                for name, statement in (("encoded", ours), ("json_agg", theirs)):
                    own, server = await spent(pool, statement, 100, clocks)
                    found.setdefault(f"{name}_own_us", []).append(own * 1e3)
                    found.setdefault(f"{name}_server_us", []).append(server * 1e3)
        finally:
            await pool.close()
        figures: dict[str, Any] = {key: statistics.median(all) for key, all in found.items()}
        spent_here = figures["encoded_own_us"] + figures["encoded_server_us"]
        spent_there = figures["json_agg_own_us"] + figures["json_agg_server_us"]
        return {**figures, "times": spent_there / spent_here}

    return asyncio.run(work())


def main() -> int:
    options = arguments(__doc__, ("types", "row"), timed=True).parse_args()
    with database(WIDE) as dsn:
        parts = {
            "types": lambda: types(dsn, options.rounds), "row": lambda: row(dsn, options.rounds),
        }  # fmt: skip
        results = run_parts(parts, options.only)
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
