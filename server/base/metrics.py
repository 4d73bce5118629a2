"""Counts of one worker, and their sum over all workers as Prometheus text.

Each worker writes what it has counted into a file of its own, `<pid>.json` in the node's metrics
folder, at most once a second and only when something changed; whoever serves /metrics adds the
files up. A file outlives its worker, so a counter never goes backwards while the node runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from ichicore.timer import Timer

Labels = tuple[tuple[str, str], ...]
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LIVE = "ichibase_project_live"  # labels: project, kind
HELP = {
    LIVE: ("gauge", "What projects have open: sessions, sockets, processes."),
    "ichibase_requests_total": ("counter", "Requests answered, by route and status class."),
    "ichibase_request_seconds": ("histogram", "Time to the answer, by route."),
    "ichibase_requests_in_flight": ("gauge", "Requests being served."),
    "ichibase_client_gone_total": ("counter", "Requests whose client left before the answer."),
    "ichibase_token_cache_hits_total": ("counter", "Credentials found verified."),
    "ichibase_token_cache_misses_total": ("counter", "Credentials that had to be verified."),
    "ichibase_pool_connections": ("gauge", "Open database connections, by state."),
    "ichibase_pool_waiting": ("gauge", "Requests waiting for a connection."),
    "ichibase_feeds": ("gauge", "Change feeds that are read."),
    "ichibase_feed_lag_bytes": ("gauge", "Log of the feed that is furthest behind, in bytes."),
    "ichibase_function_calls_total": ("counter", "Calls of edge functions, by outcome."),
    "ichibase_function_seconds_total": ("counter", "Time that calls of edge functions took."),
    "ichibase_function_cpu_seconds_total": ("counter", "Processor time of edge functions."),
    "ichibase_function_memory_bytes": ("gauge", "Memory of an edge function's processes."),
    "ichibase_function_ends_total": ("counter", "Function processes ended, by reason."),
    "ichibase_function_processes": ("gauge", "Processes of edge functions, by state."),
    "ichibase_faults_total": ("counter", "Faults of the server itself."),
    "ichibase_projects": ("gauge", "Projects, by state."),
    "ichibase_project_bytes": ("gauge", "What a project's databases and files take, by kind."),
    "ichibase_project_quota_ratio": ("gauge", "What a project uses of a quota, 1 for all of it."),
    "ichibase_project_requests_total": ("counter", "Requests of a project."),
    "ichibase_backups_total": ("counter", "Backups made, by outcome."),
    "ichibase_backup_age_seconds": ("gauge", "Age of a project's newest backup."),
    "ichibase_maintenance_leader": ("gauge", "Whether this node does the maintenance."),
    "ichibase_maintenance_failures_total": ("counter", "Maintenance tasks that failed, by task."),
    "ichibase_lost_connections_total": ("counter", "Connections of the node that went away."),
}


class Metrics:
    """What one worker counts. gauges: callables asked when a snapshot is taken, each giving
    (name, labels, value) triples."""

    def __init__(self) -> None:
        self.routes: dict[str, Timer] = {}
        self.counters: dict[tuple[str, Labels], float] = {}
        self.gauges: list[Callable[[], Iterable[tuple[str, Labels, float]]]] = []

    def route(self, name: str) -> Timer:
        """The timer of a route, made on first use."""
        timer = self.routes.get(name)
        if timer is None:
            timer = self.routes[name] = Timer(BUCKETS)
        return timer

    def count(self, name: str, labels: Labels = (), by: float = 1) -> None:
        key = (name, labels)
        self.counters[key] = self.counters.get(key, 0) + by

    def snapshot(self) -> bytes:
        """All counts as JSON."""
        gauges = [(name, labels, value) for read in self.gauges for name, labels, value in read()]
        return orjson.dumps(
            {
                "routes": {
                    name: [timer.classes, timer.buckets, timer.seconds]
                    for name, timer in self.routes.items()
                },
                "counters": [[name, labels, value] for (name, labels), value in
                             self.counters.items()],
                "gauges": gauges,
            }
        )  # fmt: skip


class MetricsFile:
    """Keeps a worker's snapshot on disk."""

    def __init__(self, metrics: Metrics, folder: Path) -> None:
        self.metrics = metrics
        self.path = folder / f"{os.getpid()}.json"
        self._last = b""

    def write(self) -> None:
        """Writes the snapshot when it has changed."""
        found = self.metrics.snapshot()
        if found == self._last:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".new")
        partial.write_bytes(found)
        partial.replace(self.path)
        self._last = found


def clear(folder: Path) -> None:
    """Forgets the counts of an earlier run; for the node, before it starts workers."""
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    return pid.isdigit() and Path("/proc", pid).exists()


def _name(labels: Iterable[Iterable[str]]) -> str:
    pairs = []
    for name, value in labels:
        text = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        pairs.append(f'{name}="{text}"')
    return "{" + ",".join(pairs) + "}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def render(folder: Path) -> bytes:
    """The sum of all workers' files in the Prometheus text format. Gauges of workers that have
    ended do not count."""
    routes: dict[str, Timer] = {}
    samples: dict[str, dict[str, float]] = {}
    for data, alive in _files(folder):
        for name, (classes, buckets, seconds) in data["routes"].items():
            timer = routes.get(name)
            if timer is None:
                timer = routes[name] = Timer(BUCKETS)
            timer.add(classes, buckets, seconds)
        rows = list(data["counters"])
        if alive:
            rows += data["gauges"]
        for name, labels, value in rows:
            family = samples.setdefault(name, {})
            family[_name(labels)] = family.get(_name(labels), 0) + value
    return ("\n".join([*_route_lines(routes), *_sample_lines(samples)]) + "\n").encode()


def live(folder: Path, project: str) -> dict[str, int]:
    """What a project has open on this node, by kind, as its processes last told."""
    found: dict[str, int] = {}
    for data, alive in _files(folder):
        for name, labels, value in data["gauges"] if alive else ():
            if name == LIVE and (shown := dict(labels))["project"] == project:
                found[shown["kind"]] = found.get(shown["kind"], 0) + int(value)
    return found


def _files(folder: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """What each process has told, and whether it is still there."""
    for path in sorted(folder.glob("*.json")):
        try:
            data = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # replaced while being read, or from a machine that lost power
        yield data, _alive(path.stem)


def _header(name: str) -> list[str]:
    kind, text = HELP.get(name, ("untyped", name))
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _route_lines(routes: dict[str, Timer]) -> list[str]:
    lines = _header("ichibase_requests_total")
    for route, timer in sorted(routes.items()):
        for number, count in enumerate(timer.classes):
            if count:
                labels = _name((("route", route), ("status", f"{number}xx")))
                lines.append(f"ichibase_requests_total{labels} {count}")
    lines += _header("ichibase_request_seconds")
    for route, timer in sorted(routes.items()):
        total = 0
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], timer.buckets, strict=True):
            total += count
            labels = _name((("route", route), ("le", bound)))
            lines.append(f"ichibase_request_seconds_bucket{labels} {total}")
        labels = _name((("route", route),))
        lines.append(f"ichibase_request_seconds_sum{labels} {timer.seconds!r}")
        lines.append(f"ichibase_request_seconds_count{labels} {total}")
    return lines


def _sample_lines(samples: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for name, family in sorted(samples.items()):
        lines += _header(name)
        lines += [f"{name}{labels} {_number(value)}" for labels, value in sorted(family.items())]
    return lines
