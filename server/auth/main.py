"""The process that hashes passwords for all workers of a node.

It is apart from them for three reasons: together they hash in no more threads than the machine has
cores; a thread of low priority never holds a lock of the interpreter that a worker waits for; and
the system can put it behind everything else, the database included.

A unix socket carries messages of a length (four bytes, big-endian) and a JSON object:
{"id", "hash": password} is answered with {"id", "hash"}; {"id", "verify": password, "stored"} with
{"id", "right", "stale"}, both with the "project" whose turn it takes and its "weight"; {"id",
"cancel": true} drops what still waits and has no answer. {"id", "busy": true} answers what does not
fit the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import orjson

from server.auth.hashing import NICENESS, Busy, HashThreads
from server.auth.hashsocket import reachable
from server.base.changes import Unframer, framed
from server.base.lifeline import name_process

MAX_MESSAGE = 65_536  # bytes
GROUP_NICENESS = 5  # of the whole process against others, where the system groups by session


class Connection(asyncio.Protocol):
    """One worker."""

    def __init__(self, threads: HashThreads) -> None:
        self.threads = threads
        self._unframer = Unframer(MAX_MESSAGE)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, reason: Exception | None) -> None:
        self._transport = None
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            for raw in self._unframer.feed(data):
                self._take(orjson.loads(raw))
        except (ValueError, KeyError, TypeError):
            self._transport.abort()  # not one of our workers

    def _take(self, message: dict[str, Any]) -> None:
        number = int(message["id"])
        if message.get("cancel"):
            task = self._tasks.get(number)
            if task is not None:
                task.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._answer(number, message))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._tasks.pop(number, None))

    async def _answer(self, number: int, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": number}
        hasher = self.threads.hasher
        turn: dict[str, Any] = {"project": str(message["project"])}
        turn["weight"] = int(message["weight"])
        try:
            if "hash" in message:
                answer["hash"] = await self.threads.run(hasher.hash, message["hash"], **turn)
            else:
                answer["right"], answer["stale"] = await self.threads.run(
                    hasher.verify, message["verify"], message["stored"], **turn
                )
        except Busy:
            answer["busy"] = True
        if self._transport is not None:
            self._transport.write(framed(answer))


def give_way() -> None:
    """Everything else goes first. Linux groups processes by session where no control group holds
    them; then only the group's own niceness counts against other groups."""
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(f"{GROUP_NICENESS}\n")


async def serve(short: str) -> None:
    """Listens at this path until SIGTERM."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    threads = HashThreads()
    server = await loop.create_unix_server(lambda: Connection(threads), short)
    await stopped.wait()
    server.close()
    threads.close()


def main() -> int:
    name_process("ichibase-hash")
    give_way()
    path = Path(sys.argv[1])
    path.unlink(missing_ok=True)  # of a process that was killed
    os.umask(0o077)
    with reachable(path) as short:
        asyncio.run(serve(short))
    return 0


if __name__ == "__main__":
    sys.exit(main())
