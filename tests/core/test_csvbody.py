"""CSV bodies against the csv module, and beside a thread that must not stand still."""

import random
import threading
import time

import pytest

from ichicore.rest import csvbody
from tests.oracle import csvbody as oracle

PIECES = ["a", "b", "NULL", "", "é€😀", "\t", "\\", "\x01", "x y", '""', "'", "1.5", "a,b", " "]
MARKS = [",", ",", ",", "\n", "\n", "\r\n", "\r", '"', '"']


def both(body):
    found = []
    for convert in (csvbody.to_json, oracle.to_json):
        try:
            found.append(convert(body))
        except ValueError:
            found.append(None)
    return found


def table(pick):
    """Lines of mostly the same length, values quoted now and then."""
    columns = pick.randint(1, 4)
    end = pick.choice(["\n", "\r\n", "\r"])
    lines = []
    for _ in range(pick.randint(0, 6)):
        values = []
        for _ in range(columns if pick.random() < 0.95 else pick.randint(1, 6)):
            value = "".join(pick.choices(PIECES, k=pick.randint(0, 2)))
            if pick.random() < 0.4 or set(value) & set(',"'):
                value = '"' + value.replace('"', '""') + pick.choice(["", "\n", "\r\n"]) + '"'
            values.append(value)
        lines.append(",".join(values))
    return (end.join(lines) + pick.choice(["", end, end + end])).encode()


def test_as_the_csv_module_reads_them():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    pick = random.Random(seed)
    taken = 0
    for _ in range(4_000):
        body = table(pick)
        ours, theirs = both(body)
        assert ours == theirs, body
        taken += ours is not None
        body = "".join(pick.choices(PIECES + MARKS * 2, k=pick.randint(0, 12))).encode()
        ours, theirs = both(body)
        assert ours == theirs, body
    assert taken > 1_000


@pytest.mark.parametrize("body", [
    b"", b"\n", b"a", b"a\n", b"a\n\n\n1\n", b"\r\na,b\r\n1,2", b"a,a\n1,2\n", b"a,b\n1,2,3\n",
    b"a,b\n1\n2\n", b'"a\n', b'a\n"1"2\n', b"\xff", b"a\n\xc3", b'a\n""""\n', b'"a ""b"""\n1\n',
    b"a,b\n,\n", b'a\n""\n', b",\n,\n",
])  # fmt: skip
def test_single_cases(body):
    ours, theirs = both(body)
    assert ours == theirs


@pytest.mark.parametrize("body", [
    b"a\n" + b"1\n" * 4_000_000, b'a\n"' + b"\n" * 8_000_000 + b'"\n',
    b'a"b\n' + b"1\n" * 4_000_000,
])  # fmt: skip
def test_others_run_meanwhile(body):
    gaps, over = [], threading.Event()

    def watch():
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.thread_time()
    try:
        csvbody.to_json(body)
    except ValueError:
        pass
    took = time.thread_time() - began
    over.set()
    thread.join()
    assert took < 2
    assert sorted(gaps)[len(gaps) // 2] < 0.02
