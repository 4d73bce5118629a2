"""Files of one worker against nginx serving the same bytes, with the same client on the same
cores; and uploads against a copy to the same disk.

small, conditional: a public file of 1 KB, read whole, in a range, and as "not modified". large:
one of 100 MB. upload: 100 MB by PUT with the secret key, against a copy of the same file that is on
the same disk when it is over, as the upload is, and against one that is in memory then. memory: the
worker's resident
memory with 50 uploads under way.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.bench_http import Node, call
from bench.loads import LoadError, wrk
from bench.report import arguments, run_parts, show
from server.base.ports import free_port

KB, MB = 1024, 1024 * 1024
LARGE = 100 * MB
CONNECTIONS = 32

NGINX = """
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
user {user};
events {{ worker_connections 1024; }}
http {{
  sendfile on;
  tcp_nopush on;
  access_log off;
  keepalive_requests 100000000;
  open_file_cache max=1000;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/files;
    add_header Cache-Control "public, max-age=60";
    add_header X-Content-Type-Options nosniff;
    add_header Access-Control-Allow-Origin *;
    etag on;
  }}
}}
"""


class Nginx:
    """One nginx worker over a folder of files."""

    def __init__(self, folder: Path) -> None:
        import pwd

        self.folder = folder
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        config = folder / "nginx.conf"
        user = pwd.getpwuid(os.geteuid()).pw_name
        config.write_text(NGINX.format(folder=folder, port=port, user=user))
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        try:
            self.process = subprocess.Popen([program, "-c", str(config), "-g", "daemon off;"])
        except FileNotFoundError:
            raise LoadError("nginx is missing: apt-get install nginx-light") from None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                call(f"{self.url}/small.bin", {})
                return
            except OSError:
                time.sleep(0.05)
        raise LoadError("nginx did not start")

    def worker(self) -> int:
        """Its process id."""
        import psutil

        return int(psutil.Process(self.process.pid).children()[0].pid)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Site:
    """The same two files in both."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.folder = Path(tempfile.mkdtemp(prefix="ichi-bench-files-"))
        self.folder.chmod(0o755)
        (self.folder / "files").mkdir()
        small, large = self.folder / "files" / "small.bin", self.folder / "files" / "large.bin"
        small.write_bytes(os.urandom(KB))
        with open(large, "wb") as file:
            for _ in range(LARGE // MB):
                file.write(os.urandom(MB))
        self.large = large
        self.nginx = Nginx(self.folder)
        self.own = f"{node.url}/cdn/default/public"
        self.port = int(node.url.rpartition(":")[2])
        for path in (small, large):
            self.upload(f"public/{path.name}", path)

    def upload(self, name: str, path: Path) -> float:
        """Seconds of one PUT of a file with the secret key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        began = time.perf_counter()
        with open(path, "rb") as file:
            connection.putrequest("PUT", f"/storage/object/{name}")
            connection.putheader("authorization", f"Bearer {self.node.project['service_key']}")
            connection.putheader("content-length", str(path.stat().st_size))
            connection.endheaders()
            connection.sock.sendfile(file)
        answer = connection.getresponse()
        body = answer.read()
        taken = time.perf_counter() - began
        connection.close()
        if answer.status != 200:
            raise LoadError(f"an upload was answered with {answer.status}: {body[:200]!r}")
        return taken

    def stop(self) -> None:
        self.nginx.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Side:
    """One of the two servers, and the processor time its worker has used."""

    def __init__(self, url: str, pid: int, headers: dict[str, str]) -> None:
        import psutil

        self.url = url
        self.headers = headers
        self.process = psutil.Process(pid)
        self.rates: list[float] = []
        self.micros: list[float] = []

    def warm(self, name: str, connections: int) -> None:
        self.run(name, 1, connections)
        self.rates.clear()
        self.micros.clear()

    def run(self, name: str, seconds: float, connections: int) -> float:
        before = self.process.cpu_times()
        found = wrk(
            f"{self.url}/{name}", seconds=seconds, connections=connections, headers=self.headers,
            timeout=30,
        )  # fmt: skip
        after = self.process.cpu_times()
        used = after.user + after.system - before.user - before.system
        self.rates.append(found["rate"])
        self.micros.append(used * 1e6 / max(1, found["requests"]))
        return found["rate"]


def pair(
    site: Site, name: str, seconds: float, rounds: int, own: dict[str, str], other: dict[str, str],
    connections: int = CONNECTIONS,
) -> dict[str, float]:  # fmt: skip
    """Both sides in turn: medians of requests a second and of the worker's processor time for one
    request, and of the rounds' quotients."""
    ours = Side(site.own, site.node.workers()[0], own)
    theirs = Side(site.nginx.url, site.nginx.worker(), other)
    for side in (ours, theirs):
        side.warm(name, connections)
    quotients = []
    for _ in range(rounds):
        rate = ours.run(name, seconds, connections)
        quotients.append(rate / theirs.run(name, seconds, connections))
    own_cpu, nginx_cpu = statistics.median(ours.micros), statistics.median(theirs.micros)
    return {
        "per_s": statistics.median(ours.rates), "nginx_per_s": statistics.median(theirs.rates),
        "of_nginx": statistics.median(quotients), "cpu_us": own_cpu, "nginx_cpu_us": nginx_cpu,
        "of_nginx_by_cpu": nginx_cpu / own_cpu,
    }  # fmt: skip


def bench_small(site: Site, seconds: float, rounds: int) -> dict[str, Any]:
    return {**pair(site, "small.bin", seconds, rounds, {}, {}), "goal": "of_nginx >= 0.35"}


def etag_of(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(url) as answer:
        return str(answer.headers["etag"])


def bench_conditional(site: Site, seconds: float, rounds: int) -> dict[str, Any]:
    """The three kinds of request in turn within each round, so that what else the machine does
    meets all of them."""
    tags = [
        {"If-None-Match": etag_of(f"{url}/small.bin").replace('"', '\\"')}
        for url in (site.own, site.nginx.url)
    ]
    piece = {"Range": "bytes=100-199"}
    kinds = {"whole": ({}, {}), "304": tuple(tags), "range": (piece, piece)}
    worker, other = site.node.workers()[0], site.nginx.worker()
    sides = {
        name: (Side(site.own, worker, own), Side(site.nginx.url, other, theirs))
        for name, (own, theirs) in kinds.items()
    }
    for pair_of_sides in sides.values():
        for side in pair_of_sides:
            side.warm("small.bin", CONNECTIONS)
    of_nginx: dict[str, list[float]] = {name: [] for name in sides}
    of_whole: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(max(5, rounds)):
        whole = 0.0
        for name, (own, theirs) in sides.items():
            rate = own.run("small.bin", seconds, CONNECTIONS)
            whole = whole or rate
            of_whole[name].append(rate / whole)
            of_nginx[name].append(rate / theirs.run("small.bin", seconds, CONNECTIONS))
    found: dict[str, Any] = {}
    whole_cpu = statistics.median(sides["whole"][0].micros)
    for name, (own, _) in sides.items():
        cpu = statistics.median(own.micros)
        found |= {
            f"{name}_per_s": statistics.median(own.rates), f"{name}_cpu_us": cpu,
            f"{name}_of_nginx": statistics.median(of_nginx[name]),
        }  # fmt: skip
        if name != "whole":
            found[f"{name}_of_whole"] = statistics.median(of_whole[name])
            found[f"{name}_of_whole_by_cpu"] = whole_cpu / cpu
    return {**found, "goal": "304_of_whole and range_of_whole about 1"}


def bench_large(site: Site, seconds: float, rounds: int) -> dict[str, Any]:
    """To one client, in turn from either side. of_nginx: of the bytes a second of all rounds
    together; with as few processors as threads at work, a round is fast or slow by where they
    run."""
    taken: dict[str, list[float]] = {site.own: [], site.nginx.url: []}
    for number in range(max(15, rounds) + 1):
        for url, found in taken.items():
            done = subprocess.run(
                ["curl", "-s", "-o", "/dev/null", "-w", "%{time_total}", f"{url}/large.bin"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            if number:  # the first one warms
                found.append(float(done.stdout))
    ours, nginx = taken.values()
    size = LARGE / MB
    several = pair(site, "large.bin", max(2, seconds), rounds, {}, {}, connections=4)
    return {
        "mb_per_s": size / statistics.mean(ours), "nginx_mb_per_s": size / statistics.mean(nginx),
        "of_nginx": statistics.mean(nginx) / statistics.mean(ours),
        "of_nginx_by_median": statistics.median(nginx) / statistics.median(ours),
        "of_nginx_by_best": min(nginx) / min(ours),
        **{f"4_clients_{key}": value for key, value in several.items()}, "goal": "of_nginx >= 0.85",
    }  # fmt: skip


def copy(source: Path, target: Path, *, durable: bool) -> float:
    """Seconds of a copy by read and write, flushed to the disk when `durable`."""
    began = time.perf_counter()
    with open(source, "rb", buffering=0) as a, open(target, "wb", buffering=0) as b:
        while chunk := a.read(MB):
            b.write(chunk)
        if durable:
            os.fsync(b.fileno())
    return time.perf_counter() - began


def forget(folder: Path) -> None:
    """Lets the kernel give back the memory in which it keeps large files of the folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size == LARGE:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def bench_upload(site: Site, seconds: float, rounds: int) -> dict[str, Any]:
    """One client each, in turn. An upload is on the disk when it is answered, as a flushed copy is
    when it is over; a copy that is not flushed is in memory. Each makes a new file, and begins when
    nothing waits to be written. On a virtual machine memory that is used for the first time may
    cost more than all the rest, so each is measured twice: in memory that was given back just
    before, and (fresh) in other."""
    import psutil

    worker = psutil.Process(site.node.workers()[0])
    folder = site.node.folder
    runs: dict[str, Callable[[str], float]] = {
        "upload": lambda name: site.upload(f"bench/{name}.bin", site.large),
        "unflushed": lambda name: copy(site.large, folder / f"unflushed{name}.bin", durable=False),
        "flushed": lambda name: copy(site.large, folder / f"flushed{name}.bin", durable=True),
    }
    results: dict[str, Any] = {}
    for kind in ("", "fresh_"):
        times: dict[str, list[float]] = {name: [] for name in runs}
        used = 0.0
        for number in range(max(9, rounds) + 1):
            for name in list(runs)[number % 3 :] + list(runs)[: number % 3]:
                os.sync()
                if not kind:
                    forget(folder)
                before = worker.cpu_times()
                taken = runs[name](f"{kind}{number}")
                after = worker.cpu_times()
                if number:  # the first one warms
                    times[name].append(taken)
                    if name == "upload":
                        used += after.user + after.system - before.user - before.system
        upload, unflushed, flushed = (statistics.median(found) for found in times.values())
        best = {name: min(found) for name, found in times.items()}
        size = LARGE / MB
        results |= {
            f"{kind}mb_per_s": size / upload, f"{kind}unflushed_copy_mb_per_s": size / unflushed,
            f"{kind}flushed_copy_mb_per_s": size / flushed,
            f"{kind}of_unflushed_copy": unflushed / upload,
            f"{kind}of_flushed_copy": flushed / upload,
            f"{kind}of_unflushed_copy_by_best": best["unflushed"] / best["upload"],
            f"{kind}of_flushed_copy_by_best": best["flushed"] / best["upload"],
            f"{kind}worker_cpu_ms": used * 1000 / len(times["upload"]),
        }  # fmt: skip
        for path in folder.glob("*.bin"):
            path.unlink()
    return {**results, "goal": "of_flushed_copy >= 0.6"}


async def many(site: Site, count: int, size: int) -> None:
    """That many uploads side by side, each as fast as it is taken."""
    chunk = bytes(64 * KB)

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(
            f"PUT /storage/object/bench/many{number} HTTP/1.1\r\nhost: localhost\r\n"
            f"authorization: Bearer {site.node.project['service_key']}\r\n"
            f"content-length: {size}\r\nconnection: close\r\n\r\n".encode()
        )
        for _ in range(size // len(chunk)):
            writer.write(chunk)
            await writer.drain()
        answer = await reader.read()
        writer.close()
        if b" 200 " not in answer[:20]:
            raise LoadError(f"an upload was answered with {answer[:200]!r}")

    await asyncio.gather(*(one(number) for number in range(count)))


def bench_memory(site: Site, seconds: float, rounds: int) -> dict[str, Any]:
    import psutil

    worker = psutil.Process(site.node.workers()[0])
    asyncio.run(many(site, 2, MB))
    idle, most, running = worker.memory_info().rss, 0, True

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, worker.memory_info().rss)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    asyncio.run(many(site, 50, 20 * MB))
    running = False
    watcher.join()
    return {
        "idle_mb": idle / MB, "most_mb": most / MB, "above_mb": (most - idle) / MB,
        "goal": "above_mb < 30",
    }  # fmt: skip


PARTS = {
    "small": bench_small, "conditional": bench_conditional, "large": bench_large,
    "upload": bench_upload, "memory": bench_memory,
}  # fmt: skip


def main() -> int:
    options = arguments(__doc__, PARTS, timed=True).parse_args()
    node = Node()
    try:
        site = Site(node)
        try:
            parts = {
                name: partial(part, site, options.seconds, options.rounds)
                for name, part in PARTS.items()
            }
            results = run_parts(parts, options.only)
        finally:
            site.stop()
    finally:
        node.stop()
    show(results, as_json=options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
