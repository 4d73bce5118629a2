from collections.abc import Callable, Sized
from typing import Any, final

from ichicore.pg.executor import Executor, Group, Shared

WAKE: str
GROW: str
AFTER: str

@final
class Placing:
    executors: list[Any]
    depth: int
    most: int
    shared: Shared
    timeout: float
    busy: bool
    closed: bool
    waiting: tuple[Sized, ...]
    told: Callable[[str, Executor | None], None]
    groups: int
    def __init__(
        self, executors: list[Any], shared: Shared, depth: int, most: int, timeout: float
    ) -> None: ...
    def put(self, group: Group, now: float) -> bool: ...
    def choose(self, group: Group) -> Executor | None: ...
    def crowded(self, executor: Executor, group: Group) -> bool: ...
    def grown(self) -> None: ...

@final
class Reader:
    def __init__(
        self,
        executor: Executor,
        placing: Placing,
        clock: Callable[[], float],
        more: Callable[[Exception | None], None],
    ) -> None: ...
    def __call__(self) -> None: ...

def idle(executors: list[Any]) -> Any: ...
