"""Which sessions of a PostgreSQL server on this machine write to its log, as the kernel tells of
their processes.

Who writes holds locks of the log that the sessions of all projects wait for, and sleeps often; who
computes alone holds none that others wait for.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

KEPT = 3.0  # seconds after a write for which a session counts as one that writes
MUCH = 30_000_000  # nanoseconds of processor time without a write of a session that computes
BULK = 0.2  # of a processor: who writes and uses more of it writes in bulk
FRESH = 0.3  # of the last look, in a session's use of the processor
WRITES = b"syscw:"
LOG = "/pg_wal/"


@dataclass(slots=True)
class Session:
    """writes: system calls. ran: nanoseconds. wrote: when it last wrote to the log. before: what it
    had run then. use: of a processor."""

    writes: int
    ran: int
    before: int
    wrote: float = float("-inf")
    use: float = 1.0


class Writers:
    """writing and computing: processes; one of which it is not known yet is in neither. bulk: those
    that write and compute much besides."""

    def __init__(self) -> None:
        self.writing: set[int] = set()
        self.computing: set[int] = set()
        self.bulk: set[int] = set()
        self._sessions: dict[int, Session] = {}
        self._looked = 0.0

    def look(self, ran: dict[int, int], now: float) -> None:
        """ran: nanoseconds that each of the processes to look at has run."""
        seconds, self._looked = now - self._looked, now
        sessions = self._sessions
        for gone in sessions.keys() - ran.keys():
            del sessions[gone]
        for process, nanoseconds in ran.items():
            writes = _writes(process)
            one = sessions.get(process)
            if one is None:
                sessions[process] = Session(writes, nanoseconds, nanoseconds)
                continue
            # Others write to temporary files.
            if writes != one.writes and _has_log(process):
                one.wrote, one.before = now, nanoseconds
            if seconds > 0:
                used = (nanoseconds - one.ran) / seconds / 1e9
                one.use = one.use * (1 - FRESH) + used * FRESH
            one.writes, one.ran = writes, nanoseconds
        self.writing = {process for process, one in sessions.items() if now - one.wrote < KEPT}
        self.bulk = {process for process in self.writing if sessions[process].use > BULK}
        self.computing = {
            process for process, one in sessions.items()
            if process not in self.writing and one.ran - one.before > MUCH
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
