"""Where backups are kept: a folder, or an object store by its URL."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

READ = 1 << 20


class StoreError(RuntimeError):
    """The store does not take or give what was asked; the text says why."""


class Store(Protocol):
    """Files by a relative path. put is atomic: the file is there as a whole or not at all."""

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
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"cannot write {target}: {error.strerror}") from None
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    async def get(self, path: str) -> AsyncIterator[bytes]:
        target = self._path(path)
        try:
            with open(target, "rb") as file:  # noqa: ASYNC230 - large reads of a local file
                while piece := file.read(READ):
                    yield piece
                    await asyncio.sleep(0)
        except OSError as error:
            raise StoreError(f"cannot read {target}: {error.strerror}") from None

    async def remove(self, folder: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._path(folder), ignore_errors=True)

    async def names(self, folder: str) -> list[str]:
        where = self._path(folder) if folder else self.root
        if not where.is_dir():
            return []
        files = [p for p in where.rglob("*") if p.is_file() and p.suffix != ".part"]
        return sorted(str(path.relative_to(self.root)) for path in files)


class ObjectStore:
    """An object store; its credentials come from the environment, as its own tools take them."""

    def __init__(self, url: str) -> None:
        from server.storage.remote import StoreUrlError, connect

        try:
            self.store: Any = connect(url)
        except StoreUrlError as error:
            raise StoreError(str(error).replace("storage_url", "backup_url")) from None

    async def put(self, path: str, source: AsyncIterator[bytes]) -> None:
        import obstore

        try:
            await obstore.put_async(self.store, path, source)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StoreError(f"cannot write {path}: {_line(error)}") from None

    async def get(self, path: str) -> AsyncIterator[bytes]:
        import obstore

        try:
            found = await obstore.get_async(self.store, path)
            async for piece in found.stream(min_chunk_size=READ):
                yield bytes(piece)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StoreError(f"cannot read {path}: {_line(error)}") from None

    async def remove(self, folder: str) -> None:
        import obstore

        names = await self.names(folder)
        if names:
            try:
                await obstore.delete_async(self.store, names)
            except (OSError, obstore.exceptions.BaseError) as error:
                raise StoreError(f"cannot remove {folder}: {_line(error)}") from None

    async def names(self, folder: str) -> list[str]:
        import obstore

        found: list[str] = []
        try:
            async for batch in obstore.list(self.store, prefix=folder or None):
                found += [one["path"] for one in batch]
        except (OSError, obstore.exceptions.BaseError) as error:
            raise StoreError(f"cannot list {folder}: {_line(error)}") from None
        return sorted(found)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def open_store(url: str | None, data_dir: Path) -> Store:
    """The store that the node's settings name."""
    if url is None:
        return Folder(data_dir / "backups")
    if "://" in url and not url.startswith("file://"):
        return ObjectStore(url)
    return Folder(Path(url.removeprefix("file://")).expanduser())
