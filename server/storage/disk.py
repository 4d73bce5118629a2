"""Blobs as files of this machine: written beside, made durable, then renamed into place."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from server.base.durable import sync_folder
from server.storage.stores import THREADS, Entry, StoreError

T = TypeVar("T")
CHUNK = 256 << 10  # bytes
PART = ".part"  # ending of a file whose upload is under way
AHEAD = 4 << 20  # bytes after which the disk is told to begin with them


class FileSink:
    """Writes a file of a known size: `<target>.part` until it is whole and, when it is to be
    durable, on the disk."""

    def __init__(
        self, target: Path, size: int, executor: ThreadPoolExecutor, *, durable: bool = True
    ) -> None:
        self.target = target
        self.part = target.with_name(target.name + PART)
        self.size = size
        self.executor = executor
        self.durable = durable
        self.fd = -1
        self.written = 0
        self._begun = 0  # bytes that the disk has been told of
        self.ended = False
        self._lock = threading.Lock()  # a request that is given up does not wait for its threads

    def write(self, parts: list[bytes]) -> None:
        with self._lock:
            self._write(parts)

    def _write(self, parts: list[bytes]) -> None:
        if self.fd < 0:
            self._open()
        for start in range(0, len(parts), 512):  # IOV_MAX is 1024
            views = [memoryview(part) for part in parts[start : start + 512]]
            while views:
                done = os.writev(self.fd, views)
                self.written += done
                while views and done >= len(views[0]):
                    done -= len(views.pop(0))
                if done:
                    views[0] = views[0][done:]
        if self.durable and self.written - self._begun >= AHEAD:
            _begin(self.fd, self._begun, self.written - self._begun)
            self._begun = self.written

    async def commit(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self.executor, self.finish)

    async def abort(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self.executor, self.discard)

    def finish(self) -> None:
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        if self.fd < 0:
            self._open()
        if self.written != self.size:
            raise StoreError(f"{self.written} bytes were written of {self.size}")
        if self.durable:
            os.fsync(self.fd)
        os.close(self.fd)
        self.fd = -1
        self.part.rename(self.target)
        if self.durable:
            sync_folder(self.target.parent)

    def discard(self) -> None:
        with self._lock:
            self.ended = True
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            for path in (self.part, self.target):
                path.unlink(missing_ok=True)

    def _open(self) -> None:
        if self.ended:
            raise StoreError("the upload has been given up")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self.fd = os.open(self.part, flags, 0o600)
        except FileNotFoundError:
            make_folder(self.target.parent)
            self.fd = os.open(self.part, flags, 0o600)
        if self.size:
            with contextlib.suppress(OSError):  # a file system may not know how to
                os.posix_fallocate(self.fd, 0, self.size)
                return
            free = os.fstatvfs(self.fd)
            if free.f_bavail * free.f_frsize < self.size:
                raise OSError(28, "No space left on device")


_sync_file_range: Any = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
WRITE = 2  # SYNC_FILE_RANGE_WRITE


def _begin(fd: int, start: int, length: int) -> None:
    """Lets the disk write these bytes while others still arrive, so that little is left for fsync,
    which alone says whether all went well."""
    if _sync_file_range is not None:
        _sync_file_range(fd, start, length, WRITE)


def make_folder(folder: Path) -> None:
    """With its parents, each durable."""
    if folder.exists():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


class DiskStore:
    """Blobs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.executor = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self._texts = str(root)

    def sink(self, project: str, version: str, size: int) -> FileSink:
        return FileSink(self._path(project, version), size, self.executor)

    def file(self, project: str, version: str) -> str | None:
        path = f"{self._texts}/{project}/{version[:2]}/{version}"
        os.stat(path)
        return path

    async def read(self, project: str, version: str, start: int, end: int) -> bytes:
        return await self._run(_read, self._path(project, version), start, end)

    async def stream(
        self, project: str, version: str, start: int, end: int
    ) -> AsyncIterator[bytes]:
        path = self._path(project, version)
        fd = await self._run(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while start < end:
                chunk = await self._run(os.pread, fd, min(CHUNK, end - start), start)
                if not chunk:
                    raise StoreError(f"{path} is shorter than its record says")
                start += len(chunk)
                yield chunk
        finally:
            os.close(fd)

    async def size(self, project: str, version: str) -> int | None:
        try:
            found = await self._run(os.stat, self._path(project, version))
        except FileNotFoundError:
            return None
        return found.st_size

    async def delete(self, project: str, versions: list[str]) -> None:
        await self._run(self._unlink, project, versions)

    async def entries(self, project: str) -> AsyncIterator[Entry]:
        folder = self.root / project
        for number in range(256):
            for entry in await self._run(_scan, folder / f"{number:02x}"):
                yield entry

    async def drop(self, project: str) -> None:
        await self._run(lambda: shutil.rmtree(self.root / project, ignore_errors=True))

    async def check(self) -> None:
        sink = self.sink("probe", secrets.token_hex(16), 5)
        await self._run(sink.write, [b"probe"])
        await sink.commit()
        await sink.abort()

    def close(self) -> None:
        self.executor.shutdown(wait=False)

    def _path(self, project: str, version: str) -> Path:
        return self.root / project / version[:2] / version

    def _unlink(self, project: str, versions: list[str]) -> None:
        for version in versions:
            path = self._path(project, version)
            path.unlink(missing_ok=True)
            path.with_name(version + PART).unlink(missing_ok=True)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)


def _read(path: Path, start: int, end: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), end - start, start)
    if len(data) != end - start:
        raise StoreError(f"{path} is shorter than its record says")
    return data


def _scan(folder: Path) -> list[Entry]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    seen = entry.stat()
                    found.append(Entry(entry.name.removesuffix(PART), seen.st_size, seen.st_mtime))
    except FileNotFoundError:
        pass
    return found
