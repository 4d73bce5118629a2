from typing import Any, final

NONE: int
JSON: int
VALUES: int

def check_library(version: int) -> None: ...

@final
class Statement:
    sql: str
    result: int
    per_role: bool
    strip_nulls: bool
    def __init__(
        self, sql: str, *, result: int, per_role: bool = True, strip_nulls: bool = False
    ) -> None: ...

@final
class Group:
    role: str
    statements: list[Statement]
    main: int
    abandoned: bool
    slow: bool
    in_session: bool
    expired: bool
    retries: int
    crowded: int
    deadline: float
    sent_at: float
    cancels_seen: int
    waiter: Any
    def __init__(self, role: str = "") -> None: ...
    def add(self, statement: Statement, params: tuple[bytes | None, ...] = ()) -> None: ...
    def abandon(self) -> None: ...
    def restart(self) -> None: ...
    def __len__(self) -> int: ...

@final
class Result:
    rows: int
    affected: int
    tag: str
    body: Any
    values: list[tuple[bytes | None, ...]]
    columns: tuple[str, ...]

@final
class Shared:
    slow_sql: dict[str, int]
    def __init__(self, limit: int = 4096) -> None: ...
    def forget(self) -> None: ...
    def is_slow(self, group: Group) -> bool: ...

@final
class Cancel:
    def send(self) -> bool: ...

@final
class Executor:
    shared: Shared
    lost: bool
    lost_reason: str | None
    depth: int
    slow_depth: int
    cancels: int
    wants_write: bool
    writing: bool
    retry: list[Group]
    exclusive: bool
    reserved: bool
    cancelling: bool
    closing: bool
    idle_since: float
    def __init__(
        self,
        address: int,
        shared: Shared,
        spool: Any,
        *,
        limit: int = 500,
        plain_settings: bool = True,
    ) -> None: ...
    @property
    def server_version(self) -> int: ...
    @property
    def backend_pid(self) -> int: ...
    @property
    def fileno(self) -> int: ...
    @property
    def prepared_count(self) -> int: ...
    @property
    def in_transaction(self) -> bool: ...
    @property
    def paused(self) -> bool: ...
    @property
    def free(self) -> bool: ...
    @property
    def head(self) -> Any: ...
    @property
    def groups(self) -> list[Group]: ...
    def submit(self, group: Group, now: float) -> None: ...
    def on_readable(self, now: float) -> int: ...
    def on_writable(self) -> None: ...
    def abort(self, reason: str) -> None: ...
    def cancel(self) -> Cancel: ...
    def forget_statements(self) -> None: ...
    def detach(self) -> None: ...
