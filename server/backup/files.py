"""Files of a project in its backups: by reference. The list of them goes into the backup, the bytes
stay where they are; restoring says which are no longer there, and copies them for a new project."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from server.backup.store import FULL, one_line
from server.base.context import NodeConfig
from server.control.database import Connection, fetch
from server.storage.stores import Store, StoreError, open_store

NAMED = 5  # files that a warning names
Progress = Callable[[str, int, int], Awaitable[None]]  # step, done, total


class FilesError(RuntimeError):
    """The file store does not give or take files; the text says why."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """One object and the blob that holds its bytes. sha256: hexadecimal, where it is known."""

    bucket: str
    path: str
    version: str
    size: int
    sha256: str | None


OBJECTS = """select bucket, path, version, size, encode(sha256, 'hex') from storage.objects
  order by bucket, path"""


async def listed(connection: Connection) -> list[Stored]:
    """The objects that the database knows of, in the transaction of the connection."""
    there = "select pg_catalog.to_regclass('storage.objects') is not null"
    if not (await fetch(connection, there))[0][0]:
        return []
    return [Stored(*row) for row in await fetch(connection, OBJECTS)]


async def used(connection: Connection) -> tuple[int, int] | None:
    """Bytes and number of the files that the database knows of; None when it has no such thing."""
    there = "select pg_catalog.to_regclass('storage.usage') is not null"
    if not (await fetch(connection, there))[0][0]:
        return None
    rows = await fetch(connection, "select bytes, objects from storage.usage")
    return (int(rows[0][0]), int(rows[0][1])) if rows else None


async def settle(
    config: NodeConfig, source: str, target: str, wanted: list[Stored], progress: Progress
) -> list[str]:
    """Sees that the project `target` has the blobs of its objects, copying those of the project
    `source` when it is another. Gives what is missing, in words. FilesError."""
    if not wanted:
        return []
    try:
        store = open_store(config)
        try:
            missing = await _missing(store, source, target, wanted, progress)
        finally:
            store.close()
    except (StoreError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        code = "insufficient_storage" if full else "storage_unavailable"
        text = f"the files cannot be looked at or copied: {one_line(error)}"
        raise FilesError(text, code) from None
    if not missing:
        return []
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return [f"files that are no longer in the store: {', '.join(missing[:NAMED])}{more}"]


async def _missing(
    store: Store, source: str, target: str, wanted: list[Stored], progress: Progress
) -> list[str]:
    present = {entry.version async for entry in store.entries(target)}
    missing = []
    total, done = sum(one.size for one in wanted), 0
    for one in wanted:
        if one.version not in present and not (
            source != target and await _copy(store, source, target, one)
        ):
            missing.append(f"{one.bucket}/{one.path}")
        done += one.size
        await progress("files", done, total)
    return missing


async def _copy(store: Store, source: str, target: str, one: Stored) -> bool:
    if await store.size(source, one.version) != one.size:
        return False
    sink = store.sink(target, one.version, one.size)
    loop = asyncio.get_running_loop()
    try:
        if one.size:
            async for piece in store.stream(source, one.version, 0, one.size):
                await loop.run_in_executor(store.executor, sink.write, [piece])
        await sink.commit()
    except BaseException:
        await sink.abort()
        raise
    return True
