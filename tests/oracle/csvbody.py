"""A CSV body as JSON, by the csv module."""

from __future__ import annotations

import csv
import io
import re

import orjson

FIELD_LIMIT = 1 << 30
QUOTED = re.compile(r'"(?:[^"]|"")*"')
MISPLACED_QUOTE = re.compile(r'[^,\r\n]\0|\0[^,\r\n]|"')
QUOTES = "parse error (Failed reading: a quote inside a value without quotes)"


def to_json(body):
    """(names, JSON) or ValueError, as ichicore.rest.csvbody. A text has no character NUL."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise ValueError("The CSV text is not UTF-8") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    csv.field_size_limit(FIELD_LIMIT)
    try:
        rows = [row for row in lines if row]
    except csv.Error:
        raise ValueError(QUOTES) from None
    if '"' in text and MISPLACED_QUOTE.search(QUOTED.sub("\0", text)):
        raise ValueError(QUOTES)
    if not rows or (len(rows) == 1 and not text.endswith(("\n", "\r"))):
        raise ValueError("parse error (not enough input)")
    header = rows.pop(0)
    # pairs, since a name may be given twice
    records = [list(zip(header, row, strict=False)) for row in rows]
    if any(len(record) != len(records[0]) for record in records):
        raise ValueError("All lines must have same number of fields")
    texts = [
        ",".join(
            f"{orjson.dumps(name).decode()}:"
            f"{'null' if value == 'NULL' else orjson.dumps(value).decode()}"
            for name, value in record
        )
        for record in records
    ]
    names = tuple(dict.fromkeys(name for name, _ in records[0])) if records else ()
    return names, ("[" + ",".join("{" + text + "}" for text in texts) + "]").encode()
