"""Shares of the processors, on real processes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.base import processor

PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
THREADS = """
import sys, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""
GIVE = """
import sys, time
from server.base import processor
for _ in range(50):
    try:
        processor.share(int(sys.argv[1]), 10)
        break
    except BlockingIOError:
        time.sleep(0.1)
else:
    raise SystemExit("always busy")
processor.queue(int(sys.argv[1]), processor.SECOND)
"""


@pytest.fixture
def process():
    made = []

    def start(command=(sys.executable, "-c", THREADS), **how):
        one = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **how)
        if command[0] == sys.executable:
            one.stdout.readline()
        made.append(one)
        return one.pid

    yield start
    for one in made:
        one.kill()
        one.wait()
        one.stdout.close()


def threads(pid):
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def group(pid):
    path = Path(f"/proc/{pid}/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else None


def test_weights_become_steps_of_a_fifth():
    found = [processor.niceness(weight) for weight in (100, 80, 50, 10, 1)]
    assert found == [0, 1, 3, 10, 19]
    assert processor.niceness(0) == 19
    assert processor.niceness(200) == -3
    assert processor.niceness(10**6) == -10


def test_all_threads_and_their_session_are_weighed(process):
    pid = process()
    assert len(threads(pid)) == 2
    processor.share(pid, 10)
    assert {os.getpriority(os.PRIO_PROCESS, one) for one in threads(pid)} == {10}
    assert group(pid) in (10, None)


def test_turns_leave_the_weight_alone(process):
    pid = process()
    processor.share(pid, 10)
    behind = [processor.BEHIND] if processor.can_return() else []
    for turn in (processor.FIRST, processor.SECOND, processor.LAST, *behind, processor.USUAL):
        processor.queue(pid, turn)
        assert {os.sched_getscheduler(one) for one in threads(pid)} == {turn.policy}
        assert {os.getpriority(os.PRIO_PROCESS, one) for one in threads(pid)} == {10}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives up its rights")
def test_who_may_not_return_is_told_so_and_stays_where_he_is():
    code = (
        "import os; from server.base import processor; os.setuid(65534); "
        "print(processor.can_return(), os.sched_getscheduler(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", str(os.SCHED_OTHER)]


def test_a_process_that_is_gone_is_told(process):
    for change in (
        lambda: processor.share(2**22 - 7, 10),
        lambda: processor.queue(2**22 - 7, processor.FIRST),
    ):
        with pytest.raises(ProcessLookupError):
            change()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other accounts' processes")
def test_root_without_the_right_to_do_so_acts_as_the_account_of_the_process(process):
    pid = process(("/bin/sleep", "60"), user="nobody", group="nogroup", extra_groups=[])
    libc = ctypes.CDLL(None)

    def as_in_a_container():
        assert libc.prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0) == 0

    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", GIVE, str(pid)], check=True, cwd=root, preexec_fn=as_in_a_container
    )
    assert {os.getpriority(os.PRIO_PROCESS, one) for one in threads(pid)} == {10}
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    # Down goes without that right, up does not.
    back = GIVE.replace("10)", "100)")
    done = subprocess.run(
        [sys.executable, "-c", back, str(pid)], cwd=root, capture_output=True,
        preexec_fn=as_in_a_container,
    )  # fmt: skip
    assert b"PermissionError" in done.stderr
    assert os.getpriority(os.PRIO_PROCESS, pid) == 10


def test_a_quarter_of_the_processors_is_kept_for_others():
    counts = [len(processor.most(frozenset(range(number)))) for number in (1, 2, 3, 4, 8, 16)]
    assert counts == [1, 1, 2, 3, 6, 12]
    assert processor.most(frozenset({2, 5})) == {5}


@pytest.mark.skipif(len(processor.processors()) < 2, reason="needs two processors")
def test_a_process_is_held_to_some_processors_with_all_its_threads(process):
    pid = process()
    every = processor.processors()
    for where in (processor.most(every), every):
        processor.place(pid, where)
        assert {frozenset(os.sched_getaffinity(one)) for one in threads(pid)} == {where}
    with pytest.raises(ProcessLookupError):
        processor.place(2**22 - 7, every)
