"""What functions write and what is counted of them: lines of their projects' logs, and metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from server.base.metrics import LIVE, Metrics, MetricsFile
from server.functions.logs import Logs
from server.functions.running import Running

LEVELS = ("debug", "info", "warn", "error")
MAX_TEXT = 16_384  # characters of a line
Labels = tuple[tuple[str, str], ...]


class Journal:
    """Of all projects of a node. folder: of the logs."""

    def __init__(self, folder: Path, metrics: Path) -> None:
        self.logs = Logs(folder)
        self.metrics = Metrics()
        self.file = MetricsFile(self.metrics, metrics)

    def line(self, running: Running, level: str, text: str, call: str | None = None,
             always: bool = True) -> None:  # fmt: skip
        """A line of the process's project. call: id of the invocation. always: also when the
        project writes more than it may."""
        version = running.version
        self.about(running.project.id, version.name, version.version, level, text, call, always)

    def about(self, project_id: str, name: str, version: int, level: str, text: str,
              call: str | None = None, always: bool = True) -> None:  # fmt: skip
        """The same, about a function of which no process need run."""
        line: dict[str, Any] = {
            "function": name, "version": version, "level": level, "text": text,
        }  # fmt: skip
        if call:
            line["invocation"] = call[:128]
        self.logs.of(project_id).add(line, always=always)

    def logged(self, running: Running, message: dict[str, Any]) -> None:
        """A message of boot.js about something that the function logged."""
        level, text, call = message.get("l"), message.get("x"), message.get("id")
        if not isinstance(text, str):
            return
        text = text[:MAX_TEXT]
        if message.get("c"):
            text += " … (cut)"
        known = level if level in LEVELS else "info"
        self.line(running, known, text, call if isinstance(call, str) else None, always=False)

    def wrote(self, running: Running, text: str) -> None:
        """What came on standard output in another form."""
        if text:
            self.line(running, "info", text[:MAX_TEXT], always=False)

    def ended(self, running: Running, reason: str) -> None:
        self.metrics.count("ichibase_function_ends_total", (*_labels(running), ("reason", reason)))

    def used(self, running: Running, seconds: float) -> None:
        """Processor time."""
        self.metrics.count("ichibase_function_cpu_seconds_total", _labels(running), seconds)

    def called(self, project: str, name: str, count: list[float]) -> None:
        """Calls that a worker has had: how many, how many of them failed, their seconds."""
        labels = (("project", project), ("function", name))
        calls, failed, seconds = count
        for outcome, number in (("ok", calls - failed), ("failed", failed)):
            if number:
                self.metrics.count(
                    "ichibase_function_calls_total", (*labels, ("outcome", outcome)), number
                )
        self.metrics.count("ichibase_function_seconds_total", labels, seconds)

    @staticmethod
    def gauges(spares: int, running: list[Running]) -> list[tuple[str, Labels, float]]:
        """How many processes there are, and the memory of those that serve something."""
        memory: dict[Labels, float] = {}
        processes: dict[Labels, float] = {}
        for one in running:
            labels = _labels(one)
            memory[labels] = memory.get(labels, 0) + one.memory
            live = (("project", one.project.slug), ("kind", "function_processes"))
            processes[live] = processes.get(live, 0) + 1
        return [
            ("ichibase_function_processes", (("state", "blank"),), spares),
            ("ichibase_function_processes", (("state", "assigned"),), len(running)),
            *(("ichibase_function_memory_bytes", labels, used) for labels, used in memory.items()),
            *((LIVE, labels, number) for labels, number in processes.items()),
        ]


def _labels(running: Running) -> Labels:
    return (("project", running.project.slug), ("function", running.version.name))


def say(text: str) -> None:
    """A line in the node's log."""
    print(f"functions: {text}", file=sys.stderr, flush=True)
