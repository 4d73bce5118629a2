"""Processor time and memory of function processes, and who is charged for it.

A process serves several calls at once, so what it used since the last look is shared among the
calls that were running: those that workers report as slow, and those that came and went.
"""

from __future__ import annotations

from typing import Any, NamedTuple

IDLE_CALL = ""  # what a process does while no call runs
RECYCLE_CPU = 300.0  # seconds of processor time after which a process is replaced


class Verdict(NamedTuple):
    """reason: cpu or memory. call: id of the invocation it is laid to, if one."""

    reason: str
    call: str
    detail: str


class Charge:
    """What one process has been charged for."""

    __slots__ = ("cpu", "done", "last", "slow", "spent")

    def __init__(self, cpu: float) -> None:
        self.last = cpu
        self.cpu = cpu
        self.slow: dict[Any, set[str]] = {}  # by worker: its slow calls, until it says otherwise
        self.done = 0  # calls that ended since the last look
        self.spent: dict[str, float] = {}  # by call id: seconds

    def report(self, worker: Any, calls: set[str], done: int) -> None:
        """What a worker tells of its calls of this process."""
        if calls:
            self.slow[worker] = calls
        else:
            self.slow.pop(worker, None)
        self.done += done

    def look(
        self, cpu: float, memory: int, *, cpu_limit: float, memory_limit: int, background: bool,
        leased: bool,
    ) -> Verdict | None:  # fmt: skip
        """Charges what was used since the last look; a verdict ends the process. cpu: seconds
        used in its life. background: work after an answer is under way. leased: a worker may be
        calling it."""
        used = max(0.0, cpu - self.last)
        self.last = self.cpu = cpu
        if memory > memory_limit:
            return Verdict(
                "memory", "", f"it used {memory >> 20} MiB; {memory_limit >> 20} MiB are allowed"
            )
        running = {call for calls in self.slow.values() for call in calls}
        done, self.done = self.done, 0
        if not running and (background or not leased or self.spent.get(IDLE_CALL)):
            running = {IDLE_CALL}
        self.spent = {call: spent for call, spent in self.spent.items() if call in running}
        if not running:
            return None
        share = used / (len(running) + done)
        for call in running:
            total = self.spent.get(call, 0.0) + share
            self.spent[call] = total
            if total > cpu_limit:
                used_up = f"it used {total:.1f} s of processor time; {cpu_limit:g} s are allowed"
                return Verdict("cpu", call, used_up)
        return None
