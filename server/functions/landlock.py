"""Which files a process may see and change, by Linux's Landlock: for machines without namespaces.

Nothing but what is named is opened, listed or run, by the process or by what it starts; and it may
look into no other process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

CREATE, ADD, RESTRICT = 444, 445, 446  # the same numbers on every architecture
PR_SET_NO_NEW_PRIVS = 38
VERSION = 1  # flag that asks for the version
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL = 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
SEEN = EXECUTE | READ_FILE | READ_DIR
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ABOUT_SELF = ("/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys/fs/cgroup")


def version() -> int:
    """Of Landlock in this kernel; 0 without."""
    return max(0, _call(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION)))


def handled(version: int) -> int:
    """All rights over files that a version knows."""
    return (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1


class View:
    """seen: paths that may be read and run. own: folders in which everything is allowed. Those that
    are not there are left out. install() is for between fork and exec, and cannot be taken back."""

    def __init__(self, seen: Sequence[str | Path], own: Sequence[str | Path]) -> None:
        rights = handled(version())
        self.rules = [
            *((str(path), SEEN & rights) for path in (*seen, *ABOUT_SELF)),
            *((path, (READ_FILE | WRITE_FILE) & rights) for path in DEVICES),
            *((str(path), rights) for path in own),
        ]  # fmt: skip
        self._attributes = struct.pack("=Q", rights)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def install(self) -> bool:
        attributes = ctypes.create_string_buffer(self._attributes)
        rules = _call(CREATE, attributes, ctypes.c_size_t(8), ctypes.c_uint32(0))
        if rules < 0:
            return False
        try:
            for path, rights in self.rules:
                with contextlib.suppress(OSError):
                    self._add(rules, path, rights)
            if self._libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
                return False
            return _call(RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
        finally:
            os.close(rules)

    @staticmethod
    def _add(rules: int, path: str, rights: int) -> None:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= OF_FILES
            attributes = ctypes.create_string_buffer(struct.pack("=Qi", rights, place))
            _call(
                ADD, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), attributes, ctypes.c_uint32(0)
            )
        finally:
            os.close(place)


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))
