"""Request bodies: JSON, CSV, forms and raw bytes as the one JSON parameter of a statement."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

import orjson

from ichicore.errors import ApiError
from ichicore.http import accept
from ichicore.http.target import decode
from ichicore.rest import payload

RAW = ("text/plain", "text/xml", "application/octet-stream")
FIELD_LIMIT = 1 << 30
QUOTED = re.compile(r'"(?:[^"]|"")*"')
MISPLACED_QUOTE = re.compile(r'[^,\r\n]\0|\0[^,\r\n]|"')


@dataclass(frozen=True, slots=True)
class Given:
    """A body as the planner and the executor need it.

    names: the columns or arguments it gives, sorted. is_object: one object, not an array. body:
    JSON, or the raw bytes for a function's single argument. arguments: (name, value, -1) of a form
    sent to a function, repeated ones included. media: the body's media type.
    """

    names: tuple[str, ...] = ()
    is_object: bool = True
    body: bytes | None = None
    arguments: tuple[tuple[str, str, int], ...] | None = None
    media: str = "application/json"


NOTHING = Given()


def read(
    body: bytes, content_type: str | None, columns: tuple[str, ...] | None, *, rpc: bool
) -> Given:
    """The body of a write or of a POST to a function.

    columns: of the columns parameter; with them JSON is not looked into. Raises ApiError 400
    PGRST102.
    """
    kind = "application/json" if content_type is None else accept.media(content_type).text
    if kind == "application/json":
        return _json(body, columns, rpc)
    if kind == "text/csv":
        return _csv(body)
    if kind == "application/x-www-form-urlencoded":
        return _form(body, rpc)
    if rpc and kind in RAW:
        return Given((), True, body, None, kind)
    raise _refuse(f"Content-Type not acceptable: {kind}")


def _refuse(message: str) -> ApiError:
    return ApiError(400, "PGRST102", message)


def _json(body: bytes, columns: tuple[str, ...] | None, rpc: bool) -> Given:
    if columns is not None:
        return Given(tuple(sorted(columns)), body.lstrip()[:1] == b"{", body)
    if rpc and not body:
        return Given((), True, b"{}")
    found = payload.scan(body)
    if found is None:
        raise _refuse("Empty or invalid json")
    kind, keys, uniform = found
    if kind == "scalar":
        return Given((), False, b"[]")
    if not uniform:
        raise _refuse("All object keys must match")
    return Given(tuple(sorted(keys)), kind == "object", body)


def _csv(body: bytes) -> Given:
    """The header line names the columns, NULL is null, every other value a string."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise _refuse("The CSV text is not UTF-8") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    csv.field_size_limit(FIELD_LIMIT)
    try:
        rows = [row for row in lines if row]
    except csv.Error as error:
        raise _refuse(f"parse error (Failed reading: {error})") from None
    if not rows or (len(rows) == 1 and not text.endswith(("\n", "\r"))):
        raise _refuse("parse error (not enough input)")  # the header is a line, which ends
    if '"' in text and MISPLACED_QUOTE.search(QUOTED.sub("\0", text)):
        raise _refuse("parse error (Failed reading: a quote inside a value without quotes)")
    header = rows.pop(0)
    records = [
        {name: None if value == "NULL" else value for name, value in zip(header, row, strict=False)}
        for row in rows
    ]
    if any(len(record) != len(records[0]) for record in records):
        raise _refuse("All lines must have same number of fields")
    names = tuple(sorted(records[0])) if records else ()
    return Given(names, False, orjson.dumps(records), None, "text/csv")


def _form(body: bytes, rpc: bool) -> Given:
    pairs = []
    for piece in body.replace(b";", b"&").split(b"&"):
        name, equals, value = piece.partition(b"=")
        if name or equals:
            try:
                pairs.append((decode(name).decode(), decode(value).decode()))
            except UnicodeDecodeError:
                raise _refuse("The form is not UTF-8") from None
    values = dict(pairs)
    media = "application/x-www-form-urlencoded"
    names = tuple(sorted(values))
    if rpc:
        arguments = tuple((name, value, -1) for name, value in pairs)
        return Given(names, True, orjson.dumps(values), arguments, media)
    return Given(names, True, orjson.dumps(values))
