"""Where the node's process for password hashes listens, and a worker's way to it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from server.auth.hashing import Busy
from server.base.changes import Unframer, framed

LONGEST_PATH = 100  # bytes; what a socket's address takes, with some room
CONNECT_SECONDS = 1.0
AWAY_SECONDS = 1.0  # between attempts while the process is away


class Away(Exception):
    """The process does not answer."""


def socket_path(data_dir: Path) -> Path:
    return data_dir / "run" / "passwords.sock"


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name of the socket that is short enough for its address."""
    if len(os.fsencode(path)) <= LONGEST_PATH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class HashClient(asyncio.Protocol):
    """One worker's connection, made when it is first needed and made anew when it breaks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._unframer = Unframer()
        self._transport: asyncio.Transport | None = None
        self._connecting = asyncio.Lock()
        self._away_until = 0.0

    async def ask(self, **message: Any) -> dict[str, Any]:
        """The answer to a message of main.py. Busy when it refuses, Away without it."""
        if self._transport is None:
            await self._connect()
        transport = self._transport
        if transport is None:
            raise Away
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        transport.write(framed({"id": number, **message}))
        try:
            answer = await future
        except asyncio.CancelledError:
            if self._transport is transport:
                transport.write(framed({"id": number, "cancel": True}))
            raise
        finally:
            self._answers.pop(number, None)
        if answer.get("busy"):
            raise Busy
        return answer

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._transport is not None or loop.time() < self._away_until:
                return
            try:
                with reachable(self.path) as short:
                    await asyncio.wait_for(
                        loop.create_unix_connection(lambda: self, short), CONNECT_SECONDS
                    )
            except (OSError, TimeoutError):
                self._away_until = loop.time() + AWAY_SECONDS

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._unframer = Unframer()

    def data_received(self, data: bytes) -> None:
        for raw in self._unframer.feed(data):
            answer = orjson.loads(raw)
            future = self._answers.get(answer["id"])
            if future is not None and not future.done():
                future.set_result(answer)

    def connection_lost(self, reason: Exception | None) -> None:
        self._transport = None
        for future in self._answers.values():
            if not future.done():
                future.set_exception(Away())
