"""Several commands that become visible together or not at all."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import bson
from bson.binary import Binary
from bson.int64 import Int64

from ichicore.errors import ApiError
from ichicore.mongo import message
from server.mongo import faults
from server.mongo.faults import DriverError
from server.mongo.store import Store, check

T = TypeVar("T")

PAUSES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # seconds; the last one repeats
LABEL = "TransientTransactionError"
UNKNOWN = "UnknownTransactionCommitResult"
MAJORITY = bson.encode({"writeConcern": {"w": "majority", "j": True}})[4:-1]
BEGIN = bson.encode({"startTransaction": True, "readConcern": {"level": "snapshot"}})[4:-1]
ADMIN = bson.encode({"$db": "admin"})[4:-1]


class Transaction:
    """One try. Its commands go to the store's server, each on any of its connections."""

    isolated = True

    def __init__(self, store: Store, deadline: float) -> None:
        self.store = store
        self.deadline = deadline
        self._members = bson.encode({
            "lsid": {"id": Binary(uuid.uuid4().bytes, 4)}, "txnNumber": Int64(1),
            "autocommit": False,
        })[4:-1]  # fmt: skip
        self._begun = False

    async def raw(self, elements: bytes, *, reads: bool = False) -> bytes:
        """The answer to a command of these members; DriverError when it says that it failed.
        reads: it changes nothing."""
        del reads
        elements += self._members
        if not self._begun:
            elements += BEGIN
            self._begun = True
        command = message.whole(elements, self.store.tail)
        answer = await self.store.run(command, self.deadline - time.monotonic())
        self.store.succeeded(answer)
        return answer

    async def run(self, elements: bytes) -> dict[str, Any]:
        return bson.decode(await self.raw(elements))

    async def commit(self) -> None:
        if not self._begun:
            return
        command = self._end("commitTransaction", MAJORITY)
        for attempt in (1, 2, 3):
            try:
                check(await self.store.run(command, 10.0), self.store)
                return
            except DriverError as error:
                if UNKNOWN not in error.labels or attempt == 3:
                    raise
            except ApiError:
                if attempt == 3:
                    raise

    async def abort(self) -> None:
        """What cannot be told to the server it finds out by itself."""
        if self._begun:
            try:
                await self.store.run(self._end("abortTransaction"), 2.0)
            except (ApiError, DriverError, OSError):
                pass

    def _end(self, name: str, more: bytes = b"") -> bytes:
        return message.whole(bson.encode({name: 1})[4:-1] + self._members + more, ADMIN)


class Direct(Transaction):
    """The same commands without a transaction, for servers that have none: each is done when it is
    answered, and others may write in between."""

    isolated = False

    async def raw(self, elements: bytes, *, reads: bool = False) -> bytes:
        seconds = self.deadline - time.monotonic()
        if reads:
            answer = await self.store.run(message.whole(elements, self.store.tail), seconds)
        else:
            answer = await self.store.write(elements + MAJORITY, seconds)
        self.store.succeeded(answer)
        return answer


async def atomically(
    store: Store, work: Callable[[Transaction], Awaitable[T]], seconds: float
) -> T:
    """Runs `work` in a transaction, again when another one got in its way. What it raises takes
    everything back. ApiError 504 when the time is over."""
    deadline = time.monotonic() + seconds
    attempt = 0
    while True:
        transaction = Transaction(store, deadline)
        try:
            result = await work(transaction)
            await transaction.commit()
            return result
        except DriverError as error:
            await transaction.abort()
            transient = LABEL in error.labels or error.code in faults.TRANSIENT
            if not transient:
                raise
            if time.monotonic() >= deadline:
                raise faults.timed_out() from None
        except BaseException:
            await asyncio.shield(transaction.abort())
            raise
        pause = PAUSES[min(attempt, len(PAUSES) - 1)]
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        attempt += 1
