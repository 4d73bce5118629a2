"""How a project's bodies and answers are held to so many bytes a second."""

import asyncio

from ichicore.http.express import Tally
from server.base.batches import StreamBatches
from server.gateway.traffic import BURST, MOST, SlowedBatches, Traffic, slowed

RATE = 1000.0  # bytes a second


def traffic(clock, rate=RATE):
    made = Traffic(Tally(), clock)
    made.rate = rate
    return made


def test_a_burst_passes_and_what_follows_waits_its_turn():
    now = [100.0]
    one = traffic(lambda: now[0])
    assert one.delay(int(RATE * BURST)) == 0  # what was left from before
    assert one.delay(500) == 0  # the last byte before it has passed
    assert round(one.delay(100), 6) == 0.5
    assert round(one.delay(0), 6) == 0  # nothing costs nothing
    now[0] += 0.6
    assert one.delay(1) == 0
    now[0] += 60  # who was silent for long has no more than a burst
    assert one.delay(int(RATE * BURST) + 300) == 0
    assert round(one.delay(1), 6) == 0.3
    one.delay(10**9)
    assert one.delay(1) <= MOST


def test_who_leaves_while_waiting_pays_nothing():
    async def main():
        one = traffic(asyncio.get_running_loop().time)
        one.delay(1000)
        waiting = asyncio.ensure_future(one.wait(1_000_000))
        await asyncio.sleep(0)
        assert one.delay(1) > 2
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert one.delay(1) < 2

    asyncio.run(main())


def test_without_a_limit_nobody_waits():
    one = traffic(lambda: 0.0, rate=0.0)
    assert [one.delay(10**9) for _ in range(3)] == [0.0] * 3


def test_pieces_and_batches_come_whole_and_no_faster():
    async def pieces():
        for n in range(5):
            yield bytes([n]) * 10_000

    async def main():
        loop = asyncio.get_running_loop()
        for way in ("stream", "batches"):
            one = traffic(loop.time, rate=200_000.0)
            one.delay(50_000)  # the burst is gone
            began, got = loop.time(), []
            if way == "stream":
                got = [piece async for piece in slowed(pieces(), one)]
            else:
                body = SlowedBatches(StreamBatches(pieces()), one)
                while not body.over:
                    got += await body.take(10_000, 5)
                    await body.rest()
            assert b"".join(got) == b"".join([bytes([n]) * 10_000 for n in range(5)])
            assert loop.time() - began >= 0.15, way

    asyncio.run(main())


def test_a_large_answer_counts_as_many_requests():
    tally = Tally()
    tally.limit(10, 20)
    assert tally.take(0.0)
    tally.charge(100)  # a small one is no more than its request
    assert tally.take(0.0)
    assert tally.wait() == 0
    tally.charge(28 * 131_072)  # of the 18 that are left
    assert not tally.take(0.0)
    assert round(tally.wait(), 6) == 1.1
    tally.charge(10**12)
    assert tally.wait() <= 5.1  # a project pays for some seconds at most
    assert tally.take(6.0)
    open_ = Tally()
    open_.charge(10**12)  # no limit
    assert open_.take(0.0)
