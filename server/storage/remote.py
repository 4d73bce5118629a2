"""Blobs in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

An upload is collected in a file of this machine and checked there; only what is whole and right
goes to the object store. Reads are streamed, or fetched whole when they are small.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from server.storage.disk import FileSink
from server.storage.stores import SAYS_FULL, THREADS, Entry, StoreError, blob_name

WHOLE = 8 << 20  # bytes up to which a blob is sent in one request
PART = 8 << 20  # bytes of one part of a larger one; 10,000 parts make 80 GB
LARGEST_PART = 64 << 20
MOST_PARTS = 9_000
CHUNK = 256 << 10  # bytes of a read
SENDING = 2  # uploads of one worker that are sent on at the same time, one part each
RETRY = {"max_retries": 3}
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")


class StoreUrlError(ValueError):
    """A storage_url that cannot be used; the text says why."""


def connect(url: str) -> Any:
    """The object store at a URL. Credentials and the endpoint come from the environment, under the
    names that each vendor's own tools use (AWS_ACCESS_KEY_ID, GOOGLE_..., AZURE_...)."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise StoreUrlError(
            "storage_url is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or "
            "file:///folder"
        )
    options: dict[str, Any] = {"timeout": "300s", "connect_timeout": "10s"}
    if _endpoint(parts.scheme).startswith("http://"):
        options["allow_http"] = True
    try:
        return from_url(url, client_options=options, retry_config=RETRY)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise StoreUrlError(f"storage_url cannot be used: {error}") from None


def _endpoint(scheme: str) -> str:
    """The address that the environment names for a store; "" for the vendor's own."""
    given = os.environ.get
    if scheme.startswith("s3"):
        return given("AWS_ENDPOINT_URL") or given("AWS_ENDPOINT") or ""
    if scheme == "gs":
        try:
            account = json.loads(given("GOOGLE_SERVICE_ACCOUNT_KEY") or "{}")
            return str(account.get("gcs_base_url", ""))
        except (ValueError, AttributeError):
            return ""
    return given("AZURE_STORAGE_ENDPOINT") or given("AZURE_ENDPOINT") or ""


class RemoteSink:
    """Collects one blob in a file, then sends it."""

    def __init__(self, store: RemoteStore, name: str, spool: FileSink) -> None:
        self.store = store
        self.name = name
        self.spool = spool

    def write(self, parts: list[bytes]) -> None:
        self.spool.write(parts)

    async def commit(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.store.executor, self.spool.finish)
        try:
            async with self.store.sending:
                await self.store.send(self.name, self.spool.target, self.spool.size)
        finally:
            await self.spool.abort()

    async def abort(self) -> None:
        await self.spool.abort()
        await self.store.remove([self.name])


class RemoteStore:
    """spool: folder for uploads under way; each process has a part of it to itself."""

    def __init__(self, url: str, spool: Path) -> None:
        self.store = connect(url)
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self.spool = spool / str(os.getpid())
        self.sending = asyncio.Semaphore(SENDING)
        _clear(spool)

    def sink(self, project: str, version: str, size: int) -> RemoteSink:
        spool = FileSink(self.spool / version, size, self.executor, durable=False)
        return RemoteSink(self, blob_name(project, version), spool)

    def file(self, project: str, version: str) -> str | None:
        return None

    async def read(self, project: str, version: str, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        name = blob_name(project, version)
        with _translated():
            return bytes(await obstore.get_range_async(self.store, name, start=start, end=end))

    async def stream(
        self, project: str, version: str, start: int, end: int
    ) -> AsyncIterator[bytes]:
        if start >= end:
            return
        name = blob_name(project, version)
        with _translated():
            answer = await obstore.get_async(self.store, name, options={"range": (start, end)})
            left = end - start
            async for chunk in answer.stream(min_chunk_size=CHUNK):
                data = bytes(chunk)
                left -= len(data)
                yield data
            if left:
                raise StoreError(f"{name} is shorter than its record says")

    async def size(self, project: str, version: str) -> int | None:
        try:
            with _translated():
                found = await obstore.head_async(self.store, blob_name(project, version))
        except FileNotFoundError:
            return None
        return int(found["size"])

    async def delete(self, project: str, versions: list[str]) -> None:
        await self.remove([blob_name(project, version) for version in versions])

    async def remove(self, names: list[str]) -> None:
        for start in range(0, len(names), 500):
            with _translated():
                try:
                    await obstore.delete_async(self.store, names[start : start + 500])
                except FileNotFoundError:  # of several, one that was missing
                    for name in names[start : start + 500]:
                        with contextlib.suppress(FileNotFoundError):
                            await obstore.delete_async(self.store, name)

    async def entries(self, project: str) -> AsyncIterator[Entry]:
        with _translated():
            async for page in obstore.list(self.store, prefix=f"{project}/", chunk_size=1000):
                for found in page:
                    version = found["path"].rpartition("/")[2]
                    yield Entry(version, found["size"], found["last_modified"].timestamp())

    async def drop(self, project: str) -> None:
        names: list[str] = []
        async for entry in self.entries(project):
            names.append(blob_name(project, entry.version))
            if len(names) >= 500:
                await self.remove(names)
                names = []
        await self.remove(names)

    async def check(self) -> None:
        name = f"probe/{secrets.token_hex(8)}"
        with _translated():
            await obstore.put_async(self.store, name, b"probe")
            await obstore.get_async(self.store, name)
        await self.remove([name])

    async def send(self, name: str, file: Path, size: int) -> None:
        """A file's bytes into the store, one part at a time. The name is used for the first time,
        so there is nothing to overwrite."""
        part = min(LARGEST_PART, max(PART, -(-size // MOST_PARTS)))
        with _translated(writing=True):
            if size == 0:
                await obstore.put_async(self.store, name, b"")
                return
            await obstore.put_async(
                self.store, name, file, use_multipart=size > WHOLE, chunk_size=part,
                max_concurrency=1,
            )  # fmt: skip

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.spool.rmdir()
        self.executor.shutdown(wait=False)


@contextlib.contextmanager
def _translated(*, writing: bool = False) -> Any:
    """FileNotFoundError stays; everything else that goes wrong becomes a StoreError. writing: but
    for a store that is full, an OSError as for a disk."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except (BaseError, OSError) as error:
        if writing and SAYS_FULL.search(str(error)):
            raise OSError(errno.ENOSPC, "the object store is full") from None
        raise StoreError(str(error)[:500]) from None


_clearing = threading.Lock()


def _clear(spool: Path) -> None:
    """Removes what processes that are gone have left."""
    with _clearing, contextlib.suppress(FileNotFoundError):
        for folder in spool.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if int(folder.name) != os.getpid():  # ours is of a process that had our number
                    os.kill(int(folder.name), 0)
                    continue
            except PermissionError:
                continue
            except ProcessLookupError:
                pass
            shutil.rmtree(folder, ignore_errors=True)
