"""Bodies in batches: as the HTTP server gives them, and of any stream."""

from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest

from ichicore.errors import ApiError
from server.base.batches import StreamBatches
from server.gateway import limits
from server.gateway.gathering import Gathered


class Given:
    """What the server gives for a piece: done in a thread of its own."""

    def __init__(self, server):
        self.server = server
        self.cancelled = False

    def add_done_callback(self, callback):
        self.server.asked.append((self, callback))
        self.server.wanted.set()

    def result(self):
        if self.cancelled:
            raise asyncio.CancelledError
        return self.piece

    def cancel(self):
        self.cancelled = True


class Server:
    """A body as the HTTP server hands it over: each piece is brought by a thread, and the end and
    what broke off are empty pieces."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.asked = []
        self.wanted = threading.Event()
        self.most = 0  # bytes given and not asked for yet
        self.open = True
        threading.Thread(target=self._bring, daemon=True).start()

    def __aiter__(self):
        return self

    def __anext__(self):
        if not self.open:
            raise StopAsyncIteration
        return Given(self)

    def _bring(self):
        while self.open and self.wanted.wait(5):
            self.wanted.clear()
            for given, callback in self.asked[:]:
                self.asked.remove((given, callback))
                given.piece = self.pieces.pop(0) if self.pieces else b""
                if given.piece is None:
                    return  # this client sends no more
                self.open = bool(given.piece)
                callback(given)


@pytest.mark.parametrize("ahead", [False, True])
def test_all_of_a_body_in_its_order(ahead):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    pick = random.Random(seed)
    for _ in range(50):
        pieces = [os.urandom(pick.randrange(1, 200)) for _ in range(pick.randrange(60))]
        whole = b"".join(pieces)

        async def main(pieces=pieces, whole=whole):
            body = Gathered(Server(pieces), len(whole))
            got = []
            while not body.over:
                size = pick.randrange(1, 1000)
                parts = await body.take(size, 5, ahead=ahead)
                assert sum(map(len, parts)) >= size or body.over
                got += parts
            assert b"".join(got) == whole

        asyncio.run(main())


def test_no_more_is_gathered_than_was_asked_for():
    async def main():
        server = Server([b"x" * 10] * 100)
        body = Gathered(server, 1000)
        assert sum(map(len, await body.take(25, 5))) == 30
        await asyncio.sleep(0.05)
        assert len(server.pieces) == 97
        assert sum(map(len, await body.take(25, 5, ahead=True))) == 30
        await asyncio.sleep(0.05)
        assert len(server.pieces) == 91
        body.close()

    asyncio.run(main())


@pytest.mark.parametrize("pieces", [[], [b"x"], [b"x" * 9, b"", b""]])
def test_a_body_that_breaks_off(pieces):
    async def main():
        body = Gathered(Server(pieces), 10)
        with pytest.raises(ApiError) as caught:
            await body.take(100, 5)
        assert caught.value.code == limits.cut_short().code

    asyncio.run(main())


def test_a_client_that_stops_sending():
    async def main():
        body = Gathered(Server([b"abc", None]), 10)
        assert await body.take(10, 0.05) == [b"abc"]
        assert await body.take(10, 0.05) == []
        assert not body.over
        body.close()

    asyncio.run(main())


def test_one_that_is_cancelled_while_it_waits():
    async def main():
        body = Gathered(Server([None]), 10)
        task = asyncio.ensure_future(body.take(10, 5))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        body.close()

    asyncio.run(main())


def test_batches_of_any_stream():
    async def stream():
        for number in range(10):
            yield bytes([number]) * 10
            await asyncio.sleep(0)

    async def slow():
        yield b"a"
        await asyncio.sleep(5)

    async def main():
        body = StreamBatches(stream())
        assert len(b"".join(await body.take(25, 5))) == 30
        rest = b""
        while not body.over:
            rest += b"".join(await body.take(1000, 5))
        assert len(rest) == 70
        body = StreamBatches(slow())
        assert await body.take(10, 0.05) == [b"a"]
        assert await body.take(10, 0.05) == []
        body.close()

    asyncio.run(main())
