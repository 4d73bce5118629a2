"""What happens in a worker, said once; the logger and the metrics choose what to make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, tag=True):
    """The base of all events."""


class Served(Event, frozen=True):
    """A request was answered. seconds: from its arrival to the hand-over of the answer. error:
    code of a refused request."""

    id: str
    project: str
    route: str
    method: str
    path: str
    status: int
    seconds: float
    peer: str = ""
    error: str = ""


class Failed(Event, frozen=True):
    """A fault of ours: what was being done, and the traceback."""

    doing: str
    trace: str
    id: str = ""


class Lost(Event, frozen=True):
    """A connection that we need went away; it is being made again."""

    what: str
    reason: str


class Regained(Event, frozen=True):
    """A lost connection is back."""

    what: str


class Noted(Event, frozen=True):
    """Something an operator may want to know."""

    what: str
    detail: str = ""


Listener = Callable[[Event], Any]


class Events:
    """Passes events to listeners, in the order they were added."""

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def emit(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
