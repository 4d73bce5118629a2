"""What a JSON body is, by building it."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

LONE = re.compile(
    "[\ud800-\udfff]"  # json.loads joins pairs, so what is left stands alone
)


def refuse(text: str) -> NoReturn:
    raise ValueError(text)


def scan(body: bytes) -> tuple[str, tuple[str, ...], bool] | None:
    try:
        value: Any = json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return ("object", tuple(value), True) if readable(value) else None
    if not isinstance(value, list):
        return "scalar", (), False
    first = value[0] if value and isinstance(value[0], dict) else None
    # Keys are read as long as all objects agree.
    uniform, met = True, None
    for item in value:
        if not isinstance(item, dict):
            uniform = False
        elif uniform:
            if not readable(item):
                return None
            met = set(item) if met is None else met
            uniform = set(item) == met
    return "array", tuple(first or ()), uniform


def readable(value: dict[str, Any]) -> bool:
    return not any(LONE.search(key) for key in value)
