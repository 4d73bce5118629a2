"""Many projects on one node: making them, finding them, waking them, and bad neighbours.

routing: processor time of a request in the gateway with 1,000 projects against one. start: a node
whose control database has 1,000 sleeping projects, against one with none, and what they cost in
memory over all processes. create: from the request to the answer. wake: the first request to a
sleeping project, Postgres being up. neighbour: what the clients of one project notice while a free
project keeps the server busy, with each of its parts and with all together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
import urllib.request
from functools import partial
from types import SimpleNamespace
from typing import Any

import jwt
import msgspec
import psutil
import psycopg

from bench import bench_gateway, beside, neighbour
from bench.bench_http import Node
from bench.loads import LoadError
from bench.report import arguments, run_parts, show
from server.control import provision
from server.control.secrets import new_id

MANY = 1_000
CALLS = 20_000


# --- routing ------------------------------------------------------------------------------------


class Projects(bench_gateway.Directory):
    """So many projects, in memory."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.projects = {"default": self.project}
        for number in range(count):
            slug = f"p{number}"
            self.projects[slug] = msgspec.structs.replace(self.project, id=slug, slug=slug)

    def get(self, slug: str) -> Any:
        return self.projects.get(slug)


class Protocol:
    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        if status != 200:
            raise LoadError(f"the gateway answered {status}")


class Headers(dict):  # type: ignore[type-arg]
    """As the HTTP server gives them."""

    def items(self) -> Any:
        return list(super().items())


def scope_of(slug: str) -> Any:
    token = jwt.encode(
        {"sub": "u", "role": "authenticated", "exp": int(time.time()) + 3600},
        bench_gateway.SECRET, "HS256", headers={"kid": "k1"},
    )  # fmt: skip
    headers = Headers(host=f"{slug}.localhost:8000", authorization=f"Bearer {token}")
    return SimpleNamespace(
        method="GET", path="/storage/x", query_string="", headers=headers, proto="http",
        authority=None, scheme="http", client="127.0.0.1:1",
    )  # fmt: skip


async def _routing(count: int) -> float:
    """Processor microseconds of a request."""
    edge = bench_gateway.edge()
    edge.directory = Projects(count)
    # As many requests in memory either way: what is compared is finding the project.
    scopes = [scope_of(f"p{number % count}") for number in range(MANY)]
    protocol = Protocol()
    for scope in scopes:
        await edge.handle(scope, protocol)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for number in range(CALLS):
            await edge.handle(scopes[number * 7919 % MANY], protocol)
        best = min(best, (time.process_time() - began) / CALLS)
    return best * 1e6


def bench_routing(seconds: float, rounds: int) -> dict[str, float]:
    pairs = [(asyncio.run(_routing(1)), asyncio.run(_routing(MANY))) for _ in range(rounds)]
    one, many = min(p[0] for p in pairs), min(p[1] for p in pairs)
    return {"one_project_us": one, "thousand_us": many, "added_us": many - one, "target_us": 2.0}


# --- a node -------------------------------------------------------------------------------------


class Admin:
    """A node of our own and its admin API."""

    def __init__(self, flavor: str = "postgres", maintenance_seconds: str = "2") -> None:
        os.environ.update(
            ICHIBASE_DEFAULT_FLAVOR=flavor, ICHIBASE_MAINTENANCE_SECONDS=maintenance_seconds
        )
        self.node = Node(flavor)
        data = self.node.folder / "data"
        self.config = json.loads((data / "run" / "node.json").read_text())["config"]
        self.token = (data / "secrets" / "admin_token").read_text().strip()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.config["admin_url"] + path, method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.token}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def create(self, name: str, tier: str = "pro", flavor: str = "postgres") -> dict[str, Any]:
        wanted = {"name": name, "tier": tier, "owner": f"{name}-owner", "flavor": flavor}
        found: dict[str, Any] = self.call("POST", "/admin/v1/projects", wanted)
        return found

    def sql(self, name: str, text: str) -> None:
        self.call("POST", f"/admin/v1/projects/{name}/sql", {"sql": text})

    def headers(self, project: dict[str, Any]) -> dict[str, str]:
        port = self.node.url.rpartition(":")[2]
        return {
            "Host": f"{project['name']}.localhost:{port}", "content-type": "application/json",
            "authorization": f"Bearer {project['anon_key']}",
        }  # fmt: skip

    def get(self, project: dict[str, Any], path: str) -> bytes:
        request = urllib.request.Request(self.node.url + path, headers=self.headers(project))
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def memory(self) -> float:
        """Private bytes of the node's own processes, MB; Postgres' are not among them."""
        total = 0
        for child in [psutil.Process(self.node.process.pid),
                      *psutil.Process(self.node.process.pid).children(recursive=True)]:  # fmt: skip
            try:
                if "server." in " ".join(child.cmdline()):
                    total += child.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        return total / 1e6

    def stop(self) -> None:
        self.node.stop()


def bench_create(seconds: float, rounds: int) -> dict[str, float]:
    admin = Admin()
    try:
        times = []
        for number in range(5 * rounds):
            began = time.perf_counter()
            admin.create(f"made-{number}")
            times.append(time.perf_counter() - began)
    finally:
        admin.stop()
    return {"median_s": statistics.median(times), "longest_s": max(times), "target_s": 1.5}


def bench_wake(seconds: float, rounds: int) -> dict[str, float]:
    admin = Admin()
    try:
        times = []
        projects = [admin.create(f"nap-{number}", "free") for number in range(5 * rounds)]
        for project in projects:
            admin.sql(project["name"], "create table t (id int primary key)")
            admin.get(project, "/postgres/t")
            admin.call("POST", f"/admin/v1/projects/{project['name']}/sleep", {})
        time.sleep(1)
        for project in projects:
            began = time.perf_counter()
            admin.get(project, "/postgres/t")
            times.append((time.perf_counter() - began) * 1000)
    finally:
        admin.stop()
    return {"median_ms": statistics.median(times), "longest_ms": max(times), "target_ms": 150}


