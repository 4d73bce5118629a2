Layout = list[int | bytes | tuple[int, int] | None]

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
