"""Where backups are kept: a folder, or an object store by its URL."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from server.backup.seal import whole_chunks
from server.base.durable import sync_folder
from server.storage.stores import SAYS_FULL

READ = 1 << 20
# Bytes of an object of a large file. It may become less, never more: a smaller one is the last.
PIECE = 16 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")  # which may hold a signature


class StoreError(RuntimeError):
    """The store does not take or give what was asked; the text says why."""

    def __init__(self, text: str, code: str = "backup_store_unavailable") -> None:
        super().__init__(text)
        self.code = code


class Store(Protocol):
    """Files by a relative path, each written once. A file that put has not finished is not there,
    or is removed with its folder."""

    async def put(self, path: str, source: AsyncIterator[bytes]) -> None: ...

    def get(self, path: str) -> AsyncIterator[bytes]: ...

    async def remove(self, folder: str) -> None: ...

    async def names(self, folder: str) -> list[str]: ...


class Folder:
    """A folder of this machine, readable by the node's account only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, path: str) -> Path:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise StoreError(f"{path!r} is no path of a backup")
        return self.root / path

    async def put(self, path: str, source: AsyncIterator[bytes]) -> None:
        target = self._path(path)
        partial = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                async for piece in source:
                    file.write(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            partial.replace(target)
            await asyncio.to_thread(sync_folder, target.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _said(f"cannot write {target}", error) from None
            raise

    async def get(self, path: str) -> AsyncIterator[bytes]:
        target = self._path(path)
        try:
            with open(target, "rb") as file:  # noqa: ASYNC230 - large reads of a local file
                while piece := file.read(READ):
                    yield piece
                    await asyncio.sleep(0)
        except OSError as error:
            raise _said(f"cannot read {target}", error) from None

    async def remove(self, folder: str) -> None:
        path = self._path(folder)
        try:
            await asyncio.to_thread(shutil.rmtree, path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _said(f"cannot remove {path}", error) from None

    async def names(self, folder: str) -> list[str]:
        where = self._path(folder) if folder else self.root
        if not where.is_dir():
            return []
        files = [p for p in where.rglob("*") if p.is_file() and p.suffix != ".part"]
        return sorted(str(path.relative_to(self.root)) for path in files)


def _said(what: str, error: OSError) -> StoreError:
    code = "backup_store_unavailable"
    if error.errno in FULL:
        code = "backup_store_full"
    elif isinstance(error, PermissionError):
        code = "backup_store_refused"
    return StoreError(f"{what}: {error.strerror}", code)


class ObjectStore:
    """An object store; its credentials come from the environment, as its own tools take them.

    A large file is several objects: `name`, `name.1`, `name.2`. Each is sent in one request, so
    what a process that is killed leaves is listed and can be removed, which the parts of an upload
    in parts are not.
    """

    def __init__(self, url: str) -> None:
        from server.storage.remote import StoreUrlError, connect

        try:
            self.store: Any = connect(url)
        except StoreUrlError as error:
            raise StoreError(
                str(error).replace("storage_url", "backup_url"), "backup_url_invalid"
            ) from None

    async def put(self, path: str, source: AsyncIterator[bytes]) -> None:
        number = 0
        async for piece in whole_chunks(source, PIECE):
            await self._put(_object(path, number), piece)
            number += 1
        if not number:
            await self._put(path, b"")

    async def _put(self, name: str, data: bytes) -> None:
        import obstore

        try:
            await obstore.put_async(self.store, name, data, use_multipart=False)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _refused(f"cannot write {name}", error) from None

    async def get(self, path: str) -> AsyncIterator[bytes]:
        import obstore

        number, size = 0, PIECE
        while size >= PIECE:
            name = _object(path, number)
            try:
                found = await obstore.get_async(self.store, name)
                size = found.meta["size"]
                async for piece in found.stream(min_chunk_size=READ):
                    yield bytes(piece)
            except FileNotFoundError as error:
                if number:
                    return  # the one before was the last, or the checksum will tell
                raise _refused(f"cannot read {name}", error) from None
            except (OSError, obstore.exceptions.BaseError) as error:
                raise _refused(f"cannot read {name}", error) from None
            number += 1

    async def remove(self, folder: str) -> None:
        import obstore

        names = await self.names(folder)
        try:
            for start in range(0, len(names), 500):
                some = names[start : start + 500]
                try:
                    await obstore.delete_async(self.store, some)
                except FileNotFoundError:  # of several, one that was missing
                    for name in some:
                        with contextlib.suppress(FileNotFoundError):
                            await obstore.delete_async(self.store, name)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _refused(f"cannot remove {folder}", error) from None

    async def names(self, folder: str) -> list[str]:
        import obstore

        found: list[str] = []
        try:
            async for batch in obstore.list(self.store, prefix=folder or None):
                found += [one["path"] for one in batch]
        except (OSError, obstore.exceptions.BaseError) as error:
            raise _refused(f"cannot list {folder}", error) from None
        return sorted(found)


def _object(path: str, number: int) -> str:
    return f"{path}.{number}" if number else path


def one_line(error: Exception) -> str:
    """What an object store has said, without secrets."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return QUERY.sub(r"\1", line)[:300]


def _refused(what: str, error: Exception) -> StoreError:
    from obstore import exceptions

    text = str(error).strip()
    code = "backup_store_unavailable"
    if SAYS_FULL.search(text):
        code = "backup_store_full"
    elif isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        code = "backup_store_refused"
    return StoreError(f"{what}: {one_line(error)}", code)


def open_store(url: str | None, data_dir: Path) -> Store:
    """The store that the node's settings name."""
    if url is None:
        return Folder(data_dir / "backups")
    if "://" in url and not url.startswith("file://"):
        return ObjectStore(url)
    return Folder(Path(url.removeprefix("file://")).expanduser())
