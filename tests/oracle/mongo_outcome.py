"""What comes of a body, compiled and by its twin, in a form that compares."""

from __future__ import annotations

from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from ichicore.errors import ApiError
from ichicore.mongo import Caps, command
from tests.oracle import mongo_command as twin

CAPS = Caps(max_docs=6, default_limit=4, max_doc_bytes=600)
SERVICE = Caps(max_docs=6, privileged=True)
OPTIONS: Any = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)


def again(data: bytes | None) -> bytes | None:
    """The same document as PyMongo writes it: it puts `_id` first."""
    return None if data is None else bson.encode(bson.decode(data, OPTIONS))


def outcome(module: Any, operation: str, body: bytes, caps: Caps) -> Any:
    try:
        parsed = module.parse(operation, body, caps)
    except ApiError as error:
        assert error.code in {
            "bad_request", "operator_not_allowed", "stage_not_allowed", "too_many_docs",
            "doc_too_large", "invalid_collection",
        }, error.code  # fmt: skip
        return error.status, error.code
    parts = []
    for part in parsed.parts:
        documents = [bson.decode(document, OPTIONS) for document in part.documents]
        made = [document.pop("_id") for document in documents]
        for value, text in zip(made, part.ids, strict=bool(part.ids)):
            assert text == value if isinstance(value, str) else text
        part.documents = tuple(map(bson.encode, documents))
        part.ids = ()
        for name in ("filter", "projection", "sort", "update", "replacement"):
            setattr(part, name, again(getattr(part, name)))
        for name in ("pipeline", "array_filters"):
            setattr(part, name, tuple(map(again, getattr(part, name))))
        parts.append(part)
    return parsed.ordered, parts


def same(operation: str, body: bytes, caps: Caps) -> None:
    first, second = outcome(command, operation, body, caps), outcome(twin, operation, body, caps)
    if isinstance(first[1], str) and isinstance(second[1], str):
        assert first[0] == second[0]
        assert first[1] == second[1] or "bad_request" in (first[1], second[1]), (first, second)
    else:
        assert first == second
