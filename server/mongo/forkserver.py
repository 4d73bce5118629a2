# SPDX-License-Identifier: MIT
"""Starts one Python program many times, quickly: it is loaded once, and every start is a fork.

`python forkserver.py MODULE [--load NAME]... [--warm CODE]` runs MODULE as `python -m` does. It
knows nothing of the program and needs nothing but Python. On standard input come lines of JSON:
{"id": any, "argv": [...], "folder": path, "log": path, "memory": bytes of data at most, or 0}.
On standard output go {"ready": true} once, {"id": any, "pid": n} for each line, or
{"id": any, "failed": text} where the system starts no more processes, and
{"ended": n, "status": n} when one has ended. It ends, and the programs with it, when its input
does. Linux only.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import traceback

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
MOST_FILES = 1024  # open ones of this process, which a program does not inherit
FIRST_TO_GO = 500  # of 1000: the kernel ends these when the machine's memory is used up
libc = ctypes.CDLL(None)


def become(module, wanted, parent):
    """The program, in a process that has just been forked. Its exit status."""
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        return 1
    libc.prctl(PR_SET_NAME, module.encode()[:15])
    signal.set_wakeup_fd(-1)
    for own in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(own, signal.SIG_DFL)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for kept, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(kept, number)
    os.closerange(3, MOST_FILES)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(FIRST_TO_GO))
    if wanted["memory"]:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted["memory"], resource.RLIM_INFINITY))
    os.chdir(wanted["folder"])
    sys.argv = [module, *wanted["argv"]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(module, wanted):
    """Its process id."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = become(module, wanted, parent)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    return pid


def tell(value):
    os.write(1, json.dumps(value).encode() + b"\n")


def reap():
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        tell({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def serve(module):
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    buffer = b""
    tell({"ready": True})
    while True:
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            wanted = json.loads(line)
            try:
                pid = start(module, wanted)
            except OSError as error:  # those that run go on
                tell({"id": wanted["id"], "failed": str(error)})
            else:
                tell({"id": wanted["id"], "pid": pid})


def main():
    parser = argparse.ArgumentParser(description="Start one program many times.")
    parser.add_argument("module")
    parser.add_argument("--load", action="append", default=[])
    parser.add_argument("--warm", default="")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever reads decides when it ends
        signal.signal(number, signal.SIG_IGN)
    for name in options.load:
        importlib.import_module(name)
    exec(options.warm, {})  # noqa: S102 - of whoever starts this
    gc.collect()
    gc.freeze()  # the objects so far are shared by all that are forked
    serve(options.module)


if __name__ == "__main__":
    main()
