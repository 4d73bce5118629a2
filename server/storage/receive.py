"""The body of an upload on its way into the store: hashed and written while the rest arrives.

A thread hashes and writes one batch while the next one is gathered, and the disk begins with what
is written long before the end. How many uploads gather large batches at once is limited, because
whatever asks the HTTP server for bytes makes it hold some: the others leave theirs with the client
until it is their turn. A client that sends little needs no turn, and takes none from the others.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import xxhash

from ichicore.errors import ApiError
from server.base.batches import Batches
from server.storage.stores import Sink, Store

# The digest that makes a file's ETag. It is no proof against forgery, and costs a fortieth of one.
ETAG = "xxh3_128"
IDLE = 20.0  # seconds without a byte after which an upload is given up
SLOWEST = 8 << 10  # bytes a second that an upload must reach on average, after START
START = 30.0  # seconds
TURNS = 8  # uploads of a worker that gather large batches at once
TURN = 0.1  # seconds that one may last
LEAST_BATCH = 64 << 10  # bytes written to the store at once
MOST_BATCH = 1 << 20
BATCHES = 8 << 20  # bytes that all batches of a worker may hold at once


class Turns:
    """Of one worker, given in the order in which they are asked for. under_way: uploads that are
    receiving."""

    def __init__(self) -> None:
        self.under_way = 0
        self.places = asyncio.Semaphore(TURNS)

    @property
    def crowded(self) -> bool:
        return self.under_way > TURNS

    @property
    def batch(self) -> int:
        """Bytes that an upload gathers before it writes them."""
        each = BATCHES // (3 * max(1, min(self.under_way, TURNS)))
        return max(LEAST_BATCH, min(MOST_BATCH, each))


async def receive(
    turns: Turns, store: Store, body: Batches, size: int, sink: Sink, algorithms: list[str]
) -> dict[str, bytes]:
    """The whole body into the sink; its digests by algorithm. ApiError when it ends early, is too
    long or too slow. The sink is not in use any more when this returns or raises."""
    hashes = {name: _hash(name) for name in algorithms}
    turns.under_way += 1
    try:
        await _gather(turns, store, body, size, sink, list(hashes.values()))
    finally:
        turns.under_way -= 1
        body.close()
    return {name: one.digest() for name, one in hashes.items()}


def _hash(name: str) -> Any:
    return xxhash.xxh3_128() if name == ETAG else hashlib.new(name, usedforsecurity=False)


async def _gather(
    turns: Turns, store: Store, body: Batches, size: int, sink: Sink, hashes: list[Any]
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START + size / SLOWEST
    heard = loop.time()  # when the client last sent something, or could not
    brisk = False  # whether it sends as much as it may
    writing: asyncio.Future[None] | None = None

    def write(parts: list[bytes]) -> None:
        for one in hashes:
            for part in parts:
                one.update(part)
        sink.write(parts)

    def begin(parts: list[bytes]) -> asyncio.Future[None]:
        return loop.run_in_executor(store.executor, write, parts)

    try:
        while not body.over:
            rested = await body.rest()
            heard, deadline = heard + rested, deadline + rested
            if turns.crowded and brisk:
                async with turns.places:
                    heard = loop.time()
                    parts = await body.take(turns.batch, TURN)
                    got = sum(map(len, parts))
                    if parts:
                        writing = begin(parts)
                        parts = []  # whoever waits for a turn holds nothing
                        await asyncio.shield(writing)
            else:
                left = min(heard + IDLE, deadline) - loop.time()
                if turns.crowded:
                    parts = await body.take(LEAST_BATCH, left)
                else:
                    parts = await body.take(turns.batch, left, ahead=True)
                got = sum(map(len, parts))
                if writing is not None:
                    await asyncio.shield(writing)
                if parts:
                    writing = begin(parts)
                    parts = []
                if turns.crowded and writing is not None:
                    await asyncio.shield(writing)
            now = loop.time()
            if got:
                heard = now
            if not body.over and now >= min(heard + IDLE, deadline):
                raise ApiError(408, "upload_timeout", "The upload took too long.")
            brisk = got >= LEAST_BATCH
        if writing is not None:
            await asyncio.shield(writing)
    finally:
        if writing is not None and not writing.done():
            await asyncio.wait([writing])  # the sink is not to be touched while it writes
