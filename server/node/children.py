"""The processes of a node besides its own: started in order, watched, stopped in reverse.

A room adds processes of its own by a module `server/<room>/child.py` with a function
`children(settings, config) -> list[Child]`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import msgspec

from server.base.context import NodeConfig
from server.base.lifeline import die_with_parent
from server.node.settings import NodeSettings

ROOMS = ("postgres", "mongo", "auth", "realtime", "storage", "functions", "maintenance")
POLL = 0.02  # seconds between looks at a child that starts or stops
LONGEST_RETRY = 30.0  # seconds
WAS_WELL = 60.0  # seconds after which an end is no longer counted as a failed start


class Child(msgspec.Struct, kw_only=True):
    """command: argv. ready: asked until True, for at most ready_seconds. stop_seconds: between
    SIGTERM and SIGKILL. order: lower ones start first and stop last (services 20, admin 30,
    gateway 40). A child that ends by itself is started again, ever more slowly, unless `restart`
    is False. late: started when all others are ready, and not waited for; those who need it try
    again or do without. wanted: asked until True before the first start, at each look at the
    children. When the node is killed the kernel kills the child."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}
    order: int = 20
    ready: Callable[[], bool] | None = None
    ready_seconds: float = 60.0
    stop_seconds: float = 20.0
    restart: bool = True
    late: bool = False
    wanted: Callable[[], bool] | None = None
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    retry_at: float = 0.0


class ChildError(RuntimeError):
    """A child did not become ready."""


def of_rooms(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """The children that the rooms of this build register."""
    found: list[Child] = []
    for room in ROOMS:
        name = f"server.{room}.child"
        if importlib.util.find_spec(name) is not None:
            found += importlib.import_module(name).children(settings, config)
    return found


class Children:
    """For the main thread only: the kernel ends a child when the thread that forked it ends.

    hurry: set it to True while stop() runs and what is left is killed at once.
    """

    def __init__(self) -> None:
        self.all: list[Child] = []
        self.hurry = False

    def start(self, children: list[Child]) -> None:
        """Starts them in their order; those of the same order side by side. ChildError when one
        ends or takes too long."""
        self.all += sorted(children, key=lambda child: child.order)
        prompt = [child for child in children if not child.late]
        for order in sorted({child.order for child in prompt}):
            together = [child for child in prompt if child.order == order]
            for child in together:
                self._spawn_wanted(child)
            for child in together:
                if child.process is not None:
                    self._wait_ready(child)
        for child in children:
            if child.late:
                self._spawn_wanted(child)

    def _spawn_wanted(self, child: Child) -> None:
        if child.wanted is None or child.wanted():
            self._spawn(child)

    @staticmethod
    def _wait_ready(child: Child) -> None:
        if child.ready is None:
            return
        deadline = time.monotonic() + child.ready_seconds
        while time.monotonic() < deadline:
            assert child.process is not None
            if child.process.poll() is not None:
                raise ChildError(f"{child.name} stopped while starting, see the lines above")
            if child.ready():
                return
            time.sleep(POLL)
        raise ChildError(f"{child.name} did not become ready within {child.ready_seconds:.0f} s")

    @staticmethod
    def _spawn(child: Child) -> None:
        child.started = time.monotonic()
        child.process = subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **child.environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches the node, which drains first
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    def watch(self) -> float:
        """Starts ended children again. Gives the seconds after which to call it again, at the
        latest; the end of a child is a reason to call it earlier."""
        now = time.monotonic()
        pause = LONGEST_RETRY
        for child in self.all:
            process = child.process
            if process is not None and process.poll() is not None:
                lived = now - child.started
                child.failures = 0 if lived > WAS_WELL else child.failures + 1
                child.retry_at = now + min(LONGEST_RETRY, 0.1 * 2**child.failures)
                _end_session(process)
                child.process = None
                what = "starting it again" if child.restart else "it is not started again"
                print(
                    f"{child.name} ended with {process.returncode}; {what}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            if child.process is None and child.restart:
                if child.started == 0 and child.wanted is not None and not child.wanted():
                    continue
                if now >= child.retry_at:
                    self._spawn(child)
                else:
                    pause = min(pause, child.retry_at - now)
        return pause

    def stop(self) -> None:
        """SIGTERM to the last started first; each gets its time to finish its requests."""
        for child in reversed(self.all):
            process = child.process
            if process is None:
                continue
            if process.poll() is None:
                process.terminate()
            deadline = time.monotonic() + child.stop_seconds
            while process.poll() is None and time.monotonic() < deadline and not self.hurry:
                time.sleep(POLL)
            _end_session(process)
            process.wait()
            child.process = None
        self.all.clear()


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a child and of the processes it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def answers(host: str, port: int) -> bool:
    """Whether a listener of this machine says that it is ready."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    try:
        with urllib.request.urlopen(f"http://{shown}:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
