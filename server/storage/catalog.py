"""What is known of objects, kept for a moment so that a popular file costs no look-up.

An entry is believed for TTL seconds and no longer: by then at the latest every worker serves what
the database says, whatever became of the messages. Usually it is a matter of milliseconds, because
every change is told to all workers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

from ichicore.token.cache import GenerationCache
from server.storage.database import DIGEST, Row, statement, sure
from server.storage.tokens import etag

TTL = 1.0  # seconds
ENTRIES = 16_384
HOT = 4096  # paths of small public files that go the short way
BODIES = 16 << 20  # bytes of small files kept in a worker's memory
SMALL = 64 << 10  # bytes of a file up to which it is kept there

Key = tuple[str, str, str, int]  # project, bucket, path, and the project's epoch
CHANGED = "storage.changed"  # topic of the bus: {"project", "bucket", "paths": [...] or absent}
PATHS_TOLD = 5_000  # bytes of paths in one message

LOOKUP = statement(
    f"""select o.version, o.size, o.content_type, {DIGEST},
      floor(extract(epoch from o.updated_at))::bigint, b.cache_seconds
    from storage.objects o join storage.buckets b on b.id = o.bucket
    where o.bucket = $1 and o.path = $2"""
)


class Entry:
    """One object, or the knowledge that there is none (version ""). modified: epoch seconds.
    until: loop time to which it is believed. headers: of an answer with the whole public file."""

    __slots__ = (
        "cache_seconds", "content_type", "etag", "headers", "modified", "modified_text", "size",
        "until", "version",
    )  # fmt: skip

    def __init__(self, row: Row | None, until: float) -> None:
        self.until = until
        self.headers: list[tuple[str, str]] = []
        if row is None:
            self.version = ""
            self.size = 0
            return
        self.version = sure(row[0])
        self.size = int(sure(row[1]))
        self.content_type = sure(row[2])
        self.etag = etag(sure(row[3]))
        self.modified = int(sure(row[4]))
        self.modified_text = formatdate(self.modified, usegmt=True)
        self.cache_seconds = None if row[5] is None else int(row[5])


class Hot:
    """A small public file as the gateway's short way serves it. host: the Host header it is served
    under, None for all. unchanged: headers of a 304. site: the gateway's, of the project."""

    __slots__ = ("body", "entry", "headers", "host", "site", "tenant", "unchanged")

    def __init__(self, entry: Entry, tenant: Any, body: bytes, host: str | None) -> None:
        self.entry = entry
        self.tenant = tenant
        self.body = body
        self.headers = entry.headers
        self.unchanged = [pair for pair in entry.headers if pair[0] != "content-type"]
        self.host = host
        self.site: Any = None


class Bodies:
    """Small files by version, at most BODIES bytes; those not asked for longest give way."""

    def __init__(self, limit: int = BODIES) -> None:
        self.limit = limit
        self.held = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, version: str) -> bytes | None:
        body = self._kept.get(version)
        if body is not None:
            self._kept.move_to_end(version)
        return body

    def put(self, version: str, body: bytes) -> None:
        if version in self._kept or len(body) > SMALL:
            return
        self._kept[version] = body
        self.held += len(body) + 200
        while self.held > self.limit:
            _, gone = self._kept.popitem(last=False)
            self.held -= len(gone) + 200


class Catalog:
    """One per worker, over all projects."""

    def __init__(self) -> None:
        self._entries: GenerationCache[Entry] = GenerationCache(ENTRIES)
        self._asking: dict[Key, asyncio.Task[Entry]] = {}
        self._epochs: dict[str, int] = {}  # counts what made all entries of a project void
        self._changes: dict[str, int] = {}  # how many changes each project has seen
        self.bodies = Bodies()
        self.hot: dict[str, Hot] = {}  # by the path of the URL

    async def find(
        self, project: str, bucket: str, path: str, rows: Callable[..., Awaitable[Any]]
    ) -> Entry | None:
        """The object at a path, None when there is none. rows: runs a statement in the project's
        database."""
        key = (project, bucket, path, self._epochs.get(project, 0))
        entry = self._entries.get(key)
        loop = asyncio.get_running_loop()
        if entry is None or entry.until <= loop.time():
            asking = self._asking.get(key)
            if asking is None:
                asking = loop.create_task(self._ask(key, rows, entry))
                self._asking[key] = asking
                asking.add_done_callback(lambda task: self._asked(key, task))
            entry = await asyncio.shield(asking)
        return entry if entry.version else None

    async def _ask(
        self, key: Key, rows: Callable[..., Awaitable[Any]], known: Entry | None
    ) -> Entry:
        changes = self._changes.get(key[0], 0)
        began = asyncio.get_running_loop().time()
        found = await rows(LOOKUP, key[1], key[2])
        entry = Entry(found[0] if found else None, began + TTL)
        if self._changes.get(key[0], 0) != changes:
            entry.until = 0.0  # something changed meanwhile: good for those who asked, not to keep
        else:
            self._entries.put(key, entry)
        return entry

    def _asked(self, key: Key, task: asyncio.Task[Entry]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # those who wait get it; nobody may be left

    def forget(self, project: str, bucket: str, paths: list[str] | None) -> None:
        """These objects have changed; None is all of the project."""
        self._changes[project] = self._changes.get(project, 0) + 1
        if paths is None:
            self._epochs[project] = self._epochs.get(project, 0) + 1
            for url in [u for u, hot in self.hot.items() if hot.tenant.project.id == project]:
                del self.hot[url]
            return
        for path in paths:
            key = (project, bucket, path, self._epochs.get(project, 0))
            self._asking.pop(key, None)  # who asks from now on must not get the older answer
            entry = self._entries.get(key)
            if entry is not None:
                entry.until = 0.0
                self._entries.drop(key)

    def note(self, path: str, hot: Hot) -> None:
        """A small file was served the general way: the next requests may go the short way."""
        if len(self.hot) >= HOT:
            self.hot.clear()
        self.hot[path] = hot

    def told(self, message: dict[str, Any]) -> None:
        """A message of the topic CHANGED."""
        project, bucket = message.get("project"), message.get("bucket")
        if isinstance(project, str):
            self.forget(project, str(bucket), message.get("paths"))

    def forget_project(self, project: str) -> None:
        self.forget(project, "", None)
