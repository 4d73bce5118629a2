"""Password hashes in few threads of low priority.

One hash takes about 25 ms of a core and 19 MiB. Projects take turns, each with a queue of its own;
what does not fit the queue is refused at once.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bcrypt
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from server.auth.inputs import normalized_password
from server.base import processor

MEMORY_KIB = 19_456  # with two passes and one lane: the OWASP minimum for argon2id
PASSES = 2
LANES = 1
NICENESS = 10  # a tenth of the weight of others: sign-ins go on while requests saturate
QUEUE_PER_THREAD = 20  # of one project: about half a second of waiting
QUEUES = 25  # as many of all projects together
MAX_ATTEMPT = 1_024  # imported passwords may be longer than what we take now


class Busy(Exception):
    """More waits than can be hashed soon."""


class Hasher:
    """The work itself; blocks the calling thread."""

    def __init__(self) -> None:
        self._argon = PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
        )
        # Verified in place of a missing hash, so that unknown addresses take the same time.
        self._nobody = self._argon.hash(secrets.token_hex(16))

    def hash(self, password: str) -> str:
        """The argon2id hash of a password."""
        return self._argon.hash(normalized_password(password))

    def verify(self, password: str, stored: str | None) -> tuple[bool, bool]:
        """(right, stored should be replaced by a new hash). stored None costs the same and is
        never right."""
        if len(password) > MAX_ATTEMPT:
            password, stored = password[:MAX_ATTEMPT], None
        if stored is None:
            self._verify_argon(password, self._nobody)
            return False, False
        if stored.startswith(("$2a$", "$2b$", "$2y$")):
            # bcrypt reads 72 bytes and this library refuses more instead of cutting
            try:
                return bcrypt.checkpw(password.encode()[:72], stored.encode()), True
            except ValueError:
                return False, False
        right = self._verify_argon(normalized_password(password), stored)
        return right, right and self._argon.check_needs_rehash(stored)

    def _verify_argon(self, password: str, stored: str) -> bool:
        try:
            return self._argon.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


class _Share:
    """A project that has something to hash. spent: seconds of its hashes, as if it had a full
    weight, from a moment that is the same for all."""

    def __init__(self, most: int, weight: int, spent: float) -> None:
        self.most = most
        self.weight = weight
        self.spent = spent
        self.running = 0
        self.held = 0  # callers that wait for their result
        self.waiting: deque[tuple[asyncio.Future[Any], Callable[..., Any], tuple[object, ...]]]
        self.waiting = deque()


class HashThreads:
    """A bounded pool of threads. threads: at most that many hashes at once. queue: at most so many
    callers of one project."""

    def __init__(self, threads: int | None = None, queue: int | None = None) -> None:
        self.threads = threads or processors()
        self.queue = queue if queue is not None else self.threads * QUEUE_PER_THREAD
        self.waiting = 0
        self.hasher = Hasher()
        self._running = 0
        self._shares: dict[str, _Share] = {}
        self._spent = 0.0  # of the project that had the last turn
        self._pool = ThreadPoolExecutor(self.threads, "password", initializer=_give_way)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, work: Callable[..., Any], *arguments: object, project: str = "",
        weight: int = processor.FULL,
    ) -> Any:  # fmt: skip
        """The result of `work`, a method of `hasher`. Busy at once when the queue is full. Whose
        turn it is goes by the time that the projects' hashes have taken, by their weights; one of
        less than a full weight leaves a thread to others."""
        if self.waiting >= self.queue * QUEUES:
            raise Busy
        share = self._shares.get(project)
        if share is None:
            most = self.threads if weight >= processor.FULL else max(1, self.threads - 1)
            share = self._shares[project] = _Share(most, max(1, weight), self._spent)
        if share.held >= self.queue:
            raise Busy
        self.waiting += 1
        share.held += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        one = (future, work, arguments)
        share.waiting.append(one)
        self._go()
        try:
            return await future
        finally:
            self.waiting -= 1
            share.held -= 1
            if one in share.waiting:  # the caller has left
                share.waiting.remove(one)
                self._leave(project, share)

    def _go(self) -> None:
        """Begins as many as there are threads for."""
        while self._running < self.threads:
            ready = [
                (share.spent, name) for name, share in self._shares.items()
                if share.waiting and share.running < share.most
            ]  # fmt: skip
            if not ready:
                return
            self._spent, name = min(ready)
            self._begin(name, self._shares[name])

    def _begin(self, name: str, share: _Share) -> None:
        future, work, arguments = share.waiting.popleft()
        share.running += 1
        self._running += 1
        began = time.monotonic()

        def over(done: asyncio.Future[Any]) -> None:
            self._running -= 1
            share.running -= 1
            share.spent += (time.monotonic() - began) * processor.FULL / share.weight
            self._leave(name, share)
            if done.cancelled():
                future.cancel()
            elif (error := done.exception()) is not None:
                if not future.done():
                    future.set_exception(error)
            elif not future.done():
                future.set_result(done.result())
            self._go()

        asyncio.wrap_future(self._pool.submit(work, *arguments)).add_done_callback(over)

    def _leave(self, name: str, share: _Share) -> None:
        """Forgets a project that has nothing left; it comes back without what it has not used."""
        if not share.waiting and not share.running:
            self._shares.pop(name, None)


def processors() -> int:
    """The cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)


def _give_way() -> None:
    """Lowers the priority of this thread alone; only Linux has a priority per thread. It also asks
    for long turns: from Linux 6.12 on, what wakes up interrupts a longer turn than its own at once
    instead of waiting for the next tick of the clock."""
    if sys.platform != "linux":
        return
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    processor.turns(0, processor.THIRD)  # refused by older kernels
