"""Makes the next files of the embedded PostgreSQL's log before they are needed.

The server makes one itself when it has none left to use again, and all commits wait meanwhile. A
file that is there already it takes as it is, as it does with those that it makes at a checkpoint.
One that it has made without writing it gets its room on the disk here: a server that finds none for
its log ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

import psycopg

from server.base.durable import sync_folder
from server.control.database import Connection, connect, fetch

PAUSE = 0.25  # seconds between looks
AHEAD = 64 << 20  # bytes of log that are ready, also for when the disk is full
MORE = 256 << 20  # bytes that are ready after a while, where the disk has room for much more
PART_OF_FREE = 64  # of what is free on the disk, these are at most so small a part
STEP = 8 << 20  # bytes of these that are made at once
FEW = 1  # files used between two looks, beyond which nothing is made
SPARE = 1 << 30  # bytes free on the disk, below which all is made at once
PART = "xlogtemp.ichibase"  # what is named so, the server removes at its start
BLOCK = bytes(1 << 18)
WHERE = """select pg_walfile_name(pg_current_wal_insert_lsn()),
  (select setting::int8 from pg_settings where name = 'wal_segment_size')"""


def number_of(name: str, size: int) -> int:
    """Which one a file of the log is. size: bytes of each."""
    return int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:], 16)


def name_of(number: int, like: str, size: int) -> str:
    """The name of a file. like: that of another one of the same timeline."""
    high, low = divmod(number, (1 << 32) // size)
    return f"{like[:8]}{high:08X}{low:08X}"


class LogFiles:
    """folder: of the log. dsn: of the server's administrator."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self._before = -1  # where all was ready
        self._seen = 0  # where the log was at the last look

    async def run(self) -> None:
        """Until cancelled. While the server is away, or the disk is full, it is tried again."""
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                async with await connect(self.dsn) as admin:
                    while True:
                        await self.look(admin)
                        await asyncio.sleep(PAUSE)
            await asyncio.sleep(20 * PAUSE)

    async def look(self, admin: Connection) -> int:
        """Makes those that are missing; gives how many. OSError."""
        name, size = (await fetch(admin, WHERE))[0]
        number = number_of(name, size)
        if number == self._before:
            return 0
        used, self._seen = number - self._seen, number
        free = shutil.disk_usage(self.folder).free
        # While much is written, what is written here would hold up commits more than it saves.
        if used > FEW and free > SPARE:
            return 0
        await asyncio.to_thread(_give_room, self.folder / name, size)
        soon = AHEAD // size
        missing = self._missing(range(1, soon + 1), number, name, size)
        if not missing:
            wanted = range(soon + 1, min(MORE, free // PART_OF_FREE) // size + 1)
            missing = self._missing(wanted, number, name, size)[: STEP // size]
        if missing:
            await asyncio.to_thread(self._make, missing, size)
        else:
            self._before = number
        return len(missing)

    def _missing(self, steps: range, number: int, name: str, size: int) -> list[Path]:
        paths = [self.folder / name_of(number + step, name, size) for step in steps]
        return [path for path in paths if not path.exists()]

    def _make(self, paths: list[Path], size: int) -> None:
        owner = self.folder.stat()
        part = self.folder / PART
        for path in paths:
            try:
                with open(part, "wb", buffering=0, opener=_private) as file:
                    if os.geteuid() == 0:
                        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                    for _ in range(0, size, len(BLOCK)):
                        file.write(BLOCK)
                    os.fsync(file.fileno())
                # One that the server has made meanwhile stays.
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)
                    sync_folder(self.folder)  # commits in it are lost with its name
            finally:
                part.unlink(missing_ok=True)


def _give_room(path: Path, size: int) -> None:
    """Changes nothing that is in it. OSError when there is no room. The C library's posix_fallocate
    would write where the file system cannot do it, beside the server."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return
    with contextlib.suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
        room = ctypes.c_int64(size)
        if libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), room) and (
            ctypes.get_errno() == errno.ENOSPC
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
