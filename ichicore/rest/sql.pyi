from enum import IntEnum

Layout = list[int | bytes | None | tuple[int, int]]

class Source(IntEnum):
    BODY = -1
    LIMIT = -2
    OFFSET = -3
    RAW = -4

class Writer:
    layout: Layout
    def text(self) -> str: ...

def bind(
    layout: Layout,
    values: list[bytes],
    body: bytes | None,
    limit: int | None,
    offset: int | None,
) -> tuple[bytes | None, ...]: ...
