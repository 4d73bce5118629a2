from collections.abc import Callable
from typing import Any

from ichicore.pg.placing import Placing

PECULIAR: frozenset[str]

class Tally:
    count: int
    rate: float
    burst: float
    def limit(self, rate: float, burst: float) -> None: ...
    def take(self, now: float) -> bool: ...
    def charge(self, size: int) -> None: ...
    def give_back(self) -> None: ...
    def wait(self) -> float: ...
    def drain(self) -> int: ...

class Lane:
    known: Any
    nobody: Any
    denied: Any
    cors: Callable[[str], tuple[tuple[str, str], ...]] | None
    keyed: bool
    plans: Any
    preface: Callable[[Any, str], Any]
    submit: Callable[[Any, Any, bool], None]
    leave: Callable[[Any], None]
    placing: Placing
    base_path: str
    extra: tuple[tuple[str, str], ...]
    rest: Any
    engine: Any
    generation: Any
    tally: Tally
    writes: bool

class Ticket:
    def done(self) -> bool: ...
    def cancel(self) -> None: ...

class Express:
    lanes: dict[str | None, Lane]
    in_flight: dict[int, Any]
    watchers: dict[int, Any]
    unwatch: Callable[[int], None]
    observe: Callable[[int, float], None]
    noted: Callable[..., None]
    failed: Callable[..., int]
    answered: Callable[..., int]
    resume: Callable[[Any, Any, bytes], None]
    page: Callable[[Any, list[bytes]], tuple[int | None, int]]
    canonical: Callable[[bytes], str]
    clock: Callable[[], float]
    now: Callable[[], float]
    loop: Any
    dumps: Callable[[dict[str, str]], bytes]
    prefix: str
    mount: str
    peculiar: frozenset[str]
    def __init__(
        self, prefix: str, mount: str = "/postgres/", peculiar: frozenset[str] = ...
    ) -> None: ...
    def handle(self, scope: Any, protocol: Any) -> Ticket | None: ...

class Handover:
    way: Express | None
    other: Callable[[Any, Any], Any] | None
    documents: Callable[[Any, Any, str], bool] | None
    here: set[type]
    def __init__(self, soon: Callable[..., Any], kind: str) -> None: ...
    def __call__(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any: ...
