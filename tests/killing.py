"""A process that ends in the middle of what it does."""

from typing import Any


class Killed(BaseException):
    """Stands for the end of the process: nothing handles it."""


def break_at(patch: Any, where: Any, step: str, count: int) -> None:
    """The `count`th call of the coroutine function `step` of `where` does not come back."""
    real, calls = getattr(where, step), iter(range(1, 1000))

    async def breaking(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            raise Killed
        return await real(*arguments, **options)

    patch.setattr(where, step, breaking)
