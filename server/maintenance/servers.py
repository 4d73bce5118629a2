"""The projects' own document servers among the processes of a node."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from server.maintenance.census import children, named

MANAGER, SERVER = "ichibase-docs", "secantus"
AGAIN = 20  # looks between searches for the process that starts them
DATABASE = re.compile(r".*/projects/(ichi_[a-z0-9]{12})\Z")


class DocumentServers:
    """node: the process whose descendants they are."""

    def __init__(self, node: int) -> None:
        self.node = node
        self._parent = 0  # what they are forked from
        self._left = 0
        self._known: dict[int, str] = {}

    def look(self) -> dict[int, str]:
        """Their databases by process."""
        found = self._children()
        self._known = {process: name for process, name in self._known.items() if process in found}
        for process in found - self._known.keys():
            if name := _database(process):  # else it has just been forked
                self._known[process] = name
        return self._known

    def _children(self) -> set[int]:
        if self._parent == 0:
            self._left -= 1
            if self._left > 0:
                return set()
            self._left = AGAIN
            self._parent = self._find()
        if self._parent:
            with contextlib.suppress(OSError):
                return set(children(self._parent))
        self._parent = 0
        return set()

    def _find(self) -> int:
        with contextlib.suppress(OSError):
            for manager in named(self.node, (MANAGER,)):
                return next(iter(children(manager)), 0)
        return 0


def _database(process: int) -> str:
    try:
        if Path(f"/proc/{process}/comm").read_text().strip() != SERVER:
            return ""
        match = DATABASE.match(os.readlink(f"/proc/{process}/cwd"))
    except OSError:
        return ""
    return match[1] if match else ""
