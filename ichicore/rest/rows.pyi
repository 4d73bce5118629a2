from typing import final

ZONE: int
INTERVAL: int
BYTEA: int
FLOAT: int
DOCUMENT: int

def json_string(text: bytes) -> bytes: ...

@final
class TypeTable:
    def __init__(self) -> None: ...
    def knows(self, oid: int) -> bool: ...
    def add_text(self, oid: int) -> None: ...
    def add_array(self, oid: int, element: int) -> None: ...
    def add_foreign(self, oid: int) -> None: ...
    def needs(self, oid: int) -> int: ...
    def encode(self, oid: int, data: bytes) -> bytes: ...

@final
class RowFormat:
    columns: tuple[str, ...]
    oids: tuple[int, ...]
    def __init__(
        self,
        columns: tuple[str, ...],
        oids: tuple[int, ...],
        types: TypeTable,
        strip_nulls: bool = False,
    ) -> None: ...
