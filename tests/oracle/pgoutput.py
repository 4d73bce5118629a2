"""Postgres' change stream to changes, the slow and obvious way."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from tests.oracle.rows import string

NUMBERS = {20, 21, 23, 700, 701, 1700}
ARRAYS = {
    1000: 16, 1005: 21, 1007: 23, 1016: 20, 1021: 700, 1022: 701, 1231: 1700, 199: 114, 3807: 3802,
    1115: 1114, 1185: 1184, 1009: 25, 2951: 2950,
}  # fmt: skip
VECTORS = {22: 21, 30: 26}


class Malformed(ValueError):
    """The text is not what the type's output function writes."""


class Record:
    """A composite type."""

    def __init__(self, *fields: tuple[str, Any]) -> None:
        self.fields = fields


class Array:
    """An array of a type of the database's own."""

    def __init__(self, element: Any, delimiter: str = ",") -> None:
        self.element = element
        self.delimiter = delimiter


HSTORE = object()


def to_json(kind: Any, text: str) -> str:
    """What to_json writes of a value whose text is this. kind: oid, Record, Array or HSTORE."""
    if isinstance(kind, Record):
        return record(kind, text)
    if isinstance(kind, Array):
        return array(kind.element, text, kind.delimiter)
    if kind is HSTORE:
        pairs = re.findall(r'"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|(NULL))', text, re.DOTALL)
        shown = []
        for key, value, null in pairs:
            right = "null" if null else quoted(unslash(value))
            shown.append(f"{quoted(unslash(key))}: {right}")
        return "{" + ", ".join(shown) + "}"
    if kind in ARRAYS:
        return array(ARRAYS[kind], text, ",")
    if kind in VECTORS:
        return "[" + ",".join(to_json(VECTORS[kind], part) for part in text.split()) + "]"
    if kind == 16:
        if text not in ("t", "f"):
            raise Malformed
        return "true" if text == "t" else "false"
    if kind in NUMBERS and re.match(r"-?[0-9]", text):
        if not re.fullmatch(r"[0-9.e+-]+", text):
            raise Malformed
        return text
    if kind in (114, 3802):
        if not text:
            raise Malformed
        return text
    if kind in (1114, 1184):
        if quoted(text) != f'"{text}"':
            raise Malformed
        text = text.replace(" ", "T", 1)
        if kind == 1184:
            text = re.sub(r"(T.*[+-][0-9]{2})(?=$| )", r"\1:00", text, count=1)
    return quoted(text)


def quoted(text: str) -> str:
    return string(text.encode())


