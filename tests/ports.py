"""Ports of what tests start: no two tests that run at once are given the same."""

from __future__ import annotations

import itertools
import os
import random

from server.base.ports import is_unused

# Below those that a node chooses by itself. Every process of tests has a block of its own, and
# gives each port of it once before any comes again: what was told a port may bind it much later.
FIRST, BLOCK, BLOCKS = 10_000, 2_000, 5
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
START = FIRST + WORKER % BLOCKS * BLOCK
_next = itertools.count(random.randrange(BLOCK))


def free_port() -> int:
    """A loopback port that nobody listens on."""
    for number in itertools.islice(_next, BLOCK):
        port = START + number % BLOCK
        if is_unused(port):
            return port
    raise RuntimeError("no free port is left")
