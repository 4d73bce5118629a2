from typing import Any

def encode(document: dict[str, Any]) -> bytes:
    """A document as BSON, members in their order; OverflowError beyond 64 bits."""
