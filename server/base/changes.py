"""The way from any process of a node to its realtime process: document changes and messages.

A unix socket carries messages, each a length of four bytes (big-endian) and a JSON object:
{"kind": "mongo", "project", "collection", "events": [{"event", "record", "old"}]} has no answer;
{"kind": "publish", "id", "project", "channels": [...], "event", "payload"} is answered with
{"id", "delivered"}, or with {"id", "refused": true} when the project sends too many. Several nodes
may be joined later behind the same messages.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from ichicore.errors import ApiError
from server.base import unix

log = logging.getLogger("ichibase.realtime")
SEED = "ichibase_seed"  # the replication slot from which those of the feeds are copied
LENGTH = struct.Struct(">I")
MAX_MESSAGE = 64 << 20  # bytes
BUFFER = 16 << 20  # bytes kept for a realtime process that is away or behind
ANSWER_SECONDS = 5.0
CONNECT_SECONDS = 2.0
RETRY = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts; the last one repeats


def socket_path(data_dir: Path) -> Path:
    """Where the realtime process of a node listens for changes and messages."""
    return data_dir / "run" / "realtime.sock"


def connections_path(data_dir: Path) -> Path:
    """Where the realtime process takes connections with the request that opens a WebSocket."""
    return data_dir / "run" / "realtime-fd.sock"


def framed(message: Mapping[str, Any]) -> bytes:
    """One message as it travels."""
    body = orjson.dumps(message)
    return LENGTH.pack(len(body)) + body


class Unframer:
    """Cuts a stream of bytes into messages. ValueError for a message beyond `limit` bytes."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are complete with these bytes."""
        rest = self._rest
        rest += data
        found = []
        start = 0
        while len(rest) - start >= 4:
            (size,) = LENGTH.unpack_from(rest, start)
            if size > self.limit:
                raise ValueError(f"a message of {size} bytes")
            if len(rest) - start - 4 < size:
                break
            found.append(bytes(rest[start + 4 : start + 4 + size]))
            start += 4 + size
        if start:
            del rest[:start]
        return found


class ChangeSink(asyncio.Protocol):
    """One worker's connection to the realtime process, made when it is first needed and made anew
    when it breaks. What is sent while it is away waits, up to BUFFER bytes; beyond that changes
    are dropped, counted in `dropped` and told to the log."""

    def __init__(self, path: Path, buffer: int = BUFFER) -> None:
        self.path = path
        self.buffer = buffer
        self.dropped = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._numbers = itertools.count(1)
        self._unframer = Unframer()
        self._said = 0
        self._connected = asyncio.Event()

    def send(self, project_id: str, collection: str, events: Iterable[Mapping[str, Any]]) -> bool:
        """Tells of changed documents, in their order; never waits. events: objects with "event"
        ("insert", "update", "delete"), "record" and "old" (a JSON object, its text as bytes, or
        None). False when they had to be dropped."""
        told = [
            {
                "event": event["event"],
                "record": _json(event.get("record")),
                "old": _json(event.get("old")),
            }
            for event in events
        ]
        if not told:
            return True
        return self._put(
            framed(
                {"kind": "mongo", "project": project_id, "collection": collection, "events": told}
            )
        )

    async def publish(
        self, project_id: str, channels: list[str], event: str | None, payload: bytes
    ) -> int:
        """Delivers one message to each of the channels; payload: JSON text. Gives how many
        connections it reached; ApiError 503 when the realtime process is away, 429 when the project
        sends too many."""
        if self._transport is None:  # a message that fails must not be delivered later
            self._ensure()
            try:
                await asyncio.wait_for(self._connected.wait(), CONNECT_SECONDS)
            except TimeoutError:
                raise _away() from None
        number = next(self._numbers)
        message = {
            "kind": "publish", "id": number, "project": project_id, "channels": channels,
            "event": event, "payload": orjson.Fragment(payload),
        }  # fmt: skip
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            if not self._put(framed(message)):
                raise _away()
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            raise _away() from None
        finally:
            self._answers.pop(number, None)

    async def connect(self) -> None:
        """Connects now, not with the first message; goes on trying in the background."""
        self._ensure()

    async def stop(self) -> None:
        """Ends the connection; what still waits is lost."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._transport is not None:
            self._transport.close()

    def _put(self, data: bytes) -> bool:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if transport.get_write_buffer_size() + len(data) <= self.buffer:
                transport.write(data)
                return True
        elif self._waiting_bytes + len(data) <= self.buffer:
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._ensure()
            return True
        self.dropped += 1
        if self.dropped >= 2 * self._said or self._said == 0:
            self._said = self.dropped
            log.warning("the realtime process is away or behind: %d messages lost", self.dropped)
        return False

    def _ensure(self) -> None:
        if self._transport is None and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while self._transport is None:
            try:
                await loop.create_unix_connection(lambda: self, sock=unix.connect(self.path))
            except OSError:
                await asyncio.sleep(RETRY[min(attempt, len(RETRY) - 1)])
                attempt += 1

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._unframer = Unframer()
        self._connected.set()
        while self._waiting:
            self._transport.write(self._waiting.popleft())  # type: ignore[union-attr]
        self._waiting_bytes = 0

    def data_received(self, data: bytes) -> None:
        for text in self._unframer.feed(data):
            message = orjson.loads(text)
            answer = self._answers.get(message.get("id"))
            if answer is None or answer.done():
                continue
            if message.get("refused"):
                answer.set_exception(
                    ApiError(
                        429, "rate_limited", "The project sends too many messages.",
                        headers=(("retry-after", "1"),),
                    )
                )  # fmt: skip
            else:
                answer.set_result(message["delivered"])

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._connected.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_away())


def _json(value: Any) -> Any:
    return orjson.Fragment(value) if isinstance(value, bytes) else value


def _away() -> ApiError:
    return ApiError(
        503, "unavailable", "The realtime process is not available.",
        headers=(("retry-after", "1"),),
    )  # fmt: skip
