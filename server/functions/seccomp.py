"""A filter of system calls for function processes, as the kernel takes it.

It refuses IPv6 and all other address families but IPv4, unix and netlink sockets, new processes
(threads are allowed), tracing, mounts and namespaces, kernel modules, keys, and io_uring, whose
requests no filter sees.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
ALLOW = 0x7FFF0000
KILL = 0x80000000
ERRNO = 0x00050000
LOAD, JUMP_EQUAL, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NR, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; little-endian arguments
CLONE_THREAD = 0x10000
AF_UNIX, AF_INET, AF_NETLINK = 1, 2, 16
X32 = 0x40000000
NEW_MOUNT_CALLS = (428, 429, 430, 431, 432, 433, 442)
COMMON = (*NEW_MOUNT_CALLS, 438)  # pidfd_getfd
ABSENT = (425, 426, 427, 435)  # io_uring, clone3: as on a kernel that lacks them


class Machine(NamedTuple):
    """audit: the kernel's name of the architecture. denied: numbers of calls."""

    audit: int
    socket: int
    clone: int
    denied: tuple[int, ...]


MACHINES = {
    "x86_64": Machine(
        0xC000003E, 41, 56,
        (101, 310, 311, 246, 320, 175, 313, 176, 165, 166, 155, 161, 272, 308, 321, 298, 250, 248,
         249, 323, 304, 163, 167, 168, 169, 57, 58, 135, 179, 212, 172, 173, 153, 164, 227, 159,
         170, 171, 103, 139, 156, 174, 177, 178, 180, 183, 184, 185),
    ),
    "aarch64": Machine(
        0xC00000B7, 198, 220,
        (117, 270, 271, 104, 294, 105, 273, 106, 40, 39, 41, 51, 97, 268, 280, 241, 219, 217, 218,
         282, 265, 89, 224, 225, 142, 92, 60, 18, 58, 170, 112, 171, 161, 162, 116, 42),
    ),
}  # fmt: skip


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value & 0xFFFFFFFF)


def program(machine: str = "") -> bytes | None:
    """The filter for this machine, or None when its system calls are not known here."""
    known = MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    steps = [
        _step(LOAD, ARCH), _step(JUMP_EQUAL, known.audit, 1, 0), _step(RETURN, KILL),
        _step(LOAD, NR), _step(JUMP_GE, X32, 0, 1), _step(RETURN, ERRNO | errno.EPERM),
    ]  # fmt: skip
    for number in ABSENT:
        steps += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, ERRNO | errno.ENOSYS)]
    for number in (*known.denied, *COMMON):
        steps += [_step(JUMP_EQUAL, number, 0, 1), _step(RETURN, ERRNO | errno.EPERM)]
    steps += [
        _step(JUMP_EQUAL, known.socket, 0, 6),
        _step(LOAD, ARGUMENT),
        _step(JUMP_EQUAL, AF_UNIX, 3, 0), _step(JUMP_EQUAL, AF_INET, 2, 0),
        _step(JUMP_EQUAL, AF_NETLINK, 1, 0),
        _step(RETURN, ERRNO | errno.EAFNOSUPPORT), _step(RETURN, ALLOW),
        _step(JUMP_EQUAL, known.clone, 0, 3),
        _step(LOAD, ARGUMENT),
        _step(JUMP_SET, CLONE_THREAD, 1, 0), _step(RETURN, ERRNO | errno.EPERM),
        _step(RETURN, ALLOW),
    ]  # fmt: skip
    return b"".join(steps)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


class Filter:
    """A filter ready to be installed between fork and exec."""

    def __init__(self, steps: bytes) -> None:
        self.steps = steps
        self._program = _Program(len(steps) // 8, steps)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def install(self) -> bool:
        """For the calling process and what it becomes; it cannot be taken back."""
        if self._libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        pointer = ctypes.byref(self._program)
        return bool(self._libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0) == 0)
