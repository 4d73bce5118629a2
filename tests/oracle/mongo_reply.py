"""Raw replies of the database as JSON answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

from ichicore.rules.fields import FieldRule

_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, uuid_representation=0
)
_RAW = CodecOptions(document_class=RawBSONDocument)
_SAFE = 1 << 53


def _date(millis: int) -> str:
    days, rest = divmod(millis, 86_400_000)
    z = days + 719_468
    era = z // 146_097
    doe = z - era * 146_097
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    day = doy - (153 * mp + 2) // 5 + 1
    month = mp + 3 if mp < 10 else mp - 9
    year = yoe + era * 400 + (month <= 2)
    seconds, milli = divmod(rest, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{'-' if year < 0 else '+'}{abs(year):06}"
    return f"{shown}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, ObjectId):
        return str(value)
    if isinstance(value, DatetimeMS):
        return _date(int(value))
    if isinstance(value, Decimal128):
        return str(value)
    if isinstance(value, Int64):
        return int(value) if -_SAFE <= value <= _SAFE else str(int(value))
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Regex):
        return f"/{value.pattern}/"
    if isinstance(value, Timestamp):
        return _date(value.time * 1000)
    if value is None or isinstance(value, str | bool | int):
        return value
    return None


def _text(value: Any) -> bytes:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode()


def to_json(document: bytes, read: FieldRule | None = None) -> bytes:
    """A BSON document as JSON, without the fields that may not be read. ObjectIds are 24 hex
    digits, dates ISO 8601 UTC with milliseconds, decimals strings, integers numbers (strings beyond
    2**53), binary data base64 strings, NaN and infinities null."""
    found = bson.decode(document, _OPTIONS)
    return _text(found if read is None else read.strip(found))


def _batch(reply: bytes) -> Sequence[RawBSONDocument]:
    cursor = bson.decode(reply, _RAW)["cursor"]
    found = cursor.get("firstBatch")
    return found if found is not None else cursor["nextBatch"]


def find_reply(replies: Sequence[bytes], limit: int, read: FieldRule | None = None) -> bytes:
    """{"docs":[…],"count":n,"truncated":bool} from the raw replies of find/aggregate and getMore,
    in order. Documents beyond `limit` are left out and make it truncated."""
    docs = [document for reply in replies for document in documents(reply)]
    shown = b",".join(to_json(document, read) for document in docs[:limit])
    count = min(len(docs), limit)
    truncated = b"true" if len(docs) > limit else b"false"
    return b'{"docs":[' + shown + b'],"count":%d,"truncated":' % count + truncated + b"}"


def doc_reply(reply: bytes, read: FieldRule | None = None) -> bytes:
    """{"doc":…|null} with the first document of a raw find reply, or the `value` of a raw
    findAndModify reply."""
    found = bson.decode(reply, _RAW)
    if "cursor" in found:
        batch = _batch(reply)
        return one_reply(bytes(batch[0].raw) if batch else None, read)
    value = found.get("value")
    return one_reply(bytes(value.raw) if isinstance(value, RawBSONDocument) else None, read)


def one_reply(document: bytes | None, read: FieldRule | None = None) -> bytes:
    """{"doc":…|null} of one BSON document."""
    return b'{"doc":' + (b"null" if document is None else to_json(document, read)) + b"}"


def distinct_reply(reply: bytes, limit: int) -> bytes:
    """{"values":[…],"truncated":bool} from a raw distinct reply."""
    values = bson.decode(reply, _OPTIONS)["values"]
    truncated = b"true" if len(values) > limit else b"false"
    return b'{"values":' + _text(values[:limit]) + b',"truncated":' + truncated + b"}"


def documents(reply: bytes) -> list[bytes]:
    """The documents in the batch of a raw cursor reply."""
    return [bytes(document.raw) for document in _batch(reply)]


def cursor_id(reply: bytes) -> int:
    """The cursor that a raw cursor reply leaves open, 0 for none."""
    return int(bson.decode(reply, _RAW)["cursor"]["id"])


def id_text(document: bytes) -> str | None:
    """The `_id` of a BSON document as a client gets it: its JSON without the quotes; None without
    one."""
    found = bson.decode(document, _OPTIONS)
    if "_id" not in found:
        return None
    value = _plain(found["_id"])
    return value if isinstance(value, str) else _text(found["_id"]).decode()
