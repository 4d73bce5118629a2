"""When a process looks for what projects have left."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import pytest

from server.base import garbage


class Here:
    def __init__(self):
        self.callbacks = []

    def on_change(self, callback):
        self.callbacks.append(callback)


class Left:
    def __init__(self):
        self.me = self


@pytest.mark.parametrize(("state", "given_back"), [("sleeping", True), (None, True),
                                                   ("active", False)])  # fmt: skip
def test_what_a_sleeping_project_leaves_is_given_back(monkeypatch, state, given_back):
    monkeypatch.setattr(garbage, "LATER", 0.01)

    async def work():
        here = Here()
        garbage.Sweeper(here)
        gone = weakref.ref(Left())
        for _ in range(3):  # they come many at once
            here.callbacks[0](None if state is None else SimpleNamespace(state=state), "shop")
        await asyncio.sleep(0.1)
        return gone() is None

    gc.disable()
    try:
        assert asyncio.run(work()) is given_back
    finally:
        gc.enable()
