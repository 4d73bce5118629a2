import asyncio
from collections.abc import Callable
from typing import Any

from ichicore.mongo.link import Dock

MAX_BODY: int  # bytes that take this way

class Lane:
    known: Any
    denied: Any
    cors: Callable[[str | None], tuple[tuple[str, str], ...]]
    silent: tuple[tuple[str, str], ...]
    tally: Any
    guide: Any
    dock: Dock

class Letter:
    def __call__(self, given: Any) -> None: ...
    def resume(self) -> None: ...
    def cancel(self) -> None: ...

class Way:
    lanes: dict[str | None, Lane]
    in_flight: dict[Any, Any]
    watchers: dict[Any, Any]
    unwatch: Callable[[Any], None]
    observe: Callable[[int, float], None]
    noted: Callable[..., None]
    failed: Callable[..., int]
    resume: Callable[[Any, Any, bytes], None]
    clock: Callable[[], float]
    now: Callable[[], float]
    loop: asyncio.AbstractEventLoop
    prefix: str
    def __init__(self, prefix: str) -> None: ...
    def handle(self, scope: Any, protocol: Any, path: str) -> bool: ...