def _fill(admin: Admin) -> None:
    """Rows of 1,000 projects that sleep; nothing in the cluster."""
    rows = []
    for number in range(MANY):
        id = new_id()
        rows.append((id, f"asleep-{number}", f"ichi_{id}"))
    with psycopg.connect(admin.config["control_dsn"]) as control:
        cursor = control.cursor()
        cursor.executemany(
            """insert into projects (id, slug, owner_id, cluster_id, flavor, tier, state,
              database, owner_password, authenticator_password, system_password, feed_password,
              storage_secret, anon_key, service_key, provisioned)
            select %s, %s, owner_id, cluster_id, 'postgres', 'free', 'sleeping', %s, owner_password,
              authenticator_password, system_password, feed_password, storage_secret, anon_key,
              service_key, provisioned from projects where slug = 'default'""",
            rows,
        )
        control.execute(
            """insert into project_keys (project_id, kid, algorithm, secret, current)
            select p.id, k.kid, k.algorithm, k.secret, k.current from projects p,
              project_keys k join projects d on d.id = k.project_id and d.slug = 'default'
            where p.slug like 'asleep-%'"""
        )
        control.execute(
            """insert into project_settings (project_id, section, value)
            select id, 'cors', '{"origins": ["https://app.example.com"]}' from projects
            where slug like 'asleep-%'"""
        )


def bench_start(seconds: float, rounds: int) -> dict[str, float]:
    admin = Admin()
    starts: dict[str, list[float]] = {"none": [], "many": []}
    memory: dict[str, list[float]] = {"none": [], "many": []}
    try:
        for kind in ("none", "many"):
            if kind == "many":
                _fill(admin)
            for _ in range(rounds):
                admin.node.process.terminate()
                admin.node.process.wait(60)
                began = time.monotonic()
                admin.node.log.truncate(0)
                command = [*admin.node.base, "serve", "--workers", "1", "--port",
                           admin.node.url.rpartition(":")[2], "--admin-port",
                           admin.config["admin_url"].rpartition(":")[2]]  # fmt: skip
                admin.node.process = subprocess.Popen(
                    command, env=admin.node.environment, stdout=admin.node.log,
                    stderr=admin.node.log,
                )  # fmt: skip
                admin.node._wait()
                starts[kind].append(time.monotonic() - began)
                time.sleep(8)  # the maintenance has looked at all of them
                memory[kind].append(admin.memory())
        with psycopg.connect(admin.config["control_dsn"]) as control:
            sessions = control.execute(
                "select count(*) from pg_stat_activity where usename like 'ichi\\_%' "
                "and datname not in (select database from projects where slug = 'default')"
            ).fetchone()
    finally:
        admin.stop()
    none, many = statistics.median(memory["none"]), statistics.median(memory["many"])
    return {
        "start_s": statistics.median(starts["none"]),
        "start_thousand_s": statistics.median(starts["many"]), "target_s": 5.0,
        "memory_mb": none, "added_by_thousand_mb": many - none, "target_mb": 50.0,
        "connections_of_sleeping": float(sessions[0] if sessions else 0),
        "provisioned_version": float(provision.VERSION),
    }  # fmt: skip


def _kinds(name: str) -> tuple[str, ...]:
    """What loads a kind, a group, or several of them with + between them are."""
    single = {kind: (kind,) for kind in neighbour.KINDS} | neighbour.GROUPS
    kinds = [kind for one in name.split("+") for kind in single[one]]
    return tuple(dict.fromkeys(kinds))


def _neighbour(options: argparse.Namespace) -> dict[str, Any]:
    groups = neighbour.GROUPS
    if options.thorough:
        groups = {**{kind: (kind,) for kind in neighbour.KINDS}, "together": groups["together"]}
    if options.loads:
        groups = {name: _kinds(name) for name in options.loads}
    found = beside.run(
        lambda: Admin("both", maintenance_seconds="30"),  # as it is unless set otherwise
        options.seconds, options.rounds, groups, tuple(options.asked or beside.NAMES),
        tuple(options.tiers or ("pro", "free")),
    )  # fmt: skip
    if not options.json:
        print(beside.table(found.pop("loads")))
    return found


def main() -> int:
    parser = arguments(__doc__, ("routing", "create", "start", "wake", "neighbour"), timed=True)
    parser.add_argument("--thorough", action="store_true", help="each of the neighbour's loads")
    parser.add_argument("--loads", nargs="+", metavar="LOAD", help=(
        "these of the neighbour's loads or groups, with + between those at once: "
        + ", ".join((*neighbour.GROUPS, *neighbour.KINDS))
    ))  # fmt: skip
    parser.add_argument("--asked", nargs="+", choices=beside.NAMES,
                        help="these requests of the quiet projects")  # fmt: skip
    parser.add_argument("--tiers", nargs="+", choices=("pro", "free"),
                        help="of the quiet projects")  # fmt: skip
    options = parser.parse_args()
    try:
        for name in options.loads or ():
            _kinds(name)
    except KeyError as error:
        parser.error(f"there is no load {error}")
    parts: dict[str, Any] = {
        name: partial(part, options.seconds, options.rounds)
        for name, part in (
            ("routing", bench_routing), ("create", bench_create), ("start", bench_start),
            ("wake", bench_wake),
        )
    }  # fmt: skip
    parts["neighbour"] = partial(_neighbour, options)
    show(run_parts(parts, options.only), as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
