"""BSON documents put together without decoding them."""

from __future__ import annotations

import struct
from typing import Any

import bson

from ichicore.mongo.parts import EMPTY

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
    own = names(first)
    if own is not None and (others := names(second)) is not None and own.isdisjoint(others):
        return wrap(first[4:-1] + second[4:-1])
    return wrap(b"\x04$and\0" + wrap(b"\x030\0" + first + b"\x031\0" + second))


# Sizes of values by BSON's types; those that begin with a length of their own are added to it.
_FIXED = {1: 8, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
_COUNTED = {2: 4, 3: 0, 4: 0, 5: 5}


def names(document: bytes) -> set[bytes] | None:
    """Names of a document's members; None when it has one of a rare type."""
    found = set()
    place = 4
    while (kind := document[place]) != 0:
        end = document.index(0, place + 1)
        found.add(document[place + 1 : end])
        place = end + 1
        size = _FIXED.get(kind)
        if size is None:
            more = _COUNTED.get(kind)
            if more is None:
                return None
            size = int.from_bytes(document[place : place + 4], "little") + more
        place += size
    return found


def under(name: bytes, document: bytes) -> bytes:
    """{name: document}"""
    return wrap(b"\x03" + name + b"\0" + document)


def merge_operator(update: bytes, operator: str, values: dict[str, Any]) -> bytes:
    """An update with more paths under one of its operators; paths that it has are replaced."""
    made = bson.decode(update)
    made[operator] = {**made.get(operator, {}), **values}
    return bson.encode(made)


def overwrite(document: bytes, values: dict[str, Any]) -> bytes:
    """A document with the values at their dotted paths; what is in the way is replaced."""
    made = bson.decode(document)
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
    made = bson.decode(document)
    made.pop(name, None)
    return bson.encode(made)
