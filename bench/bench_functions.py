"""Edge functions: warm calls, what the server adds, first calls, calls from inside, memory.

`warm` and `added` go through one HTTP worker to a function that only answers; `direct` is the same
Deno process called over its unix socket. `first` times the first call after another version was
made the active one: with a blank process at hand, and without (a function with an outbound list
takes none). `inside` is the call that the document gateway makes. `busy` is a function that
computes, with one process and with two. `memory` is the private and shared memory (PSS) of 100
processes of 100 projects, and how many are left after the idle time.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.loads import LoadError, wrk
from bench.report import arguments, run_parts, show
from server.base.functions import Functions
from server.functions.build import MAP
from server.functions.manager import Manager
from server.functions.store import Version
from tests.process.functions_node import Project
from tests.process.running import RunningNode

HELLO = "Deno.serve(() => new Response('hello'));"
SECONDS = 5.0
ROUNDS = 3
FIRST = 40  # first calls
PROJECTS = 100


@contextmanager
def running() -> Iterator[Project]:
    """A node whose default project has the function `hello`."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-bench-"))
    folder.chmod(0o755)
    node = RunningNode(folder)
    try:
        node.start()
        project = Project(node)
        project.deploy("hello", HELLO)
        project.call("hello")
        yield project
    finally:
        node.end()
        shutil.rmtree(folder, ignore_errors=True)


def worker_cpu(project: Project) -> dict[str, float]:
    """Processor seconds so far of the HTTP worker and the Deno processes."""
    found: dict[str, float] = {"worker": 0.0, "deno": 0.0}
    for process in project.node.process_of().children(recursive=True):
        name = {"ichibase-worker": "worker", "deno": "deno"}.get(process.name())
        if name:
            times = process.cpu_times()
            found[name] += times.user + times.system
    return found


def warm() -> dict[str, Any]:
    with running() as project:
        url = f"{project.node.url}/functions/hello"
        headers = {"apikey": project.anon}
        wrk(url, seconds=2, connections=32, headers=headers)
        before, rates, p99 = worker_cpu(project), [], []
        total = 0.0
        for _ in range(ROUNDS):
            found = wrk(url, seconds=SECONDS, connections=32, headers=headers)
            rates.append(found["rate"])
            p99.append(found["p99_ms"])
            total += found["requests"]
        after = worker_cpu(project)
        return {
            "rate": statistics.median(rates), "p99_ms": statistics.median(p99),
            "worker_cpu_us": (after["worker"] - before["worker"]) / total * 1e6,
            "deno_cpu_us": (after["deno"] - before["deno"]) / total * 1e6,
            "goal": "rate >= 12,000",
        }  # fmt: skip


def times(connect: Any, request: bytes, count: int) -> list[float]:
    """Seconds of `count` requests on one connection."""
    found = []
    with connect() as client:
        for _ in range(count):
            began = time.perf_counter()
            client.sendall(request)
            data = client.recv(65536)
            found.append(time.perf_counter() - began)
            if not data.startswith(b"HTTP/1.1 200"):
                raise LoadError(f"the function answered {data[:200]!r}")
    return found


