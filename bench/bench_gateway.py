"""What the gateway itself costs: the same HTTP server with and without it, in one run.

Three applications answer the same 21 bytes: `floor` does nothing else, `healthz` stops at the
gateway's first look, `service` goes the whole general way (host, origin, key, route, reply) to a
service that only answers. No database is asked; projects come from memory. The last figure is the
general way without an HTTP server around it, in microseconds a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import jwt

from bench.loads import LoadError, wrk
from server.base.events import Events
from server.base.hosts import HostRule
from server.base.http import Response
from server.base.metrics import Metrics
from server.base.ports import free_port
from server.base.project import Project, SigningKey
from server.gateway.edge import Edge

SECRET = "a secret for benchmarks of the gateway"
BODY = b'{"message":"a test!"}'
JSON = [("content-type", "application/json")]
SERVE = "import sys; from bench.bench_gateway import serve; serve(sys.argv[1], int(sys.argv[2]))"


class Directory:
    """One project, in memory."""

    def __init__(self) -> None:
        self.project = Project(
            id="p1", slug="default", flavor="postgres", tier="pro", url="http://127.0.0.1",
            keys=(SigningKey("k1", "HS256", SECRET),), anon_key="", service_key="",
            storage_secret="", authenticator_dsn=None, owner_dsn=None, system_dsn=None,
            mongo_url=None, settings={}, revision=1,
        )  # fmt: skip

    def get(self, slug: str) -> Project | None:
        return self.project if slug == "default" else None

    def on_change(self, callback: Any) -> None:
        """Nothing changes here."""


class Answer:
    """A service that only answers."""

    async def handle(self, request: Any) -> Response:
        return Response(200, [*JSON], BODY)


def edge() -> Edge:
    async def mount(route: Any) -> Any:
        return Answer()

    return Edge(
        Directory(), HostRule("localhost", "default", "http://127.0.0.1", "http://127.0.0.1/cdn"),
        mount, Events(), Metrics(), body_limit=1 << 20, ready=lambda: True, missing=list,
        wants_line=lambda status, seconds: status >= 500,
    )  # fmt: skip


async def floor(scope: Any, protocol: Any) -> None:
    protocol.response_bytes(200, JSON, BODY)


def _floor() -> Any:
    return floor


class Gateway:
    def __init__(self) -> None:
        self.edge = edge()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        async def start() -> None:
            self.edge.start()

        loop.run_until_complete(start())

    def __rsgi__(self, scope: Any, protocol: Any) -> Any:
        return self.edge.handle(scope, protocol)


LOADERS: dict[str, Any] = {"floor": _floor, "healthz": Gateway, "service": Gateway}


def serve(kind: str, port: int) -> None:
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, TaskImpl

    Granian(
        "bench", address="127.0.0.1", port=port, interface=Interfaces.RSGI, loop=Loops.uvloop,
        task_impl=TaskImpl.asyncio, http=HTTPModes.http1, runtime_mode=RuntimeModes.st,
        websockets=True, log_enabled=False, backlog=4096,
    ).serve(target_loader=LOADERS[kind], wrap_loader=False)  # fmt: skip


def headers() -> dict[str, str]:
    now = int(time.time())
    claims = {"role": "authenticated", "sub": "u1", "aud": "authenticated", "exp": now + 3600}
    return {
        "authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256', headers={'kid': 'k1'})}",
        "accept": "*/*",
        "user-agent": "bench",
    }


class _Headers:
    def __init__(self, pairs: dict[str, str]) -> None:
        self.pairs = list(pairs.items())
        self.names = list(pairs)

    def items(self) -> list[tuple[str, str]]:
        return self.pairs

    def keys(self) -> list[str]:
        return self.names


class _Scope:
    """The HTTP server's scope, as far as the gateway looks at it."""

    proto, method, path, query_string = "http", "GET", "/postgres/notes", "id=eq.7"
    scheme, client, authority = "http", "127.0.0.1:1", None

    def __init__(self, pairs: dict[str, str]) -> None:
        self.headers = _Headers(pairs)


class _Protocol:
    def response_bytes(self, status: int, headers: Any, body: bytes) -> None:
        if status != 200:
            raise LoadError(f"the gateway answers {status} {body!r}")


def alone(rounds: int = 20_000) -> float:
    """Microseconds of CPU a request takes the general way, median of seven runs."""
    gateway = edge()
    scope, protocol = _Scope({"host": "127.0.0.1:8000", **headers()}), _Protocol()

    async def run() -> float:
        await gateway.handle(scope, protocol)
        times = []
        for _ in range(7):
            started = time.process_time()
            for _ in range(rounds):
                await gateway.handle(scope, protocol)
            times.append((time.process_time() - started) / rounds * 1e6)
        return statistics.median(times)

    return asyncio.run(run())


def rate(kind: str, path: str, seconds: float, connections: int) -> dict[str, float]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVE, kind, str(port)])
    url = f"http://127.0.0.1:{port}{path}"
    try:
        deadline = time.monotonic() + 15
        while True:
            try:
                request = urllib.request.Request(url, headers=headers())
                urllib.request.urlopen(request).read()
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise LoadError(f"{kind} does not answer at {url}") from None
                time.sleep(0.05)
        wrk(url, seconds=1, connections=connections, headers=headers())
        return wrk(url, seconds=seconds, connections=connections, headers=headers())
    finally:
        process.terminate()
        process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"alone_us": round(alone(), 2)}
    for kind, path in (("floor", "/"), ("healthz", "/healthz"), ("service", "/postgres/notes")):
        found[kind] = rate(kind, path, options.seconds, options.connections)
    if options.json:
        print(json.dumps(found))
        return 0
    for kind in ("floor", "healthz", "service"):
        print(f"{kind:8} {found[kind]['rate']:9.0f}/s  p99 {found[kind]['p99_ms']:.2f} ms")
    print(f"the general way alone: {found['alone_us']:.2f} us a request")
    return 0


if __name__ == "__main__":
    sys.exit(main())
