"""A hold on a project's document server: as long as somebody has one, it runs.

The manager of the servers listens on a unix socket and takes lines of JSON:
{"do": "hold", "database": name, "share": {...} or null, "make": bool, "look": bool}: answered
{"port": n, "process": n} or {"error": code, "detail": text}. The connection is the hold, until
either side closes it; the manager does when the server has ended. Lines that come on it ask for a
hold that is not used, because others need the place. {"do": "weigh", "share": {...}} on it is not
answered. {"do": "remove", "database": name}, {"do": "replace", "database": name} (by what was made
as its next) and {"do": "used"} are answered {"databases": [...]}.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import orjson

from server.base import processor, unix
from server.base.limits import Limits

SOCKET = "documents.sock"
NEED = b"{}\n"


class Share(msgspec.Struct, frozen=True):
    """What a project's server gets. weight: of the processors, percent. memory: bytes of its own
    data, 0 for any."""

    weight: int = processor.FULL
    memory: int = 0


class Wanted(msgspec.Struct):
    """A line that the manager takes."""

    do: Literal["hold", "weigh", "remove", "replace", "used"]
    database: str = ""
    share: Share | None = None
    make: bool = False
    look: bool = False


class LeaseError(OSError):
    """The server cannot be had now. code: missing, full, failed, or away for the manager itself."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def share_of(limits: Limits) -> Share:
    return Share(limits.cpu_weight, limits.document_memory)


async def ask(path: Path, **wanted: Any) -> list[str]:
    """The answer to what is no hold."""
    reader, writer = await _open(path)
    try:
        return list((await _exchange(reader, writer, wanted))["databases"])
    finally:
        writer.close()


class Lease:
    """One project's server as one process holds it. share: None leaves it as it is. on_need: called
    when others need its place."""

    def __init__(
        self, path: Path, database: str, share: Share | None = None, *,
        make: bool = False, look: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self.share = share
        self.on_need: Callable[[], None] | None = None
        self.process = 0  # of the server, as last known
        self._listening: asyncio.Task[None] | None = None
        self._wanted = {"do": "hold", "database": database, "make": make, "look": look}
        self._held: tuple[asyncio.StreamReader, asyncio.StreamWriter, int] | None = None
        self._lock = asyncio.Lock()

    async def port(self) -> int:
        """Where it listens, once it does. LeaseError."""
        async with self._lock:
            if self._held is not None and not _is_over(self._held[0]):
                return self._held[2]
            self.close()
            reader, writer = await _open(self.path)
            try:
                answer = await _exchange(reader, writer, {**self._wanted, "share": self.share})
            except BaseException:
                writer.close()
                raise
            self._held = reader, writer, answer["port"]
            self.process = answer["process"]
            if self.on_need is not None:
                self._listening = asyncio.get_running_loop().create_task(self._listen(reader))
            return self._held[2]

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.readline():
                if self.on_need is not None:
                    self.on_need()

    def weigh(self, share: Share) -> None:
        """Gives the server another share."""
        if share != self.share:
            self.share = share
            if self._held is not None:
                self._held[1].write(_line({"do": "weigh", "share": share}))

    def close(self) -> None:
        """Lets go of it."""
        if self._held is not None:
            self._held[1].close()
            self._held = None
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None


def _is_over(reader: asyncio.StreamReader) -> bool:
    """Also where the connection broke, which is no end of what came on it."""
    return reader.at_eof() or reader.exception() is not None


async def _open(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_unix_connection(sock=unix.connect(path))
    except OSError:
        raise LeaseError("away", "the manager of the document servers does not answer") from None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: dict[str, Any]
) -> dict[str, Any]:
    writer.write(_line(wanted))
    line = await reader.readline()
    if not line:
        raise LeaseError("away", "the manager of the document servers has ended")
    answer: dict[str, Any] = orjson.loads(line)
    if "error" in answer:
        raise LeaseError(answer["error"], answer["detail"])
    return answer


def _line(wanted: dict[str, Any]) -> bytes:
    return msgspec.json.encode(wanted) + b"\n"
