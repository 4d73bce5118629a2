"""A memory control group for each function process, where the machine lets us write one."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Cgroups:
    """Groups named after the node, one for each process in it. usable: whether that works here.
    version: what the kernel offers, for people."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self.version = "cgroup"
        self.usable = False
        self.left: set[str] = set()
        self.folder = root
        for folder, version, limit in (
            (root / "memory", "cgroup (version 1)", "memory.limit_in_bytes"),
            (root, "cgroup (version 2)", "memory.max"),
        ):
            self.folder = folder / f"ichibase-{name}"
            self.version, self._limit = version, limit
            if self._prepare(folder):
                self.usable = True
                return

    def _prepare(self, parent: Path) -> bool:
        if not (parent / "cgroup.procs").exists():
            return False
        try:
            if self._limit == "memory.max":
                controllers = (parent / "cgroup.controllers").read_text().split()
                if "memory" not in controllers:
                    return False
                (parent / "cgroup.subtree_control").write_text("+memory")
            self.folder.mkdir(exist_ok=True)
            if self._limit == "memory.max":
                (self.folder / "cgroup.subtree_control").write_text("+memory")
            self.clear()
            probe = self.folder / "probe"
            probe.mkdir(exist_ok=True)
            (probe / self._limit).write_text(str(1 << 30))
            probe.rmdir()
        except OSError:
            return False
        return True

    def clear(self) -> None:
        """Removes the groups of an earlier run."""
        for path in self.folder.iterdir():
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()

    def add(self, name: str, pid: int, limit: int) -> None:
        """Puts a process into a group of its own, held to so many bytes."""
        group = self.folder / name
        group.mkdir(exist_ok=True)
        self.resize(name, limit)
        (group / "cgroup.procs").write_text(str(pid))

    def resize(self, name: str, limit: int) -> None:
        group = self.folder / name
        (group / self._limit).write_text(str(limit))
        with contextlib.suppress(OSError):
            if self._limit == "memory.max":
                (group / "memory.swap.max").write_text("0")
            else:
                (group / "memory.memsw.limit_in_bytes").write_text(str(limit))

    def killed(self, name: str) -> bool:
        """Whether the kernel has killed the group's process for its memory."""
        group = self.folder / name
        for file, key in (("memory.events", "oom_kill "), ("memory.oom_control", "oom_kill ")):
            with contextlib.suppress(OSError, ValueError):
                for line in (group / file).read_text().splitlines():
                    if line.startswith(key):
                        return int(line.split()[1]) > 0
        return False

    def remove(self, name: str) -> None:
        """Removes a group, at the latest with a later sweep(): a killed process stays in it until
        the kernel is done with it."""
        self.left.add(name)
        self.sweep()

    def sweep(self) -> None:
        for name in list(self.left):
            with contextlib.suppress(OSError):
                if (self.folder / name).exists():
                    os.rmdir(self.folder / name)
                self.left.discard(name)

    def close(self) -> None:
        deadline = time.monotonic() + 1.0
        while self.left and time.monotonic() < deadline:
            self.sweep()
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            self.clear()
            os.rmdir(self.folder)
