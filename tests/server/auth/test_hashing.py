"""The process that hashes for all workers, and what a worker does without it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import uvloop

from ichicore.errors import ApiError
from server.auth import passwords as passwords_module
from server.auth.hashing import NICENESS, Busy, Hasher, HashThreads
from server.auth.passwords import Passwords, is_known_hash
from server.base import unix
from tests.server.auth.harness import PASSWORD, make_project

PROJECT = make_project("dbname=none")


def _listens(path: Path) -> bool:
    try:
        unix.connect(path).close()
    except OSError:
        return False
    return True


class HashProcess:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen([sys.executable, "-m", "server.auth.main", str(path)])
        deadline = time.monotonic() + 60
        while not _listens(path):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["short", "deep"])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HashProcess]:
    folder = tmp_path
    if request.param == "deep":  # an address of a socket takes about a hundred bytes
        folder = tmp_path / ("d" * 100) / ("e" * 60)
        folder.mkdir(parents=True)
    running = HashProcess(folder / "passwords.sock")
    yield running
    running.end()


def with_passwords(socket: Path | None, work: Callable[[Passwords], Awaitable[None]]) -> None:
    async def main() -> None:
        made = Passwords(socket)
        try:
            await work(made)
        finally:
            made.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in a worker
        runner.run(main())


def test_hashes_are_made_in_a_process_behind_all_others(process: HashProcess) -> None:
    async def work(passwords: Passwords) -> None:
        stored = await passwords.hash(PROJECT, "pässword ①\0 lamp")
        assert await passwords.verify(PROJECT, "pässword 1\0 lamp", stored) == (True, False)
        assert await passwords.verify(PROJECT, "another", stored) == (False, False)
        assert await passwords.verify(PROJECT, "another", None) == (False, False)
        assert await passwords.verify(PROJECT, "x" * 5000, stored) == (False, False)
        assert passwords._own is None, "hashed in the worker"

    with_passwords(process.path, work)
    assert psutil.Process(process.process.pid).nice() >= NICENESS
    assert process.path.stat().st_mode & 0o077 == 0


def test_a_worker_hashes_by_itself_while_the_process_is_away(tmp_path: Path) -> None:
    path = tmp_path / "passwords.sock"

    async def work(passwords: Passwords) -> None:
        stored = await passwords.hash(PROJECT, PASSWORD)
        first = HashProcess(path)
        try:
            await asyncio.sleep(1.1)  # the worker looks for it again after a second
            assert await passwords.verify(PROJECT, PASSWORD, stored) == (True, False)
            tries = [passwords.verify(PROJECT, PASSWORD, stored) for _ in range(8)]
            waiting = asyncio.gather(*tries)
            await asyncio.sleep(0.03)
        finally:
            first.end()
        assert await waiting == [(True, False)] * 8
        second = HashProcess(path)
        try:
            async with asyncio.timeout(60):
                while passwords._client is None or passwords._client._transport is None:
                    await asyncio.sleep(0.1)
                    assert await passwords.verify(PROJECT, PASSWORD, stored) == (True, False)
        finally:
            second.end()

    with_passwords(path, work)


def test_what_cannot_be_hashed_soon_is_refused(process: HashProcess) -> None:
    async def work(passwords: Passwords) -> None:
        stored = Hasher().hash(PASSWORD)
        most = HashThreads().queue

        async def one() -> int:
            try:
                await passwords.verify(PROJECT, PASSWORD, stored)
            except ApiError as error:
                assert (error.status, error.code) == (429, "rate_limited")
                assert dict(error.headers)["retry-after"] == "1"
                return 429
            return 200

        answers = await asyncio.gather(*(one() for _ in range(most + 15)))
        assert 1 <= answers.count(429) <= 15
        assert answers.count(200) >= most

    with_passwords(process.path, work)


def test_a_client_that_leaves_takes_its_waiting_hash_along(process: HashProcess) -> None:
    async def work(passwords: Passwords) -> None:
        stored = Hasher().hash(PASSWORD)
        most = HashThreads().queue
        tries = [passwords.verify(PROJECT, PASSWORD, stored) for _ in range(most)]
        left = [asyncio.ensure_future(one) for one in tries]
        await asyncio.sleep(0.02)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        # there is room for all
        stay = [passwords.verify(PROJECT, PASSWORD, stored) for _ in range(most)]
        assert await asyncio.gather(*stay) == [(True, False)] * most

    with_passwords(process.path, work)


def test_a_worker_without_a_process_has_a_bounded_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords_module, "HashThreads", lambda: HashThreads(1, 2))

    async def work(passwords: Passwords) -> None:
        tries = [passwords.hash(PROJECT, PASSWORD) for _ in range(5)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        refused = [a for a in answers if isinstance(a, ApiError)]
        assert [error.status for error in refused] == [429] * 3

    with_passwords(None, work)


def test_projects_take_turns_by_their_weights_and_a_light_one_leaves_a_thread() -> None:
    order: list[str] = []
    at_once: set[str] = set()

    def work(name: str) -> None:
        if name == "light":
            assert name not in at_once, "a light project in both threads"
        at_once.add(name)
        time.sleep(0.01)
        at_once.discard(name)
        order.append(name)

    async def main() -> None:
        threads = HashThreads(2, 40)
        flood = [
            asyncio.ensure_future(threads.run(work, "light", project="a", weight=10))
            for _ in range(40)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await threads.run(work, "light", project="a", weight=10)
        await asyncio.sleep(0.03)
        before = len(order)
        await threads.run(work, "other", project="b")  # the queue of a is none of its business
        assert len(order) - before <= 3
        # by weight: of equal hashes, ten to one
        own = [asyncio.ensure_future(threads.run(work, "own", project="c")) for _ in range(20)]
        await asyncio.gather(*own)
        assert not all(task.done() for task in flood)
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert threads.waiting == 0
        assert not threads._shares
        threads.close()

    asyncio.run(main())


def test_a_hash_that_takes_too_long_to_verify_is_not_imported() -> None:
    made = "$argon2id$v=19$m={},t={},p=1$c29tZXNhbHRzb21lc2FsdA$c29tZWhhc2hzb21laGFzaA"
    assert is_known_hash(made.format(262_144, 4))
    assert is_known_hash(made.format(65_536, 3))
    assert not is_known_hash(made.format(262_144, 5))
    assert not is_known_hash(made.format(19_456, 100))
