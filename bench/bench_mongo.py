"""The document API of one worker against the driver alone, both sides in one run.

find_one: findOne by id under an ownership rule, as a signed-in user, against PyMongo's asynchronous
client doing the same find (by id and owner) in one process with as many requests in flight; and the
worker's processor time for each request. find_100: a find of the 100 documents of a collection
against the driver's find and json.dumps. write: insertOne and updateOne under the same rule,
against the driver's with the journal awaited.

The embedded server gives two thousand finds by id a second and some three hundred of 100 documents,
and is what bounds both sides; the processor times tell of the sides themselves. What is in flight
when the time is over counts for neither side, so few are where each takes long.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from pymongo import AsyncMongoClient, MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from bench.bench_http import USER, Node, call
from bench.loads import LoadError, wrk
from bench.report import arguments, run_parts, show

DOCUMENTS = 1000
IN_FLIGHT = 16
FEW = 4
OWN = {"user_id": "${auth.uid}"}
RULES = {
    "version": 1,
    "collections": {
        "notes": {
            "read": {"filter": OWN}, "insert": {"set": OWN}, "update": {"filter": OWN},
            "delete": {"filter": OWN},
        },
        "hundred": {"read": {"filter": OWN}},
    },
}  # fmt: skip
FIND_ONE = """
local ids = {{ {ids} }}
local n = 0
request = function()
  n = (n * 1103515245 + 12345) % 2147483648
  return wrk.format("POST", nil, nil, '{{"filter":{{"_id":"' .. ids[n % #ids + 1] .. '"}}}}')
end
"""
UPDATE = """
local ids = {{ {ids} }}
local n = 0
request = function()
  n = (n * 1103515245 + 12345) % 2147483648
  return wrk.format("POST", nil, nil, '{{"filter":{{"_id":"' .. ids[n % #ids + 1] ..
    '"}},"update":{{"$set":{{"done":true}},"$inc":{{"n":1}}}}}}')
end
"""
PLAIN = """
request = function() return wrk.format("POST", nil, nil, '{body}') end
"""

Work = Callable[[int], Awaitable[Any]]


class Bench:
    """A node whose default project has the documents and rules of the benchmark."""

    def __init__(self, seconds: float, rounds: int) -> None:
        self.seconds = seconds
        self.rounds = rounds
        self.node = Node("both")
        try:
            self._fill()
        except BaseException:
            self.node.stop()
            raise

    def _fill(self) -> None:
        self.url = self._wait()
        with MongoClient(self.url) as client:
            notes = client.get_default_database().notes
            made = notes.insert_many(
                {
                    "user_id": USER, "title": f"note number {n}", "n": n, "done": False,
                    "tags": ["a", "b", "c"], "body": "word " * 20,
                }
                for n in range(DOCUMENTS)
            )  # fmt: skip
            self.ids = made.inserted_ids
            notes.create_index("user_id")
            hundred = client.get_default_database().hundred
            hundred.insert_many(list(notes.find({}, {"_id": 0}).limit(100)))
            hundred.create_index("user_id")
        self._settings({"rules": RULES})
        self.headers = {
            "apikey": self.node.project["anon_key"], "content-type": "application/json",
            "authorization": f"Bearer {self.node.token()}",
        }  # fmt: skip
        workers = psutil.Process(self.node.process.pid).children(recursive=True)
        self.worker = next(p for p in workers if p.name() == "ichibase-worker")

    def _wait(self) -> str:
        """The project's address, once the server behind it accepts its login."""
        url: str = self.node.project["mongo_url"]
        deadline = time.monotonic() + 60
        while True:
            try:
                with MongoClient(url, serverSelectionTimeoutMS=1000) as client:
                    client.get_default_database().command("ping")
                return url
            except PyMongoError:
                if time.monotonic() > deadline:
                    raise LoadError("the documents did not become ready") from None
                time.sleep(0.2)

    def direct(self) -> str:
        """The address of the project's own server, where the worker sends its commands too."""
        found = psutil.Process(self.node.process.pid).children(recursive=True)
        server = next(p for p in found if p.name() == "secantus")
        port = next(c.laddr.port for c in server.net_connections("tcp") if c.status == "LISTEN")
        return self.url.replace(f":{urlsplit(self.url).port}/", f":{port}/")

    def _settings(self, value: dict[str, Any]) -> None:
        command = [*self.node.base, "settings", "default", "set", "mongo", json.dumps(value)]
        done = subprocess.run(command, env=self.node.environment, capture_output=True, text=True)
        if done.returncode:
            raise LoadError(done.stderr[-500:])
        time.sleep(1)

    def listed(self) -> str:
        return ",".join(f'"{id}"' for id in self.ids)

    def served(self, path: str, lua: str, in_flight: int) -> dict[str, float]:
        """One run over HTTP: its rate, latencies, and the worker's microseconds a request."""
        url = f"{self.node.url}/mongo/v1/{path}"
        before = self.worker.cpu_times()
        run = wrk(
            url, seconds=self.seconds, connections=in_flight, headers=self.headers, lua=lua,
            timeout=15,
        )  # fmt: skip
        after = self.worker.cpu_times()
        used = after.user + after.system - before.user - before.system
        return {**run, "cpu_us": used / run["requests"] * 1e6}

    def driven(self, make: Callable[[Any], Work], in_flight: int) -> dict[str, float]:
        """The same with the driver alone, in this process."""

        async def main() -> dict[str, float]:
            async with AsyncMongoClient(self.direct(), maxPoolSize=in_flight) as client:
                work = make(client.get_default_database())
                for n in range(100):
                    await work(n)
                begun = done = 0
                began = time.perf_counter()
                used = _own_seconds()

                async def sender() -> None:
                    nonlocal begun, done
                    while time.perf_counter() - began < self.seconds:
                        begun += 1
                        await work(begun)
                        done += time.perf_counter() - began < self.seconds

                await asyncio.gather(*(sender() for _ in range(in_flight)))
                used = _own_seconds() - used
                return {"rate": done / self.seconds, "cpu_us": used / begun * 1e6}

        return uvloop.run(main())

    def compare(
        self, path: str, lua: str, make: Callable[[Any], Work], in_flight: int = IN_FLIGHT
    ) -> dict[str, float]:
        """Both sides in turn; medians."""
        self.served(path, lua, in_flight)
        pairs = [
            (self.served(path, lua, in_flight), self.driven(make, in_flight))
            for _ in range(self.rounds)
        ]
        ratios = [served["rate"] / driven["rate"] for served, driven in pairs]
        return {
            "per_s": statistics.median(served["rate"] for served, _ in pairs),
            "driver_per_s": statistics.median(driven["rate"] for _, driven in pairs),
            "of_driver": statistics.median(ratios),
            "p99_ms": statistics.median(served["p99_ms"] for served, _ in pairs),
            "worker_cpu_us": statistics.median(served["cpu_us"] for served, _ in pairs),
            "driver_cpu_us": statistics.median(driven["cpu_us"] for _, driven in pairs),
        }


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def bench_find_one(bench: Bench) -> dict[str, float]:
    ids = bench.ids
    lua = FIND_ONE.format(ids=bench.listed())

    def make(database: Any) -> Work:
        return lambda n: database.notes.find_one({"_id": ids[n % len(ids)], "user_id": USER})

    found = bench.compare("findOne/notes", lua, make)
    return found | {"target_of_driver": 0.65, "target_worker_cpu_us": 150.0}


def bench_find_100(bench: Bench) -> dict[str, float]:
    lua = PLAIN.format(body='{"filter":{},"limit":100}')

    def make(database: Any) -> Work:
        async def work(n: int) -> str:
            docs = await database.hundred.find({"user_id": USER}, limit=100).to_list()
            return json.dumps({"docs": docs, "count": len(docs), "truncated": False}, default=str)

        return work

    answer = call(
        f"{bench.node.url}/mongo/v1/find/hundred", bench.headers, b'{"filter":{},"limit":100}'
    )
    if json.loads(answer)["count"] != 100:
        raise LoadError("the find did not answer with 100 documents")
    return bench.compare("find/hundred", lua, make, FEW) | {"target_of_driver": 1.0}


def bench_write(bench: Bench) -> dict[str, float]:
    ids = bench.ids
    journaled = WriteConcern(w="majority", j=True)

    def make(database: Any) -> Work:
        notes = database.get_collection("notes", write_concern=journaled)
        change = {"$set": {"done": True}, "$inc": {"n": 1}}
        return lambda n: notes.update_one({"_id": ids[n % len(ids)], "user_id": USER}, change)

    def inserting(database: Any) -> Work:
        notes = database.get_collection("notes", write_concern=journaled)
        return lambda n: notes.insert_one({"title": "one more", "user_id": USER})

    updates = bench.compare("updateOne/notes", UPDATE.format(ids=bench.listed()), make)
    inserts = bench.compare(
        "insertOne/notes", PLAIN.format(body='{"doc":{"title":"one more"}}'), inserting
    )
    return {
        **{f"update_{name}": value for name, value in updates.items()},
        **{f"insert_{name}": value for name, value in inserts.items()},
    }


def main() -> int:
    options = arguments(__doc__, ("find_one", "find_100", "write"), timed=True).parse_args()
    bench = Bench(options.seconds, options.rounds)
    try:
        parts = {
            name: partial(part, bench)
            for name, part in (
                ("find_one", bench_find_one), ("find_100", bench_find_100), ("write", bench_write),
            )
        }  # fmt: skip
        results = run_parts(parts, options.only)
    finally:
        bench.node.stop()
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
