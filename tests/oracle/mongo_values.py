"""Names and values of a document operation, and shapes of its result, for the slow twin."""

from __future__ import annotations

from typing import Any, NoReturn

import bson
from bson.errors import BSONError

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.mongo.parts import Caps
from ichicore.rules.extended import READERS

BITS = 1 << 63


def bad(message: str) -> NoReturn:
    raise ApiError(400, "bad_request", message)


def forbidden(where: str) -> NoReturn:
    raise ApiError(400, "operator_not_allowed", f"{where}: operator not allowed")


def check_collection(name: str) -> None:
    """ApiError 400 invalid_collection unless requests may name it."""
    if not grammar.COLLECTION.fullmatch(name) or name.startswith("system."):
        raise ApiError(400, "invalid_collection", f"not a name of a collection: {name[:130]}")


class Values:
    """Turns decoded JSON into values for BSON, noting which paths are read and written."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.reads: list[str] = []
        self.writes: list[tuple[str, str]] = []
        self.array_filters: list[bytes] = []
        self.expression_used = False
        self.upsert = False
        self.stages = 0

    def encode(self, value: dict[str, Any]) -> bytes:
        try:
            return bson.encode(value)
        except (BSONError, OverflowError, UnicodeError, ValueError, RecursionError):
            bad("a value that cannot be stored")

    def path(self, text: str, where: str, *, positions: bool = False) -> str:
        parts = text.split(".")
        if len(text) > grammar.MOST_PATH or "\0" in text or "" in parts or "__proto__" in parts:
            bad(f"{where}: not a path of a field")
        for number, part in enumerate(parts):
            if part[0] == "$":
                if (
                    positions
                    and number
                    and (
                        part == "$" or (part[1] == "[" and part[-1] == "]" and self.position(part))
                    )
                ):
                    continue
                forbidden(where)
        return text

    def position(self, part: str) -> bool:
        name = part[2:-1]
        return name == "" or (name.isascii() and name.isalnum() and name[0].islower())

    def value(self, source: Any, where: str, depth: int) -> Any:
        if depth > grammar.MOST_DEPTH:
            bad(f"{where[:200]}: nested deeper than {grammar.MOST_DEPTH}")
        if type(source) is dict:
            if len(source) == 1:
                ((key, inner),) = source.items()
                if key in grammar.EXTENDED:
                    return self.extended(key, inner, where)
            made = {}
            for key, inner in source.items():
                if key[:1] == "$":
                    forbidden(f"{where}.{key[:80]}")
                if "." in key or "\0" in key or key == "__proto__":
                    bad(f"{where}.{key[:80]}: not a name of a field")
                made[key] = self.value(inner, f"{where}.{key}", depth + 1)
            return made
        if type(source) is list:
            return [
                self.value(inner, f"{where}[{number}]", depth + 1)
                for number, inner in enumerate(source)
            ]
        return self.scalar(source, where)

    def scalar(self, source: Any, where: str) -> Any:
        if type(source) is int and not -BITS <= source < BITS:
            bad(f"{where}: a number beyond 64 bits; use $numberDecimal")
        if type(source) is float and source - source != 0:
            bad(f"{where}: a number beyond what can be stored")
        return source

    def extended(self, key: str, inner: Any, where: str) -> Any:
        try:
            return READERS[key](inner)
        except ValueError as error:
            bad(f"{where}.{key}: {error}")

    def document(self, source: Any, where: str) -> bytes:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        for key in source:
            if key[:1] == "$":
                forbidden(f"{where}.{key[:80]}")
        made = self.value(source, where, 0)
        if type(made.get("_id")) is list:
            bad(f"{where}._id: a list cannot be an identifier")
        data = self.encode(made)
        if len(data) > self.caps.max_doc_bytes:
            raise ApiError(
                413, "doc_too_large", f"{where}: more than {self.caps.max_doc_bytes} bytes"
            )
        return data

    def number(self, source: Any, where: str) -> Any:
        if type(source) is dict and len(source) == 1:
            ((key, inner),) = source.items()
            if key.startswith("$number"):
                if key in grammar.EXTENDED:
                    return self.extended(key, inner, where)
        if type(source) not in (int, float):
            bad(f"{where}: a number is expected")
        return self.scalar(source, where)

    def integer(self, source: Any, where: str, low: int = -(1 << 31)) -> int:
        if type(source) is float and source.is_integer() and abs(source) < 1 << 31:
            source = int(source)
        if type(source) is not int or not low <= source < 1 << 31:
            bad(f"{where}: a whole number is expected")
        return source

    def projection(self, source: Any, where: str) -> bytes | None:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        if not source:
            return None
        kinds = set()
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            path = self.path(key, inner)
            if value not in (0, 1) or type(value) not in (int, float, bool):
                bad(f"{inner}: 0 or 1 is expected")
            if value and path != "_id":
                self.reads.append(path)
            if path != "_id":
                kinds.add(bool(value))
        if len(kinds) > 1:
            bad(f"{where}: either fields to take or fields to leave out")
        return self.encode({key: int(value) for key, value in source.items()})

    def sort(self, source: Any, where: str) -> bytes | None:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        if len(source) > grammar.MOST_KEYS:
            bad(f"{where}: more than {grammar.MOST_KEYS} fields")
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            self.reads.append(self.path(key, inner))
            if value not in (1, -1) or type(value) not in (int, float):
                bad(f"{inner}: 1 or -1 is expected")
        return self.encode({key: int(value) for key, value in source.items()}) if source else None
