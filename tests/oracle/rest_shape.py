"""Shape scanner by regular expressions."""

from __future__ import annotations

import re

from ichicore.rest import grammar, syntax

NAME = re.compile(rb"(?:[A-Za-z0-9_$>.-]|%3[Ee])*")
OPERATORS = set(syntax.SIMPLE + syntax.QUANTIFIABLE + syntax.TEXT_SEARCH) | {
    "in",
    "is",
    "isdistinct",
}
OPERATOR = re.compile(rb"((?:not\.(?=.))?)([a-z]+)(\(([a-z]+)\))?\.")
TRUTH = [word.encode() for word in syntax.TRUTH]


def operator(text: bytes) -> tuple[str, int] | None:
    """(operator, length of its text with the dot) at the beginning of `text`."""
    found = OPERATOR.match(text)
    if found is None:
        return None
    op, modifier = found[2].decode(), found[4]
    if op not in OPERATORS:
        return None
    if modifier is not None:
        if op in syntax.QUANTIFIABLE:
            if modifier not in (b"any", b"all"):
                return None
        elif op not in syntax.TEXT_SEARCH:
            return None
    return op, found.end()


def text(value: bytes) -> bytes | None:
    try:
        value.decode()
    except UnicodeDecodeError:
        return None
    return None if b"\0" in value else value


def array(inner: bytes) -> bytes | None:
    """(...) as the text of an array, when it is plain."""
    if (
        not inner.startswith(b"(")
        or inner[1:2] in (b" ", b"\t", b"")
        or re.search(rb'["\\]', inner)
    ):
        return None
    items = inner[1:-1].split(b",")
    return text(b"{}" if items == [b""] else b'{"' + b'","'.join(items) + b'"}')


def final(op: str, value: bytes) -> bytes | None:
    if op in ("like", "ilike"):
        value = value.replace(b"*", b"%")
    return text(value)


def logic(raw: bytes) -> tuple[bytes, list[bytes]] | None:
    rest, shape, values, depth = grammar.unescape(raw), b"", [], 0
    if not rest.startswith(b"("):
        return None
    while True:
        depth += rest.startswith(b"(")
        if depth > 32:
            return None
        shape += rest[:1]
        rest = rest[1:].lstrip(b" ")
        group = re.match(rb"(?:not\.)?(?:and|or)(?=\()", rest)
        # A lone `and(` at the very end is unusual either way.
        if group is not None:
            shape += group[0]
            rest = rest[group.end() :]
            continue
        field = re.match(rb"[A-Za-z0-9_$>-]+\.", rest)
        found = operator(rest[field.end() :]) if field else None
        if field is None or found is None:
            return None
        op, length = found
        shape += rest[: field.end() + length]
        rest = rest[field.end() + length :]
        if not rest:
            return None
        if op == "in":
            end = rest.find(b")") + 1
            value = array(rest[:end]) if end else None
            if value is None:
                return None
            values.append(value)
            shape += b"\x01"
        else:
            if rest[:1] in (b'"', b"{"):
                return None
            end = re.match(rb"[^,)]*", rest).end()  # type: ignore[union-attr]
            if op == "is":
                if rest[:end] not in TRUTH:
                    return None
                shape += rest[:end]
            else:
                value = final(op, rest[:end])
                if value is None:
                    return None
                values.append(value)
                shape += b"\x01"
        rest = rest[end:]
        while rest.startswith(b")"):
            depth -= 1
            shape += b")"
            rest = rest[1:]
            if depth == 0:
                return None if rest else (shape, values)
        if not rest.startswith(b","):
            return None


def pair(key: bytes, raw: bytes, rpc: bool, seen: set[bytes]) -> tuple[bytes, list[bytes]] | None:
    last = key.rpartition(b".")[2]
    if not NAME.fullmatch(key):
        return None
    if last == b"order" or key in (b"select", b"columns", b"on_conflict"):
        return raw, []
    if last in (b"limit", b"offset"):
        if not re.fullmatch(rb"0|[1-9][0-9]{0,17}", raw) or key in seen or len(seen) == 6:
            return None
        seen.add(key)
        return b"\x01", [raw]
    if last in (b"and", b"or"):
        return logic(raw)
    found = operator(raw)
    if found is None:
        value = text(grammar.unescape(raw))
        if not rpc or value is None or value.startswith(b"not."):
            return None
        word = re.match(rb"([a-z]+)[.(]", value)
        if word is not None and word[1].decode() in OPERATORS:
            return None
        return b"\x02", [value]
    op, length = found
    head, tail = raw[:length], raw[length:]
    if op == "is":
        return (raw, []) if tail in TRUTH else None
    tail = grammar.unescape(tail)
    if op == "in":
        value = array(tail) if tail.find(b")") == len(tail) - 1 else None
    else:
        value = final(op, tail)
    return None if value is None else (head + b"\x01", [value])


def scan(raw: bytes, *, rpc: bool = False) -> tuple[bytes, list[bytes]] | None:
    if not raw:
        return b"", []
    if raw.startswith(b"?") or b";" in raw or not re.fullmatch(rb"[ -~]*", raw):
        return None
    ended = raw.endswith(b"&")
    shapes, values, seen = [], [], set[bytes]()
    for piece in raw.removesuffix(b"&").split(b"&"):
        key, equals, value = piece.partition(b"=")
        found = pair(key, value, rpc, seen) if equals else None
        if found is None:
            return None
        shapes.append(key + b"=" + found[0])
        values += found[1]
    return b"&".join(shapes) + (b"&" if ended else b""), values
