from collections.abc import Sequence
from typing import final

@final
class Timer:
    seconds: float
    classes: list[int]
    buckets: list[int]
    def __init__(self, bounds: Sequence[float]) -> None: ...
    def observe(self, status: int, seconds: float) -> None: ...
    def add(self, classes: list[int], buckets: list[int], seconds: float) -> None: ...
