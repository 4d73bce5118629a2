"""Documents from a file into a collection and back: JSON lines of extended JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import bson
from bson import json_util
from pymongo import InsertOne, ReplaceOne, WriteConcern
from pymongo.errors import BulkWriteError, PyMongoError

BATCH = 1000  # documents of one write
BATCH_BYTES = 8 << 20
LINE_LIMIT = 64 << 20  # characters of one document
JOURNALED = WriteConcern(w="majority", j=True)


class TransferError(Exception):
    """What stopped an import or export, with the line where there is one."""


def load(collection: Any, file: str, progress: Any, *, upsert: bool, drop: bool) -> dict[str, int]:
    """Adds the documents of a file ("-": standard input); gives how many. What came before a
    document that cannot be read or written stays."""
    collection = collection.with_options(write_concern=JOURNALED)
    size = None if file == "-" else Path(file).stat().st_size if Path(file).exists() else None
    task = progress.add_task("importing", total=size)
    done = 0
    try:
        if drop:
            collection.delete_many({})
        batch: list[Any] = []
        waiting = 0
        for number, document, read in _documents(file):
            if upsert and "_id" in document:
                batch.append(ReplaceOne({"_id": document["_id"]}, document, upsert=True))
            else:
                batch.append(InsertOne(document))
            waiting += read
            if len(batch) >= BATCH or waiting >= BATCH_BYTES:
                done += _write(collection, batch, number)
                progress.update(task, advance=waiting)
                batch, waiting = [], 0
        if batch:
            done += _write(collection, batch, number)
        progress.update(task, advance=waiting)
    except PyMongoError as error:
        raise TransferError(f"{error}; {done} documents were imported") from None
    return {"documents": done}


def _write(collection: Any, batch: list[Any], number: int) -> int:
    try:
        collection.bulk_write(batch, ordered=True)
    except BulkWriteError as error:
        first = error.details["writeErrors"][0]
        line = number - len(batch) + first["index"] + 1
        raise TransferError(
            f"document {line}: {first['errmsg']}; the documents before it were imported"
        ) from None
    return len(batch)


def _documents(file: str) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(number, document, size in the file) of a file of lines, or of one JSON array."""
    try:
        source = sys.stdin if file == "-" else open(file, encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise TransferError(f"cannot read {file}: {error.strerror}") from None
    with source:
        number = 0
        for line in _lines(source):
            text = line.strip()
            if not text:
                continue
            if number == 0 and text.startswith("["):
                yield from _array(line + source.read(), file)
                return
            number += 1
            yield number, _document(text, file, number), len(line)


def _lines(source: IO[str]) -> Iterator[str]:
    try:
        while line := source.readline(LINE_LIMIT):
            yield line
    except UnicodeDecodeError as error:
        raise TransferError(f"the file is not UTF-8 text: {error.reason}") from None


def _array(text: str, file: str) -> Iterator[tuple[int, dict[str, Any], int]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TransferError(f"{file} is neither JSON lines nor a JSON array: {error}") from None
    for number, one in enumerate(found, 1):
        line = json.dumps(one)
        yield number, _document(line, file, number), len(line)


def _document(text: str, file: str, number: int) -> dict[str, Any]:
    try:
        found = json_util.loads(text)
    except (ValueError, TypeError, RecursionError, bson.errors.BSONError) as error:
        raise TransferError(f"{file}: document {number}: {error}") from None
    if not isinstance(found, dict):
        raise TransferError(f"{file}: document {number} is no JSON object")
    return found


def save(collection: Any, file: str, wanted: dict[str, Any], progress: Any) -> int:
    """Writes the documents as canonical extended JSON, one a line; gives how many. A file is
    replaced only once it is whole."""
    partial = None if file == "-" else Path(f"{file}.partial")
    try:
        filter = json_util.loads(json.dumps(wanted))
        total = collection.estimated_document_count() if not wanted else None
        task = progress.add_task("exporting", total=total)
        out = sys.stdout if partial is None else open(partial, "w", encoding="utf-8")  # noqa: SIM115
        count = 0
        try:
            for document in collection.find(filter, batch_size=BATCH):
                out.write(json_util.dumps(document, json_options=json_util.CANONICAL_JSON_OPTIONS))
                out.write("\n")
                count += 1
                if count % BATCH == 0:
                    progress.update(task, completed=count)
            out.flush()
            progress.update(task, completed=count)
        finally:
            if partial is not None:
                out.close()
        if partial is not None:
            partial.replace(file)
        return count
    except PyMongoError as error:
        raise TransferError(str(error)) from None
    except OSError as error:
        raise TransferError(f"cannot write {file}: {error.strerror}") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
