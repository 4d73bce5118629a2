"""The event loop of a process that serves HTTP."""

from __future__ import annotations

import asyncio

import uvloop

from ichicore.http.express import Handover

# The HTTP server's object that carries a request to the loop's thread.
CARRIER = "CallbackWatcherHTTP"


class ServingLoop(uvloop.Loop):
    """uvloop's, whose `handover` may serve a request in the thread that the HTTP server tells the
    loop of it, instead of waking the loop first."""

    def __init__(self) -> None:
        super().__init__()
        self.handover = Handover(super().call_soon_threadsafe, CARRIER)
        self.call_soon_threadsafe = self.handover  # type: ignore[method-assign]


def register() -> None:
    """Makes it the loop of the workers that this process starts."""
    from granian import loops

    @loops.register("uvloop")
    def build() -> asyncio.AbstractEventLoop:
        loop = ServingLoop()
        asyncio.set_event_loop(loop)
        return loop
