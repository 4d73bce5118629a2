"""How a process that serves has the interpreter look for garbage."""

from __future__ import annotations

import gc


def settle() -> None:
    """After the start: what is there now stays, and collections need not look at it again. What
    comes in thousands at once, requests or connections, is looked at less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
