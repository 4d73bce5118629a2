"""Paths into a token's claims: `.app.roles[0]`, `."a-b"`, a final filter `[?(@ == "x")]`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

KEY = re.compile(r'\.(?:([\w$@]+)|"([^"]*)")')
INDEX = re.compile(r"\[(\d+)\]")
FILTER = re.compile(r'\[\?\(@\s*(==\^|==|!=|\^==|\*==)\s*"([^"]*)"\)\]\Z')
TESTS: dict[str, Callable[[str, str], bool]] = {
    "==": lambda value, wanted: value == wanted,
    "!=": lambda value, wanted: value != wanted,
    "^==": lambda value, wanted: value.startswith(wanted),
    "==^": lambda value, wanted: value.endswith(wanted),
    "*==": lambda value, wanted: wanted in value,
}

Step = str | int | tuple[str, str]


def parse(text: str) -> tuple[Step, ...]:
    """The path's steps; a leading $ is taken too. ValueError for what is no path."""
    steps: list[Step] = []
    position = 1 if text.startswith("$") else 0
    while position < len(text):
        if key := KEY.match(text, position):
            steps.append(key[1] if key[1] is not None else key[2])
            position = key.end()
        elif index := INDEX.match(text, position):
            steps.append(int(index[1]))
            position = index.end()
        elif test := FILTER.match(text, position):
            steps.append((test[1], test[2]))
            position = test.end()
        else:
            raise ValueError(f"failed to parse role-claim-key value ({text})")
    if not steps:
        raise ValueError(f"failed to parse role-claim-key value ({text})")
    return tuple(steps)


def walk(claims: Any, path: tuple[Step, ...]) -> Any:
    """What the path leads to, None when it leads nowhere."""
    value = claims
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        elif not isinstance(value, list):
            return None
        elif isinstance(step, int):
            value = value[step] if step < len(value) else None
        else:
            test = TESTS[step[0]]
            value = next((v for v in value if isinstance(v, str) and test(v, step[1])), None)
        if value is None:
            return None
    return value
