"""What the kernel is asked for a child process of the node: its end, its name, its turns."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15


def die_with_parent(signal_number: int = signal.SIGKILL) -> Callable[[], None]:
    """A function to run in the new child: the kernel then sends it this signal when the thread
    that forked it ends. A change of the user afterwards takes that back.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number))
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie


def bind_to_parent(parent: int) -> None:
    """For a process that another program has forked for us: the kernel kills it when `parent`,
    the process id of that program, ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """The name that ps and top show, at most 15 bytes."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15])


def take_turns() -> None:
    """This process, and what it starts from now on, waits for its turn on a busy core instead of
    taking it from whoever wakes it: a request wakes four threads and processes on its way, and each
    switch in the middle of the others' work costs more than the work."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
