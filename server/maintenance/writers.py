"""Which sessions of a PostgreSQL server on this machine write to its log, as the kernel tells of
their processes.

Who writes holds locks of the log that the sessions of all projects wait for, and sleeps often; who
computes alone holds none that others wait for.
"""

from __future__ import annotations

import contextlib
import os

KEPT = 3.0  # seconds after a write for which a session counts as one that writes
MUCH = 30_000_000  # nanoseconds of processor time without a write of a session that computes
WRITES = b"syscw:"
LOG = "/pg_wal/"


class Writers:
    """writing and computing: processes; one of which it is not known yet is in neither."""

    def __init__(self) -> None:
        self.writing: set[int] = set()
        self.computing: set[int] = set()
        self._writes: dict[int, int] = {}
        self._wrote: dict[int, float] = {}
        self._ran: dict[int, int] = {}  # nanoseconds, until the last write

    def look(self, ran: dict[int, int], now: float) -> None:
        """ran: nanoseconds that each of the processes to look at has run."""
        for kept in (self._writes, self._wrote, self._ran):
            for gone in kept.keys() - ran.keys():
                del kept[gone]
        for process, nanoseconds in ran.items():
            writes = _writes(process)
            before = self._writes.get(process, writes)
            self._writes[process] = writes
            self._ran.setdefault(process, nanoseconds)
            # Others write to temporary files.
            if writes != before and _has_log(process):
                self._wrote[process], self._ran[process] = now, nanoseconds
        self.writing = {one for one, at in self._wrote.items() if now - at < KEPT}
        self.computing = {
            one for one, nanoseconds in ran.items()
            if one not in self.writing and nanoseconds - self._ran[one] > MUCH
        }  # fmt: skip


def _writes(process: int) -> int:
    """System calls that wrote to files; -1 where they cannot be told."""
    try:
        with open(f"/proc/{process}/io", "rb") as file:
            return int(file.read().partition(WRITES)[2].split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return -1


def _has_log(process: int) -> bool:
    """Whether it has a file of the log open, as who has written to it keeps one."""
    folder = f"/proc/{process}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if LOG in os.readlink(f"{folder}/{name}"):
                    return True
    return False
