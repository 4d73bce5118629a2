"""Collection schemas: whether a JSON Schema is one that MongoDB's $jsonSchema takes, said before a
server that looks less closely stores it."""

from __future__ import annotations

import re
from typing import Any

from ichicore.errors import ApiError

MOST_DEPTH = 50
TYPES = frozenset({"object", "array", "number", "boolean", "string", "null"})
BSON_TYPES = frozenset((
    "double", "string", "object", "array", "binData", "objectId", "bool", "date", "null", "regex",
    "int", "timestamp", "long", "decimal", "minKey", "maxKey", "number",
))  # fmt: skip
TEXTS = frozenset({"title", "description"})
NUMBERS = frozenset({"minimum", "maximum", "multipleOf"})
COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
)
FLAGS = frozenset({"exclusiveMinimum", "exclusiveMaximum", "uniqueItems"})
LISTS = frozenset({"allOf", "anyOf", "oneOf"})
MAPS = frozenset({"properties", "patternProperties"})


def check(schema: Any, path: str = "schema", depth: int = 0) -> None:
    """ApiError 400 invalid_schema names the keyword that cannot be."""
    if not isinstance(schema, dict):
        raise _wrong(path, "an object is expected")
    if depth > MOST_DEPTH:
        raise _wrong(path[:200], f"nested deeper than {MOST_DEPTH}")
    for key, value in schema.items():
        where = f"{path}.{key}"
        if key in TEXTS:
            _expect(isinstance(value, str), where, "a text")
        elif key in NUMBERS:
            _expect(_is_number(value), where, "a number")
        elif key in COUNTS:
            _expect(type(value) is int and value >= 0, where, "a whole number from 0")
        elif key in FLAGS:
            _expect(isinstance(value, bool), where, "true or false")
        elif key == "enum":
            _expect(isinstance(value, list) and bool(value), where, "a list of values")
        elif key == "required":
            texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
            _expect(texts and bool(value), where, "a list of names")
        elif key in ("type", "bsonType"):
            _types(value, TYPES if key == "type" else BSON_TYPES, where)
        elif key == "pattern":
            _pattern(value, where)
        elif key in LISTS:
            _expect(isinstance(value, list) and bool(value), where, "a list of schemas")
            for number, one in enumerate(value):
                check(one, f"{where}[{number}]", depth + 1)
        elif key == "not":
            check(value, where, depth + 1)
        elif key in ("additionalProperties", "additionalItems"):
            if not isinstance(value, bool):
                check(value, where, depth + 1)
        elif key == "items":
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                check(one, f"{where}[{number}]", depth + 1)
        elif key in MAPS:
            _expect(isinstance(value, dict), where, "an object of schemas")
            for name, one in value.items():
                if key == "patternProperties":
                    _pattern(name, where)
                check(one, f"{where}.{name}", depth + 1)
        elif key == "dependencies":
            _expect(isinstance(value, dict), where, "an object")
            for name, one in value.items():
                if not isinstance(one, list):
                    check(one, f"{where}.{name}", depth + 1)
        else:
            raise _wrong(where, "unknown keyword")


def _types(value: Any, known: frozenset[str], where: str) -> None:
    listed = value if isinstance(value, list) else [value]
    for one in listed:
        _expect(isinstance(one, str) and one in known, where, f"one of {', '.join(sorted(known))}")
    _expect(bool(listed), where, "at least one type")


def _pattern(value: Any, where: str) -> None:
    _expect(isinstance(value, str) and len(value) <= 1000, where, "a regular expression")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        raise _wrong(where, "a regular expression is expected") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise _wrong(where, f"{what} is expected")


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, "invalid_schema", f"{where}: {what}")
