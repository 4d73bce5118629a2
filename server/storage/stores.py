"""Where the bytes lie. Every upload makes a blob with a name of its own that is never written
again; names are `<project id>/<two digits>/<version>`, versions are 32 hexadecimal digits."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from ichicore.errors import ApiError
from server.base.context import NodeConfig

THREADS = 4  # that write to disk, of one worker
# How object stores say that they are full; the status alone tells with some.
SAYS_FULL = re.compile(
    r"status code: 507|<Code>(XMinioStorageFull|QuotaExceeded|InsufficientStorage)"
)


class Entry(NamedTuple):
    """A blob as the store lists it. modified: epoch seconds."""

    version: str
    size: int
    modified: float


class Sink(Protocol):
    """Takes one blob. write blocks and runs in a thread of `executor`, one call at a time."""

    def write(self, parts: list[bytes]) -> None: ...

    async def commit(self) -> None:
        """The blob is whole and durable when this returns."""
        ...

    async def abort(self) -> None:
        """Leaves nothing."""
        ...


class Store(Protocol):
    """Blobs of all projects. OSError or StoreError when the store fails."""

    executor: ThreadPoolExecutor

    def sink(self, project: str, version: str, size: int) -> Sink: ...

    def file(self, project: str, version: str) -> str | None:
        """Path of the blob on this machine; None where blobs are no files. FileNotFoundError."""
        ...

    async def read(self, project: str, version: str, start: int, end: int) -> bytes:
        """A piece, for small ones. FileNotFoundError."""
        ...

    def stream(self, project: str, version: str, start: int, end: int) -> AsyncIterator[bytes]:
        """A piece in chunks of bounded size. FileNotFoundError."""
        ...

    async def size(self, project: str, version: str) -> int | None:
        """Bytes of a blob; None when there is none."""
        ...

    async def delete(self, project: str, versions: list[str]) -> None:
        """Missing ones are no error; what an upload had begun goes too."""
        ...

    def entries(self, project: str) -> AsyncIterator[Entry]:
        """All blobs of a project, and what uploads have begun."""
        ...

    async def drop(self, project: str) -> None:
        """Deletes everything of a project."""
        ...

    async def check(self) -> None:
        """Writes, reads and deletes a probe; raises what goes wrong."""
        ...

    def close(self) -> None: ...


class StoreError(RuntimeError):
    """The store did not do what was asked; the text may be logged, not shown."""


def blob_name(project: str, version: str) -> str:
    return f"{project}/{version[:2]}/{version}"


def away() -> ApiError:
    return ApiError(
        503, "unavailable", "The file store does not answer.", headers=(("retry-after", "5"),)
    )


def full() -> ApiError:
    return ApiError(507, "insufficient_storage", "The file store is full.")


def open_store(config: NodeConfig) -> Store:
    """The store that the node's settings name."""
    from server.storage.disk import DiskStore

    url = config.storage_url
    if not url:
        return DiskStore(config.data_dir / "storage")
    if url.startswith("file://"):
        return DiskStore(Path(url.removeprefix("file://")))
    from server.storage.remote import RemoteStore

    return RemoteStore(url, config.data_dir / "storage-spool")
