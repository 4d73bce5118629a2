"""What is refused waits, and is let go one after the other."""

import asyncio
from time import perf_counter

from server.gateway import states


def test_those_refused_together_do_not_come_back_together(monkeypatch):
    monkeypatch.setattr(states, "HOLD_SECONDS", 0.05)
    monkeypatch.setattr(states, "MOST_HELD", 20)
    holding = states.Holding()
    waited = []

    async def one(began):
        await holding.hold()
        waited.append(perf_counter() - began)

    async def many():
        began = perf_counter()  # of all: the first to wait sets the time of the others
        await asyncio.gather(*(one(began) for _ in range(30)))

    asyncio.run(many())
    assert sum(seconds < 0.05 for seconds in waited) == 10  # more than may be held
    assert max(waited) >= 0.05 + 19 * states.APART_SECONDS
    assert holding.held == 0
