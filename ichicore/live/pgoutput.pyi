from collections.abc import Set
from typing import final

from ichicore.live.change import Change, Publish
from ichicore.live.pgtypes import Types

PUBLISHED: str
ALTERED: str

class DecodeError(ValueError): ...

@final
class Decoder:
    types: Types
    wanted: Set[str] | None
    missing: tuple[int, ...]
    in_transaction: bool
    end_lsn: int
    server_lsn: int
    reply_wanted: bool
    schema_changed: bool
    rows: int
    received: int
    error: str | None
    def __init__(self, types: Types, wanted: Set[str] | None = None) -> None: ...
    def reset(self) -> None: ...
    def begin_at(self, lsn: int) -> None: ...
    def want(self, tables: Set[str] | None) -> None: ...
    def take(self) -> list[Change | Publish]: ...
    def feed(self, message: bytes) -> None: ...
    def resume(self) -> None: ...
    def drain(self, connection: int, most: int) -> int: ...
