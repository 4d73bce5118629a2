"""The processes of a node besides its own: started in order, watched, stopped in reverse."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

PR_SET_PDEATHSIG = 1


class Child(msgspec.Struct, kw_only=True):
    """command: argv. ready: asked until True, for at most ready_seconds. stop_seconds: between
    SIGTERM and SIGKILL. A child that ends by itself is started again, ever more slowly."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}
    ready: Callable[[], bool] | None = None
    ready_seconds: float = 30.0
    stop_seconds: float = 20.0
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    retry_at: float = 0.0


class ChildError(RuntimeError):
    """A child did not become ready."""


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Children:
    """For the main thread only: the kernel ends a child when the thread that forked it ends."""

    def __init__(self) -> None:
        self.all: list[Child] = []

    def start(self, child: Child) -> None:
        """Starts a child and waits until it is ready; ChildError when it ends or takes too long."""
        self.all.append(child)
        self._spawn(child)
        if child.ready is None:
            return
        deadline = time.monotonic() + child.ready_seconds
        while time.monotonic() < deadline:
            assert child.process is not None
            if child.process.poll() is not None:
                raise ChildError(f"{child.name} stopped while starting, see the lines above")
            if child.ready():
                return
            time.sleep(0.02)
        raise ChildError(f"{child.name} did not become ready within {child.ready_seconds:.0f} s")

    def _spawn(self, child: Child) -> None:
        child.started = time.monotonic()
        child.process = subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **child.environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches the node, which drains first
            preexec_fn=_die_with_parent,
        )

    def watch(self) -> None:
        """Starts ended children again. Call every second or so."""
        now = time.monotonic()
        for child in self.all:
            process = child.process
            if process is not None and process.poll() is not None:
                lived = now - child.started
                child.failures = 0 if lived > 60 else child.failures + 1
                child.retry_at = now + min(30.0, 0.2 * 2**child.failures)
                child.process = None
                print(
                    f"{child.name} ended with {process.returncode}; starting it again",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
            if child.process is None and now >= child.retry_at:
                self._spawn(child)

    def stop(self) -> None:
        """SIGTERM to the last started first; each gets its time to finish its requests."""
        for child in reversed(self.all):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(child.stop_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)
        self.all.clear()
