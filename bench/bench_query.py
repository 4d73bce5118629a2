"""Query string to SQL: a shape that is known, and one that is parsed and planned from nothing.

Both sides of the table are measured over a catalog read from a real database. Prints microseconds
(median of the rounds), or JSON with --json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.database import database
from ichicore.http import accept, prefer
from ichicore.rest import query as queries
from ichicore.rest import shape
from ichicore.rest.sql import bind
from server.postgres import introspect
from server.postgres.planning import Planner
from server.postgres.pool import Pool
from server.postgres.settings import RestSettings

SCHEMA = """
create table clients (id int primary key, name text, city text);
create table projects (id int primary key, name text, client_id int references clients,
  budget numeric, started date, done boolean);
create table tasks (id int primary key, name text, project_id int references projects);
"""
FILTERS = "id=gt.5&name=like.a*&budget=lt.1000&done=is.false&started=gte.2026-01-01"
QUERIES = {
    "one filter": "id=eq.7",
    "five filters": FILTERS,
    "five filters, two embeds": "select=id,name,clients(id,name),tasks(id,name)&" + FILTERS,
}


def per_call(work: Callable[[], object], calls: int, rounds: int = 9) -> float:
    """Microseconds of one call: the median of the rounds, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - began) / calls * 1e6)
    return statistics.median(found[1:])


async def catalog_of(dsn: str) -> Any:
    pool = Pool(dsn)
    try:
        return await introspect.load(pool.fetch, RestSettings(), 1)
    finally:
        await pool.close()


def measure(catalog: Any) -> dict[str, dict[str, float]]:
    planner = Planner(catalog, RestSettings())
    accepted = tuple(accept.parse(None))
    preferred = prefer.parse(None, catalog.timezones)
    results = {}
    for name, text in QUERIES.items():
        raw = text.encode()

        def cold(raw: bytes = raw) -> Any:
            parsed = queries.parse(raw, rpc=False, mutation=False, concatenate_order=True)
            return planner.read(
                "public", "projects", parsed, accepted, preferred, head=False, ranged=False
            )

        plan = cold()
        scanned = shape.scan(raw)
        if scanned is None:
            raise RuntimeError(f"{text} has no shape of its own")
        plans = {(False, "projects", None, None, None, False, scanned[0]): plan}

        def cached(raw: bytes = raw, plans: dict[Any, Any] = plans) -> Any:
            found = shape.scan(raw)
            assert found is not None
            known = plans[(False, "projects", None, None, None, False, found[0])]
            return known.main, bind(known.layout, found[1], None, None, 0)

        results[name] = {"cached_us": per_call(cached, 20_000), "cold_us": per_call(cold, 2_000)}
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with database(SCHEMA) as dsn:
        results = measure(asyncio.run(catalog_of(dsn)))
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        for name, figures in results.items():
            cached, cold = figures["cached_us"], figures["cold_us"]
            print(f"{name:26} cached {cached:6.2f} us   cold {cold:6.1f} us")
        print("goals: cached < 3 us, cold < 25 us for five filters and two embeds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
