"""The files of the embedded document servers: one folder a project, copied from a template.

A template is a folder that a server has made and left in order, with the administrator's login in
it. What was interrupted lies beside the projects' folders under other names and is cleared away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from pathlib import Path

from server.base.durable import sync_folder

DATABASE = re.compile(r"[A-Za-z0-9_-]{1,63}\Z")
BLOCK = 1 << 16  # bytes that are either copied or left out
ZEROS = bytes(BLOCK)
KEEP_SIZE, PUNCH_HOLE = 1, 2  # flags of fallocate(2)
NEXT = "next-"  # begins the name of a folder that is to take the place of a project's
BEFORE = ".before"  # ends the name of one that another takes the place of
LOG_LIMIT = 1 << 20  # bytes of a mongo.log kept from one start to the next


class Folders:
    """root: the node's folder `mongo`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.template = root / "template"
        self.projects = root / "projects"
        self.removed = root / "removed"

    def of(self, database: str) -> Path:
        """ValueError for what is no name of a project's database."""
        if not DATABASE.match(database):
            raise ValueError("no name of a database")
        return self.projects / database

    def there(self, database: str) -> bool:
        return bool(DATABASE.match(database)) and (self.projects / database).is_dir()

    def mark(self, database: str) -> Path:
        """Says which login was made there last."""
        return self.of(database) / "login"

    def tidy(self) -> None:
        """Clears away what an earlier run left half done."""
        for folder in (self.root, self.projects, self.removed):
            folder.mkdir(mode=0o700, exist_ok=True)
        for before in self.projects.glob(f"*{BEFORE}"):
            database = before.name.removesuffix(BEFORE)
            if not self.there(database):  # what comes in its place was whole
                following = self.of(NEXT + database)
                (following if following.is_dir() else before).rename(self.of(database))
                sync_folder(self.projects)
            self._discard(before)
        for rest in [*self.projects.glob("*.new"), *self.removed.iterdir()]:
            shutil.rmtree(rest, ignore_errors=True)

    def make(self, database: str) -> None:
        """A copy of the template, unless there is one; whole even if the machine stops."""
        target = self.of(database)
        if target.is_dir():
            return
        partial = self.projects / f"{database}.new"
        shutil.rmtree(partial, ignore_errors=True)
        copy(self.template, partial)
        partial.rename(target)
        sync_folder(self.projects)

    def replace(self, database: str, by: str) -> None:
        """Puts a folder in the place of another; nobody may have one of them open. Should the
        machine stop meanwhile, tidy() ends it."""
        before = self.projects / f"{database}{BEFORE}"
        with contextlib.suppress(FileNotFoundError):  # of a project that has no documents yet
            self.of(database).rename(before)
        self.of(by).rename(self.of(database))
        sync_folder(self.projects)
        self._discard(before)

    def remove(self, database: str) -> None:
        """All of it; nobody may have it open."""
        self._discard(self.of(database))

    def _discard(self, folder: Path) -> None:
        target = self.removed / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(target)
            sync_folder(self.projects)
        shutil.rmtree(target, ignore_errors=True)


def copy(source: Path, target: Path) -> None:
    """A folder with its files on the disk. What is nothing but zeros takes no room."""
    target.mkdir(mode=0o700)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            copy(entry, target / entry.name)
        else:
            with open(entry, "rb") as old, open(target / entry.name, "xb") as new:
                while data := old.read(BLOCK):
                    if data == ZEROS[: len(data)]:
                        new.seek(len(data), os.SEEK_CUR)
                    else:
                        new.write(data)
                new.truncate()
                new.flush()
                os.fsync(new.fileno())
    sync_folder(target)


def shrink(folder: Path) -> None:
    """Gives back the room of the zeros at the ends of the log's files, which a server reserves when
    it starts. It must have ended."""
    for path in (folder / "data").glob("**/WiredTigerLog.*"):
        with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
            _punch(file.fileno(), _used(file.fileno()))


def _used(descriptor: int) -> int:
    """Bytes up to the last one that is not zero."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - BLOCK)
        data = os.pread(descriptor, end - begin, begin)
        if data != ZEROS[: len(data)]:
            return end
        end = begin
    return 0


def _punch(descriptor: int, begin: int) -> None:
    length = os.fstat(descriptor).st_size - begin
    if length > 0:
        ctypes.CDLL(None, use_errno=True).fallocate(
            descriptor, KEEP_SIZE | PUNCH_HOLE, ctypes.c_int64(begin), ctypes.c_int64(length)
        )


def rotate(log: Path) -> None:
    """Begins a log anew that has become long; the one before is kept."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_name(f"{log.name}.1"))
