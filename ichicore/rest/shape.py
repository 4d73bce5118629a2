"""The shape of a query string: everything in it but the values."""

from __future__ import annotations


def scan(
    raw: bytes, *, rpc: bool = False, mutation: bool = False
) -> tuple[bytes, list[bytes]] | None:
    """(shape, values), or None for a query string that has to be parsed in full. Only the empty
    one is its own shape without a parse."""
    return (b"", []) if not raw and not rpc else None
