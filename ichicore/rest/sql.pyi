Layout = list[int | bytes | None | tuple[int, int]]

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