def unslash(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def array(element: Any, text: str, delimiter: str) -> str:
    if text.startswith("["):
        if "=" not in text:
            raise Malformed
        text = text.split("=", 1)[1]
    shown, at = items(element, text, 0, delimiter)
    if at != len(text):
        raise Malformed
    return shown


def items(element: Any, text: str, at: int, delimiter: str) -> tuple[str, int]:
    if text[at : at + 1] != "{":
        raise Malformed
    at += 1
    found: list[str] = []
    while True:
        if at >= len(text):
            raise Malformed
        if text[at] == "}":
            return "[" + ",".join(found) + "]", at + 1
        if found:
            if text[at] != delimiter:
                raise Malformed
            at += 1
        if text[at : at + 1] == "{":
            shown, at = items(element, text, at, delimiter)
            found.append(shown)
        elif text[at : at + 1] == '"':
            match = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(text, at)
            if match is None:
                raise Malformed
            found.append(to_json(element, unslash(match[1])))
            at = match.end()
        else:
            start = at
            while at < len(text) and text[at] not in (delimiter, "}"):
                at += 1
            if start >= len(text):
                raise Malformed
            part = text[start:at]
            found.append("null" if part == "NULL" else to_json(element, part))


def record(kind: Record, text: str) -> str:
    if len(text) < 2 or text[0] != "(" or text[-1] != ")":
        raise Malformed
    body, at, shown = text[1:-1], 0, []
    for number, (name, inner) in enumerate(kind.fields):
        if number:
            if body[at : at + 1] != ",":
                raise Malformed
            at += 1
        if body[at : at + 1] == '"':
            match = re.compile(r'"((?:[^"\\]|""|\\.)*)"', re.DOTALL).match(body, at)
            if match is None:
                raise Malformed
            value = re.sub(r'""|\\(.)', lambda m: m[1] or '"', match[1], flags=re.DOTALL)
            shown.append(f"{quoted(name)}:{to_json(inner, value)}")
            at = match.end()
        else:
            start = at
            while at < len(body) and body[at] != ",":
                at += 1
            value = body[start:at]
            shown.append(f"{quoted(name)}:{to_json(inner, value) if value else 'null'}")
    if at != len(body):
        raise Malformed
    return "{" + ",".join(shown) + "}"


class Decoder:
    """Gives tuples (source, event, record, old, position) and ("channel", ...)."""

    def __init__(self, kinds: dict[int, Any]) -> None:
        self.kinds = kinds
        self.given: set[tuple[int, int]] = set()
        self.found: list[tuple[Any, ...]] = []
        self.reset()

    def reset(self) -> None:
        self.relations: dict[int, Any] = {}
        self.lsn = 0
        self.sequence = 0

    def feed(self, message: bytes) -> None:
        if message[:1] == b"k":
            return
        self.rest = message[25:]
        kind = self.take(1)
        if kind == b"B":
            (self.lsn,) = struct.unpack(">Q", self.take(8))
            self.sequence = 0
        elif kind == b"R":
            self.relation()
        elif kind in (b"I", b"U", b"D"):
            self.row(kind)
        elif kind == b"T":
            count, _ = struct.unpack(">IB", self.take(5))
            fresh = self.fresh()
            for _ in range(count):
                source = self.relations[struct.unpack(">I", self.take(4))[0]][0]
                if fresh:
                    self.found.append((source, "TRUNCATE", None, None, self.position))
        elif kind == b"M":
            flags, _ = struct.unpack(">BQ", self.take(9))
            prefix = self.name()
            content = self.take(struct.unpack(">I", self.take(4))[0])
            if flags & 1 and self.fresh() and prefix == "ichibase":
                channel, event, payload = content.split(b"\n", 2)
                self.found.append((channel.decode(), event.decode(), payload, self.position))

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def name(self) -> str:
        name, self.rest = self.rest.split(b"\0", 1)
        return name.decode()

    @property
    def position(self) -> str:
        return f"{self.lsn:016x}-{self.sequence:08x}"

    def fresh(self) -> bool:
        self.sequence += 1
        key = (self.lsn, self.sequence)
        if key in self.given:
            return False
        self.given.add(key)
        return True

    def relation(self) -> None:
        (oid,) = struct.unpack(">I", self.take(4))
        source = f"{self.name()}.{self.name()}"
        identity = self.take(1)
        (count,) = struct.unpack(">H", self.take(2))
        columns = []
        for _ in range(count):
            key = self.take(1) == b"\1"
            name = self.name()
            kind, _ = struct.unpack(">Ii", self.take(8))
            columns.append((name, kind, key))
        self.relations[oid] = (source, identity, columns)

    def values(self) -> list[Any]:
        (count,) = struct.unpack(">H", self.take(2))
        found: list[Any] = []
        for _ in range(count):
            kind = self.take(1)
            if kind == b"t":
                found.append(self.take(struct.unpack(">I", self.take(4))[0]).decode())
            else:
                found.append(None if kind == b"n" else ...)
        return found

    def write(self, columns: Any, values: list[Any], only_key: bool) -> bytes:
        parts = []
        for (name, oid, key), value in zip(columns, values, strict=True):
            if value is ... or (only_key and not key):
                continue
            if value is None:
                shown = "null"
            else:
                try:
                    shown = to_json(self.kinds.get(oid, oid), value)
                except Malformed:
                    shown = quoted(value)
            parts.append(f"{json.dumps(name, ensure_ascii=False)}:{shown}")
        return ("{" + ",".join(parts) + "}").encode()

    def row(self, kind: bytes) -> None:
        source, identity, columns = self.relations[struct.unpack(">I", self.take(4))[0]]
        fresh = self.fresh()
        event = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}[kind]
        old = new = None
        before: list[Any] | None = None
        marker = self.take(1)
        if marker in (b"K", b"O"):
            before = self.values()
            old = self.write(columns, before, marker == b"K")
            marker = self.take(1)
        if kind != b"D":
            after = self.values()
            if before is not None and old is not None and identity == b"f":
                after = [b if a is ... else a for a, b in zip(after, before, strict=True)]
            if kind == b"U" and before is None and identity != b"f" and any(c[2] for c in columns):
                old = self.write(columns, after, True)
            new = self.write(columns, after, False)
        if fresh:
            self.found.append((source, event, new, old, self.position))
