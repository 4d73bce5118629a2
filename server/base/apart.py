"""The same work for many, of which one that fails keeps no other from being done."""

from __future__ import annotations

from types import TracebackType


class Apart:
    """What fails within is kept until the end:

    apart = Apart()
    for one in many:
        with apart:
            await work(one)
    apart.end()
    """

    def __init__(self) -> None:
        self.failures: list[Exception] = []

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failures.append(error)
        return True

    def end(self) -> None:
        """Raises the first of the failures, with the number of the others."""
        if self.failures:
            first, others = self.failures[0], len(self.failures) - 1
            if others:
                first.add_note(f"{others} more failed")
            raise first
