"""BSON as Python values, whatever the values are: dates stay milliseconds, so that none is out of
range."""

from __future__ import annotations

from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS
)


def decode(document: bytes) -> dict[str, Any]:
    """bson.errors.BSONError for bytes that are no document."""
    return bson.decode(document, OPTIONS)
