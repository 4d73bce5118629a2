"""Where a large result body waits: an unlinked temporary file."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator

CHUNK = 256 << 10


class Spool:
    """A body of `size` bytes, readable any number of times until it is closed.

    The file has no name and goes with its descriptor. Iterate asynchronously for its chunks, or
    hand on `path`, which opens it anew for as long as this object is open.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Appends; OSError when the file system is full. Goes to the page cache: no waiting."""
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.size += len(piece)

    def __len__(self) -> int:
        return self.size

    @property
    def path(self) -> str:
        """A path that opens the file in this process while the spool is open."""
        return f"/proc/self/fd/{self._file.fileno()}"

    def read(self, offset: int = 0, size: int = -1) -> bytes:
        """Bytes from `offset`, to the end by default. Blocks while the disk is read."""
        wanted = self.size - offset if size < 0 else min(size, self.size - offset)
        pieces = []
        while wanted > 0:
            piece = os.pread(self._file.fileno(), wanted, offset)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for offset in range(0, self.size, CHUNK):
            yield await loop.run_in_executor(None, self.read, offset, CHUNK)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._file.close()
