"""How many calls a project may have at once, shared out among the workers of a node.

A worker is granted several at a time and keeps them; when none are left, what the others do not
use is asked back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

RECALL_SECONDS = 0.1  # that a worker waits for what others give back
SHARE = 4  # of the limit, the part that is granted at once


class Slots:
    """recall(project_id, worker): asks all workers but this one."""

    def __init__(self) -> None:
        self.recall: Callable[[str, Any], None] = lambda project_id, worker: None
        self.held: dict[str, dict[Any, int]] = {}  # by project id, by worker
        self._changed: dict[str, list[asyncio.Future[None]]] = {}

    async def take(self, worker: Any, project_id: str, limit: int) -> int:
        """How many more the worker may have; 0 when all are in use."""
        granted = self._grant(worker, project_id, limit)
        if granted or len(self.held[project_id]) < 2:
            return granted
        self.recall(project_id, worker)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RECALL_SECONDS
        while not granted and (left := deadline - loop.time()) > 0:
            waiter: asyncio.Future[None] = loop.create_future()
            self._changed.setdefault(project_id, []).append(waiter)
            await asyncio.wait([waiter], timeout=left)
            granted = self._grant(worker, project_id, limit)
        return granted

    def _grant(self, worker: Any, project_id: str, limit: int) -> int:
        held = self.held.setdefault(project_id, {})
        free = max(0, limit - sum(held.values()))
        granted = min(free, max(1, limit // SHARE))
        held[worker] = held.get(worker, 0) + granted
        return granted

    def give_back(self, worker: Any, project_id: str, count: int) -> None:
        held = self.held.get(project_id, {})
        if worker in held:
            held[worker] = max(0, held[worker] - count)
        for waiter in self._changed.pop(project_id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def forget(self, worker: Any) -> None:
        """A worker has ended."""
        for project_id, held in list(self.held.items()):
            if held.pop(worker, None) is not None:
                self.give_back(worker, project_id, 0)
            if not held:
                del self.held[project_id]
