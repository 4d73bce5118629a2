from typing import Any

def both(first: bytes, second: bytes) -> bytes:
    """Both filters at once: the members of the two where no name is in both, else
    {"$and": [first, second]}. The members of a filter are ANDed, and some servers look for an index
    among those at the top alone."""

def under(name: bytes, document: bytes) -> bytes:
    """{name: document}"""

def merge_operator(update: bytes, operator: str, values: dict[str, Any]) -> bytes:
    """An update with more paths under one of its operators, which must not have them yet."""

def overwrite(document: bytes, values: dict[str, Any]) -> bytes:
    """A document with the values at their dotted paths; what is in the way is replaced."""

def without(document: bytes, name: str) -> bytes:
    """A document without one of its members."""
