"""How much memory the machine has left, and what a process takes of it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

LITTLE = 0.1  # of all memory: what is left when it is about to run out
ROOM = 2 << 30  # bytes that are enough on any machine
PART = 0.04  # of all memory, from which a session is worth ending

_TOTAL = re.compile(rb"^MemTotal:\s+(\d+)", re.MULTILINE)
_LEFT = re.compile(rb"^MemAvailable:\s+(\d+)", re.MULTILINE)
_CACHED = re.compile(rb"^(?:in)?active_file (\d+)", re.MULTILINE)
_OWN = re.compile(rb"^RssAnon:\s+(\d+)", re.MULTILINE)
_SHARED = re.compile(rb"^RssShmem:\s+(\d+)", re.MULTILINE)


class Memory:
    """Of the machine, or of the control group that bounds this process."""

    def __init__(self) -> None:
        text = _read("/proc/meminfo")
        found = _TOTAL.search(text)
        self.total = int(found[1]) << 10 if found else 0
        self._group = None
        with contextlib.suppress(OSError, ValueError):
            group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
            folder = Path("/sys/fs/cgroup") / group.lstrip("/")
            bound = int((folder / "memory.max").read_text())  # not a number where there is none
            if bound < self.total:
                self.total, self._group = bound, folder

    def left(self) -> int:
        """Bytes."""
        found = _LEFT.search(_read("/proc/meminfo"))
        left = int(found[1]) << 10 if found else self.total
        if self._group is not None:
            with contextlib.suppress(OSError, ValueError):
                used = int((self._group / "memory.current").read_text())
                cached = _CACHED.findall(_read(str(self._group / "memory.stat")))
                left = min(left, self.total - used + sum(int(one) for one in cached))
        return left

    def short(self) -> bool:
        """Whether it is about to run out. The system would then end a server process, and with it
        every session of every project."""
        return self.left() < min(self.total * LITTLE, ROOM)

    def much(self) -> float:
        """Bytes from which a session is worth ending."""
        return self.total * PART


def taken(process: int, common: int) -> int:
    """Bytes that would be free without it. common: of what it shares, those that would not."""
    text = _read(f"/proc/{process}/status")
    own, shared = _OWN.search(text), _SHARED.search(text)
    if own is None or shared is None:  # it is gone
        return 0
    return (int(own[1]) << 10) + max(0, (int(shared[1]) << 10) - common)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
