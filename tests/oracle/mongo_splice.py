"""The slow twin of ichicore.mongo.splice: documents are decoded, changed and encoded."""

from __future__ import annotations

import struct
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from ichicore.mongo.parts import EMPTY

OPTIONS: Any = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_SIZE = struct.Struct("<i")


def wrap(elements: bytes) -> bytes:
    """A document of encoded elements."""
    return _SIZE.pack(len(elements) + 5) + elements + b"\0"


def both(first: bytes, second: bytes) -> bytes:
    """Both filters at once: the members of the two where no name is in both, else
    {"$and": [first, second]}. The members of a filter are ANDed, and some servers look for an index
    among those at the top alone."""
    if second == EMPTY:
        return first
    if first == EMPTY:
        return second
    if bson.decode(first, OPTIONS).keys().isdisjoint(bson.decode(second, OPTIONS)):
        return wrap(first[4:-1] + second[4:-1])
    return wrap(b"\x04$and\0" + wrap(b"\x030\0" + first + b"\x031\0" + second))


def under(name: bytes, document: bytes) -> bytes:
    """{name: document}"""
    return wrap(b"\x03" + name + b"\0" + document)


def merge_operator(update: bytes, operator: str, values: dict[str, Any]) -> bytes:
    """An update with more paths under one of its operators; paths that it has are replaced."""
    made = bson.decode(update, OPTIONS)
    made[operator] = {**made.get(operator, {}), **values}
    return bson.encode(made)


def overwrite(document: bytes, values: dict[str, Any]) -> bytes:
    """A document with the values at their dotted paths; what is in the way is replaced."""
    made = bson.decode(document, OPTIONS)
    for path, value in values.items():
        node = made
        *heads, last = path.split(".")
        for head in heads:
            below = node.get(head)
            if not isinstance(below, dict):
                below = node[head] = {}
            node = below
        node[last] = value
    return bson.encode(made)


def without(document: bytes, name: str) -> bytes:
    """A document without one of its members."""
    made = bson.decode(document, OPTIONS)
    made.pop(name, None)
    return bson.encode(made)
