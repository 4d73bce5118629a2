"""Which share of the processors a process gets when others want them too. Linux only.

A weight is a percentage: a process of weight 10 gets a tenth of the time of one of weight 100 while
both want it, and all of it while nobody else does.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

FULL = 100
ASIDE = 2  # niceness of what has a full weight and still lets the database and the gateway go first
NORMAL, BATCH = getattr(os, "SCHED_OTHER", 0), getattr(os, "SCHED_BATCH", 3)
IDLE = getattr(os, "SCHED_IDLE", 5)


class Turn(NamedTuple):
    """How a process takes its turns. policy: of the normal one, when it wakes up it may take the
    processor from another one; of SCHED_BATCH, it waits for the end of that one's turn; of
    SCHED_IDLE likewise, and to all others its processor counts as free. length: nanoseconds, 0 for
    the usual one.

    From Linux 6.12 on what wakes up interrupts a much longer turn than its own at once, if it may
    interrupt at all. A turn that is hardly longer goes on until the next tick of the clock, and
    lasts that long itself."""

    policy: int
    length: int


FIRST = Turn(NORMAL, 200_000)  # others wait for it, while somebody else is heavy
MIDDLE = Turn(NORMAL, 500_000)  # it serves many projects, and should let them come in between
SECOND = Turn(NORMAL, 2_000_000)  # goes before the last ones, and lets the first ones in
THIRD = Turn(NORMAL, 30_000_000)  # goes before the last ones alone
USUAL = Turn(BATCH, 0)  # nobody interrupts anybody, which gets most done
YIELDING = Turn(BATCH, 500_000)  # interrupts nobody, and lets others in soon
LAST = Turn(BATCH, 100_000_000)  # the longest that Linux takes: all others may interrupt it
BEHIND = Turn(IDLE, 100_000_000)  # gets next to nothing while others want a processor
NUMBERS = {  # of system calls without a function in older C libraries
    "x86_64": {"sched_setattr": 314, "setresuid": 117},
    "aarch64": {"sched_setattr": 274, "setresuid": 147},
}
SAME = ctypes.c_uint(2**32 - 1)  # an account that stays as it is


class Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2)."""

    _fields_ = (
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32), ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64),
    )  # fmt: skip


def usable() -> bool:
    """Whether this system has what the functions below use."""
    return sys.platform == "linux"


def niceness(weight: int) -> int:
    """0 for a full weight, from -10 to 19: each step is a fifth less."""
    return min(19, max(-10, round(math.log(FULL / max(1, weight), 1.25))))


def share(process: int, weight: int) -> None:
    """Gives a process with all its threads its weight. Lowering needs the process to be of this
    account, or root; raising needs root or CAP_SYS_NICE. OSError: ProcessLookupError when there is
    none, BlockingIOError where the system wants to be asked again a moment later."""
    nice = niceness(weight)

    def change() -> None:
        for thread in _threads(process):
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, nice)

    def change_group() -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/{process}/autogroup").write_text(f"{nice}\n")

    _allowed(process, change)
    # Where no control group holds them, Linux weighs sessions against each other before the
    # processes in them; a server process of PostgreSQL and a function are a session each.
    if os.getsid(process) == process and _sessions_are_weighed():
        _allowed(process, change_group)


def _sessions_are_weighed() -> bool:
    try:
        return Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() != "0"
    except OSError:
        return False


def queue(process: int, turn: Turn) -> None:
    """How a process with all its threads takes its turns. OSError."""

    def change() -> None:
        for thread in _threads(process):
            with contextlib.suppress(ProcessLookupError):
                if not turns(thread, turn):
                    os.sched_setscheduler(thread, turn.policy, os.sched_param(0))

    _allowed(process, change)


def can_return() -> bool:
    """Whether what has been put BEHIND can be put elsewhere again, which not everybody may."""
    found = []

    def attempt() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, IDLE, os.sched_param(0))
            os.sched_setscheduler(0, NORMAL, os.sched_param(0))
            found.append(True)

    if usable():
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    return bool(found)


def arrange(process: int, weight: int, turn: Turn) -> None:
    """Both, where the system lets us."""
    with contextlib.suppress(OSError):
        share(process, weight)
        queue(process, turn)


def processors() -> frozenset[int]:
    """The numbers of those that this process may use."""
    return frozenset(os.sched_getaffinity(0) if usable() else ())


def most(numbers: frozenset[int]) -> frozenset[int]:
    """Those that are left when a quarter of them, and at least one, is kept for others; the last
    ones, since devices mostly interrupt the first. All of them where there is only one."""
    kept = max(1, len(numbers) // 4)
    return frozenset(sorted(numbers)[kept:]) or numbers


def place(process: int, numbers: frozenset[int]) -> None:
    """Lets a process with all its threads run on these processors alone. OSError."""

    def change() -> None:
        for thread in _threads(process):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, numbers)

    _allowed(process, change)


def turns(thread: int, turn: Turn) -> bool:
    """How a thread, 0 for the calling one, takes its turns. False where the system refuses, as
    kernels before 6.12 may."""
    number = NUMBERS.get(platform.machine(), {}).get("sched_setattr")
    if turn.policy == IDLE:  # there the thread keeps the length that it had before
        if not turns(thread, Turn(BATCH, turn.length)):
            return False
        os.sched_setscheduler(thread, IDLE, os.sched_param(0))
        return True
    wanted = Attributes(
        size=ctypes.sizeof(Attributes), policy=turn.policy, runtime=turn.length,
        nice=os.getpriority(os.PRIO_PROCESS, thread),
    )  # fmt: skip
    return number is not None and not _call(number, thread, ctypes.byref(wanted), 0)


def _threads(process: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{process}/task")]
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {process}") from None


def _allowed(process: int, change: Callable[[], None]) -> None:
    """In many containers root may not do it for other accounts, but may become them."""
    try:
        change()
    except PermissionError:
        account = os.stat(f"/proc/{process}").st_uid
        if os.geteuid() != 0 or account == 0:
            raise
        with _as_account(account):
            change()


def _call(number: int, *arguments: object) -> int:
    """0, or the error number."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() or 1 if libc.syscall(number, *arguments) else 0


@contextlib.contextmanager
def _as_account(account: int) -> Iterator[None]:
    """This thread alone acts as another account meanwhile; the C library would change them all."""
    number = NUMBERS.get(platform.machine(), {}).get("setresuid")
    if number is None or _call(number, SAME, ctypes.c_uint(account), SAME):
        raise PermissionError("cannot act as the account of the process")
    try:
        yield
    finally:
        if _call(number, SAME, ctypes.c_uint(0), SAME):
            os.abort()  # nothing may go on as somebody else
