"""What functions write, kept bounded per project: the newest in memory, the rest in two files."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

FILE_BYTES = 1 << 20  # of each of two files
MEMORY_LINES = 2_000
MEMORY_BYTES = 512 << 10  # of lines that are in memory
BURST = 2_000.0  # lines a project may write at once
RATE = 100.0  # lines a second it may write for long
MAX_ANSWER = 1_000


class ProjectLog:
    """Lines of one project. A line: seq, at (epoch seconds), function, version, level, text, and
    invocation when it belongs to one."""

    def __init__(self, folder: Path, limit: int = FILE_BYTES) -> None:
        self.folder = folder
        self.limit = limit
        self.lines: deque[tuple[int, dict[str, Any]]] = deque()  # each with its bytes
        self._held = 0  # bytes of them
        self._all = True  # whether there are no more than these
        self.seq = 0
        self.dropped = 0
        self._credit, self._at = BURST, time.monotonic()
        self._size = 0
        self._file: Any = None
        self._changed: set[asyncio.Future[None]] = set()
        self._read()

    def _read(self) -> None:
        for size, line in self._stored():
            self.seq = max(self.seq, line["seq"])
            self._hold(size, line)
        with contextlib.suppress(OSError):
            self._size = (self.folder / "new.jsonl").stat().st_size

    def _stored(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lines of both files, oldest first."""
        for name in ("old.jsonl", "new.jsonl"):
            try:
                raw = (self.folder / name).read_bytes()
            except OSError:
                continue
            for line in raw.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    found = orjson.loads(line)
                    found["seq"] = int(found["seq"])
                    yield len(line), found

    def _hold(self, size: int, line: dict[str, Any]) -> None:
        """Keeps a line in memory, and of the others as many as there is room for."""
        self.lines.append((size, line))
        self._held += size
        while len(self.lines) > MEMORY_LINES or (self._held > MEMORY_BYTES and len(self.lines) > 1):
            self._held -= self.lines.popleft()[0]
            self._all = False

    def add(self, line: dict[str, Any], *, always: bool = False) -> None:
        """Keeps a line; beyond the rate it is counted instead, unless `always`."""
        now = time.monotonic()
        self._credit = min(BURST, self._credit + (now - self._at) * RATE)
        self._at = now
        if self._credit < 1 and not always:
            self.dropped += 1
            return
        self._credit -= 1
        if self.dropped and self._credit > BURST / 20:
            self._tell_dropped(line)
        self._keep(line)

    def _tell_dropped(self, like: dict[str, Any]) -> None:
        count, self.dropped = self.dropped, 0
        self._keep(
            {
                "function": like["function"], "version": like["version"], "level": "warn",
                "text": f"{count} lines were left out: the project writes more than it may",
            }
        )  # fmt: skip

    def _keep(self, line: dict[str, Any]) -> None:
        self.seq += 1
        kept = {"seq": self.seq, "at": round(time.time(), 3), **line}
        raw = orjson.dumps(kept) + b"\n"
        self._hold(len(raw), kept)
        with contextlib.suppress(OSError):
            if self._file is None:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = open(self.folder / "new.jsonl", "ab", buffering=0)  # noqa: SIM115
            if self._size + len(raw) > self.limit:
                self._file.close()
                (self.folder / "new.jsonl").replace(self.folder / "old.jsonl")
                self._file = open(self.folder / "new.jsonl", "ab", buffering=0)  # noqa: SIM115
                self._size = 0
            self._file.write(raw)
            self._size += len(raw)
        changed, self._changed = self._changed, set()
        for waiter in changed:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, after: int | None, limit: int, function: str | None = None,
              invocation: str | None = None) -> list[dict[str, Any]]:  # fmt: skip
        """Lines, oldest first, at most `limit`: those that follow the number `after`, or the
        newest ones when it is None."""

        def wanted(line: dict[str, Any]) -> bool:
            return (
                (after is None or line["seq"] > after)
                and (function is None or line["function"] == function)
                and (invocation is None or line.get("invocation") == invocation)
            )

        limit = min(limit, MAX_ANSWER)
        found = [line for _, line in self.lines if wanted(line)]
        if not self._all and (
            len(found) < limit if after is None else after + 1 < self.lines[0][1]["seq"]
        ):
            first = self.lines[0][1]["seq"]
            older = (line for _, line in self._stored() if line["seq"] < first)
            found = [*filter(wanted, older), *found]
        return found[:limit] if after is not None else found[max(0, len(found) - limit) :]

    async def wait(self, seconds: float) -> None:
        """Returns with the next line, or after that time."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._changed.discard(waiter)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Logs:
    """The logs of all projects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._projects: dict[str, ProjectLog] = {}

    def of(self, project_id: str) -> ProjectLog:
        found = self._projects.get(project_id)
        if found is None:
            found = self._projects[project_id] = ProjectLog(self.folder / project_id)
        return found

    def forget(self, project_id: str) -> None:
        """Removes what a project wrote."""
        found = self._projects.pop(project_id, None)
        if found is not None:
            found.close()
        shutil.rmtree(self.folder / project_id, ignore_errors=True)

    def close(self) -> None:
        for log in self._projects.values():
            log.close()
