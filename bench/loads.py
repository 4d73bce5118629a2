"""Load generators as subprocesses: wrk for HTTP, pgbench for the database alone.

Each returns plain numbers: requests (or transactions) a second and latencies in milliseconds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from server.node.embedded_pg import binaries


class LoadError(RuntimeError):
    """The load generator could not run, or the server answered something else than expected."""


def wrk(
    url: str,
    *,
    seconds: float,
    connections: int,
    threads: int = 1,
    headers: dict[str, str] | None = None,
    lua: str = "",
    timeout: float = 2,
) -> dict[str, float]:
    """Runs wrk. `lua` may define request(); answers other than 2xx are an error of the run.

    Returns {"rate", "p50_ms", "p90_ms", "p99_ms", "requests"}.
    """
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items()]
    report = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d %d %d %d\\n", summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    e.status, e.connect, e.read, e.write, e.timeout))
end
"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(lines) + "\n" + lua + report)
        script.flush()
        command = [
            "wrk",
            f"-t{threads}",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--timeout",
            f"{timeout:g}s",
            "-s",
            script.name,
        ]
        try:
            done = subprocess.run([*command, url], capture_output=True, text=True)
        except FileNotFoundError:
            raise LoadError("wrk is missing: apt-get install wrk") from None
    found = re.search(r"RESULT (.*)", done.stdout)
    if done.returncode or not found:
        raise LoadError(f"wrk failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    requests, micros, p50, p90, p99, bad, *broken, late = (int(x) for x in found[1].split())
    if bad or any(broken) or late:
        connects, reads, writes = broken
        raise LoadError(
            f"{bad} answers were not 2xx, {late} took longer than 2 s; connections broke: "
            f"{connects} when made, {reads} when read, {writes} when written ({url})"
        )
    return {
        "rate": requests / (micros / 1e6),
        "p50_ms": p50 / 1000,
        "p90_ms": p90 / 1000,
        "p99_ms": p99 / 1000,
        "requests": requests,
    }


def pgbench(
    dsn: str, script: str, *, seconds: float, clients: int, threads: int = 1
) -> dict[str, float]:
    """Runs a pgbench script with prepared statements. Returns {"rate", "latency_ms"}."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [str(Path(binaries()) / "pgbench"), "-n", "-M", "prepared", "-f", file.name]
        command += ["-T", str(max(1, round(seconds))), "-c", str(clients), "-j", str(threads), dsn]
        done = subprocess.run(command, capture_output=True, text=True)
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    latency = re.search(r"latency average = ([\d.]+)", done.stdout)
    if done.returncode or not rate or not latency:
        raise LoadError(f"pgbench failed: {done.stderr[-500:]}")
    failed = re.search(r"number of failed transactions: (\d+)", done.stdout)
    if failed and int(failed[1]):
        raise LoadError(f"{failed[1]} pgbench transactions failed")
    return {"rate": float(rate[1]), "latency_ms": float(latency[1])}
