"""The auth service of one worker: GET /auth/me, refreshes, and password sign-ins.

me: the bearer's session and record, read from the database on each request. refresh: every request
presents the token that an earlier answer gave, so each one rotates. login: against the bare
argon2id verification in as many threads, in this process; and what a stream of other requests
notices while sign-ins saturate the machine.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from argon2 import PasswordHasher

from bench.bench_http import Node, call
from bench.loads import LoadError, wrk
from bench.report import arguments, run_parts, show
from server.auth.hashing import LANES, MEMORY_KIB, PASSES

PASSWORD = "tangerine lamp 41"
OPEN = {"count": 1_000_000, "seconds": 1}
LIMITS = (
    "login_per_ip_and_email", "login_per_email", "login_per_ip", "login_project", "signup_per_ip",
    "signup_project", "refresh_per_session",
)  # fmt: skip
SESSIONS = 64

REFRESH = """
local tokens = {{ {tokens} }}
local first, last = 1, #tokens
request = function()
  local token = tokens[first]
  tokens[first] = nil
  first = first + 1
  return wrk.format("POST", nil, nil, '{{"refresh_token":"' .. token .. '"}}')
end
response = function(status, headers, body)
  last = last + 1
  tokens[last] = string.match(body, '"refresh_token":"([^"]+)"')
end
"""
LOGIN = """
request = function()
  return wrk.format("POST", nil, nil, '{{"email":"user0@example.com","password":"{password}"}}')
end
"""


class Client:
    """The node's auth endpoints with limits that a benchmark does not meet."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.headers = {
            "apikey": node.project["anon_key"],
            "content-type": "application/json",
        }
        settings = {"rate_limits": dict.fromkeys(LIMITS, OPEN)}
        self._put(settings)

    def _put(self, settings: dict[str, Any]) -> None:
        import subprocess

        command = [*self.node.base, "settings", "default", "set", "auth", json.dumps(settings)]
        done = subprocess.run(command, env=self.node.environment, capture_output=True, text=True)
        if done.returncode:
            raise LoadError(done.stderr[-500:])
        time.sleep(1)

    def post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        raw = call(f"{self.node.url}/auth{path}", self.headers, json.dumps(body).encode())
        found: dict[str, Any] = json.loads(raw)
        return found

    def sessions(self, count: int) -> list[dict[str, Any]]:
        """One session for each of `count` users, made when they are missing."""
        found = []
        for number in range(count):
            body = {"email": f"user{number}@example.com", "password": PASSWORD}
            try:
                found.append(self.post("/login", body))
            except OSError:
                self.post("/signup", body)
                found.append(self.post("/login", body))
        return found

    def me(self, token: str, seconds: float, connections: int) -> dict[str, float]:
        headers = {**self.headers, "authorization": f"Bearer {token}"}
        return wrk(
            f"{self.node.url}/auth/me", seconds=seconds, connections=connections, headers=headers
        )


def processor_seconds(node: Node) -> float:
    """What the node's processes, its database among them, have used so far."""
    import psutil

    total = 0.0
    for child in psutil.Process(node.process.pid).children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def bare(seconds: float, threads: int) -> tuple[float, float]:
    """The hash alone in `threads` threads: (verifications a second, processor seconds of each)."""
    hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES)
    stored = hasher.hash(PASSWORD)
    deadline = time.monotonic() + seconds

    def work() -> int:
        done = 0
        while time.monotonic() < deadline:
            hasher.verify(stored, PASSWORD)
            done += 1
        return done

    began, used = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(future.result() for future in [pool.submit(work) for _ in range(threads)])
    return total / (time.monotonic() - began), (time.process_time() - used) / total


def bench_me(client: Client, seconds: float, rounds: int) -> dict[str, float]:
    token = client.sessions(1)[0]["access_token"]
    client.me(token, 1, 16)
    runs = [client.me(token, seconds, 16) for _ in range(rounds)]
    return {
        "per_s": statistics.median(run["rate"] for run in runs),
        "p99_ms": statistics.median(run["p99_ms"] for run in runs),
        "target_per_s": 6_000,
    }


def bench_refresh(client: Client, seconds: float, rounds: int) -> dict[str, float]:
    runs = []
    for _ in range(rounds):
        tokens = [session["refresh_token"] for session in client.sessions(SESSIONS)]
        listed = ",".join(f'"{token}"' for token in tokens)
        runs.append(
            wrk(
                f"{client.node.url}/auth/refresh", seconds=seconds, connections=16,
                headers=client.headers, lua=REFRESH.format(tokens=listed),
            )
        )  # fmt: skip
    return {
        "per_s": statistics.median(run["rate"] for run in runs),
        "p99_ms": statistics.median(run["p99_ms"] for run in runs),
        "target_per_s": 1_500,
    }


def bench_login(client: Client, seconds: float, rounds: int) -> dict[str, float]:
    """The two sides of each comparison run right after one another; the ratio is the median of the
    rounds' ratios, so that what else the machine does weighs on both sides alike."""
    import os

    threads = os.cpu_count() or 1
    token = client.sessions(1)[0]["access_token"]
    lua = LOGIN.format(password=PASSWORD)

    def logins(length: float = seconds) -> dict[str, float]:
        return wrk(
            f"{client.node.url}/auth/login", seconds=length, connections=16,
            headers=client.headers, lua=lua,
        )  # fmt: skip

    rates, bares, of_bare, costs = [], [], [], []
    for _ in range(rounds):
        rate, cost = bare(seconds, threads)
        bares.append(rate)
        before = processor_seconds(client.node)
        run = logins()
        rates.append(run["rate"])
        of_bare.append(run["rate"] / rate)
        costs.append(cost * run["requests"] / (processor_seconds(client.node) - before))
    alone, beside, ratios = [], [], []
    for _ in range(3 * rounds):
        alone.append(client.me(token, 1, 1)["p99_ms"])
        flood = threading.Thread(target=logins, args=(2,))
        flood.start()
        time.sleep(0.5)
        beside.append(client.me(token, 1, 1)["p99_ms"])
        flood.join()
        ratios.append(beside[-1] / alone[-1])
    return {
        "per_s": statistics.median(rates), "bare_hash_per_s": statistics.median(bares),
        "of_bare": statistics.median(of_bare),
        "of_bare_by_processor_time": statistics.median(costs), "target_of_bare": 0.9,
        "other_p99_alone_ms": statistics.median(alone),
        "other_p99_beside_ms": statistics.median(beside),
        "other_p99_ratio": statistics.median(ratios), "target_p99_ratio": 2.0,
    }  # fmt: skip


def main() -> int:
    options = arguments(__doc__, ("me", "refresh", "login"), timed=True).parse_args()
    node = Node()
    try:
        client = Client(node)
        parts = {
            name: partial(part, client, options.seconds, options.rounds)
            for name, part in (("me", bench_me), ("refresh", bench_refresh), ("login", bench_login))
        }
        results = run_parts(parts, options.only)
    finally:
        node.stop()
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