def added() -> dict[str, Any]:
    with running() as project:
        cell = next(Path("/run").glob("ichibase-*/*/s"), None) or next(
            project.node.data_dir.glob("run/functions/*/s")
        )
        for path in Path(cell).parents[1].glob("*/s"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                probe.sendall(b"GET /functions/hello HTTP/1.1\r\nhost: a\r\n\r\n")
                if probe.recv(65536).startswith(b"HTTP/1.1 200"):
                    cell = path

        def direct() -> socket.socket:
            made = socket.socket(socket.AF_UNIX)
            made.connect(str(cell))
            return made

        def through() -> socket.socket:
            return socket.create_connection(("127.0.0.1", project.node.port))

        request = (
            f"GET /functions/hello HTTP/1.1\r\nhost: {project.host}\r\napikey: {project.anon}"
            "\r\n\r\n"
        ).encode()
        pairs: dict[str, list[float]] = {"direct": [], "through": []}
        for _ in range(10):
            pairs["direct"] += times(direct, request, 300)[50:]
            pairs["through"] += times(through, request, 300)[50:]
        direct_ms, through_ms = (statistics.median(pairs[n]) * 1000 for n in ("direct", "through"))
        return {
            "direct_p50_ms": direct_ms, "through_p50_ms": through_ms,
            "added_p50_ms": through_ms - direct_ms, "goal": "added < 0.5",
        }  # fmt: skip


def first() -> dict[str, Any]:
    with running() as project:
        found: dict[str, Any] = {}
        for name, outbound in (("blank", None), ("cold", ["example.com"])):
            for _ in range(2):
                project.deploy(name, HELLO, outbound=outbound)
            taken = []
            for number in range(FIRST):
                project.admin("POST", f"/functions/{name}/rollback", {"version": number % 2 + 1})
                time.sleep(0.4)  # the blank processes are made anew
                with socket.create_connection(("127.0.0.1", project.node.port)) as client:
                    request = (
                        f"GET /functions/{name} HTTP/1.1\r\nhost: {project.host}\r\n"
                        f"apikey: {project.anon}\r\n\r\n"
                    ).encode()
                    began = time.perf_counter()
                    client.sendall(request)
                    if not client.recv(65536).startswith(b"HTTP/1.1 200"):
                        raise LoadError("the first call failed")
                    taken.append((time.perf_counter() - began) * 1000)
            taken.sort()
            found[f"{name}_p50_ms"] = taken[len(taken) // 2]
            found[f"{name}_p95_ms"] = taken[int(len(taken) * 0.95)]
        return {**found, "goal": "blank_p95 < 15, cold_p95 < 80"}


def inside() -> dict[str, Any]:
    with running() as project:
        project.deploy(
            "_mongo_policy",
            "Deno.serve(async (r) => Response.json({ allow: !!(await r.json()) }));",
        )
        dsn = json.loads((project.node.data_dir / "run" / "node.json").read_text())["config"]
        with psycopg.connect(dsn["control_dsn"]) as control:
            row = control.execute("select id from projects where slug = 'default'").fetchone()
        assert row is not None

        class Limits:
            function_wall_ms, function_cpu_ms, function_memory = 5_000, 2_000, 134_217_728
            function_concurrency, function_bundle, functions, cpu_weight = 5, 1 << 20, 10, 100

        class Asking:
            limits, id, slug, url = Limits, row[0], "default", project.node.url
            anon_key, service_key, flavor = project.anon, project.service, "both"

        async def measure() -> list[float]:
            functions = Functions(project.node.data_dir)
            body = json.dumps({"op": "find", "collection": "notes", "filter": {"a": 1}}).encode()
            asking: Any = Asking
            taken = []
            for _ in range(3_000):
                began = time.perf_counter()
                await functions.call_internal(asking, "_mongo_policy", body)
                taken.append((time.perf_counter() - began) * 1000)
            await functions.stop()
            return sorted(taken[500:])

        taken = asyncio.run(measure())
        return {
            "p50_ms": taken[len(taken) // 2], "p99_ms": taken[int(len(taken) * 0.99)],
            "goal": "p50 < 1",
        }  # fmt: skip


BURN = """Deno.serve(() => {
  const until = performance.now() + 2;
  while (performance.now() < until);
  return new Response("done");
});"""


def busy() -> dict[str, Any]:
    """A function that computes for 2 ms: calls a second with one process, and with two."""
    with running() as project:
        project.deploy("burn", BURN)
        url, headers = f"{project.node.url}/functions/burn", {"apikey": project.anon}
        rates = {}
        for name, concurrency in (("one", 24), ("two", 50)):
            limits = {"function_concurrency": concurrency, "function_cpu_ms": 60_000}
            project.admin("PATCH", "", {"limits": limits})
            time.sleep(1.0)  # until the workers know
            wrk(url, seconds=4, connections=16, headers=headers)  # until the second one is there
            rates[name] = wrk(url, seconds=SECONDS, connections=16, headers=headers)["rate"]
        return {
            "one_process_rate": rates["one"], "two_processes_rate": rates["two"],
            "times": rates["two"] / rates["one"],
        }  # fmt: skip


class OneFunction:
    """A store in which every project has the function `hello`."""

    async def any(self) -> bool:
        return True

    async def find(self, project_id: str, name: str) -> Version:
        return Version(project_id, name, 1, "key", None, project_id)

    async def code(self, version: Version) -> bytes:
        return HELLO.encode() + b"\n" + MAP + b"e30="

    async def secrets(self, project_id: str) -> dict[str, str]:
        return {}

    async def close(self) -> None:
        """Nothing is open."""


def memory() -> dict[str, Any]:
    async def measure(folder: Path) -> dict[str, Any]:
        store: Any = OneFunction()
        manager = Manager(folder, store, ("127.0.0.1", 1), idle_seconds=5.0)
        await manager.start()
        try:
            began = time.perf_counter()
            for number in range(PROJECTS):
                told = {
                    "id": f"p{number}", "slug": f"p{number}", "url": f"http://p{number}.localhost",
                    "anon_key": "a", "service_key": "s", "mongo": False, "wall_ms": 10_000,
                    "cpu_ms": 2_000, "memory": 134_217_728, "concurrency": 5, "bundle": 1 << 20,
                    "functions": 10,
                }  # fmt: skip
                await manager.lease("bench", told, "hello")
            took = time.perf_counter() - began
            pids = [cell.pid for cell in manager.cells.values()]
            pss = sum(psutil.Process(pid).memory_full_info().pss for pid in pids)
            uss = sum(psutil.Process(pid).memory_full_info().uss for pid in pids)
            manager.spares_wanted = 0
            manager.worker_gone("bench")
            await asyncio.sleep(9)
            return {
                "processes": len(pids), "pss_mb": pss / 1e6, "private_mb": uss / len(pids) / 1e6,
                "started_in_s": took, "left_after_idle": len(manager.running),
                "goal": "pss < 1,500, left 0",
            }  # fmt: skip
        finally:
            await manager.stop()

    folder = Path(tempfile.mkdtemp(prefix="ichi-bench-"))
    try:
        return asyncio.run(measure(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parts = {"warm": warm, "added": added, "first": first, "inside": inside, "busy": busy,
             "memory": memory}  # fmt: skip
    options = arguments(__doc__, parts).parse_args()
    try:
        results = run_parts(parts, options.only)
    except LoadError as error:
        print(error, file=sys.stderr)
        return 1
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
