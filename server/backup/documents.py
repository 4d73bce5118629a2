"""A project's documents as one stream of BSON, and back.

The stream is a row of records: a length (4 bytes, little-endian), a kind byte and a BSON document.
Kind C opens a collection ({"name", "indexes", "options"}); kind D is one of its documents as the
server gave it. Kind V, after all collections, is a view ({"name", "options"}). The end is a record
of kind E without a document, so that a cut shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Any

import msgspec

from server.backup.seal import whole_chunks

BATCH = 500
HEAD = 5
PIECE = 1 << 18
PARTIAL = "ichibase.restored."  # what collections are called until all of them are there


class Collection(msgspec.Struct, frozen=True):
    """checksum: sum over a hash of each document, as a decimal number."""

    documents: int
    checksum: str


class DocumentsError(RuntimeError):
    """A stream of documents that is damaged, or a server that does not take them."""

    def __init__(self, text: str, code: str = "backup_damaged") -> None:
        super().__init__(text)
        self.code = code


def record(kind: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(4, "little") + kind + body


def hashed(body: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")


async def read(
    url: str, found: dict[str, Collection], *, moving: bool = False
) -> AsyncIterator[bytes]:
    """All of a database, in pieces. `found` is filled with what was read, by collection. moving: a
    cursor of the server sees what is written while it is read."""
    async for piece in whole_chunks(_records(url, found, moving), PIECE):
        yield piece


async def _records(url: str, found: dict[str, Collection], moving: bool) -> AsyncIterator[bytes]:
    import bson
    from bson.raw_bson import RawBSONDocument

    views: list[bytes] = []
    async with opened(url, RawBSONDocument) as database:
        listed = [_plain(one) async for one in await database.list_collections()]
        for one in sorted(listed, key=itemgetter("name")):
            name = one["name"]
            if name.startswith(("system.", PARTIAL)):
                continue
            options = one.get("options", {})
            if one.get("type") == "view":
                views.append(bson.encode({"name": name, "options": options}))
                continue
            collection = database[name]
            indexes = [_plain(index) async for index in await collection.list_indexes()]
            indexes = [index for index in indexes if index.get("name") != "_id_"]
            opening = {"name": name, "indexes": indexes, "options": options}
            yield record(b"C", bson.encode(opening))
            count, checksum = 0, 0
            # One that is removed and put in again comes at the end of a collection, a second time.
            # In the order of the ids it comes at most twice in a row.
            by_id = moving and not ("capped" in options or "timeseries" in options)
            last: Any = None
            order = {"hint": {"_id": 1}} if by_id else {}
            async for document in collection.find({}, batch_size=BATCH, **order):
                if by_id:
                    before, last = last, document["_id"]
                    if type(before) is type(last) and before == last:
                        continue
                count += 1
                raw = bytes(document.raw)
                checksum += hashed(raw)
                yield record(b"D", raw)
            found[name] = Collection(count, str(checksum))
    for view in views:
        yield record(b"V", view)
    yield record(b"E")


def _plain(document: Any) -> dict[str, Any]:
    """Whatever the driver makes of the answer to a command."""
    import bson

    return bson.decode(document.raw) if hasattr(document, "raw") else dict(document)


async def parse(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
    """The records of a stream: kind and body. DocumentsError."""
    kept = bytearray()
    async for piece in source:
        kept += piece
        at = 0
        while len(kept) - at >= HEAD:
            size = int.from_bytes(kept[at : at + 4], "little")
            if len(kept) - at < HEAD + size:
                break
            kind = bytes(kept[at + 4 : at + HEAD])
            yield kind, bytes(kept[at + HEAD : at + HEAD + size])
            at += HEAD + size
            if kind == b"E":
                return
        del kept[:at]
    raise DocumentsError("the documents are cut off")


async def clear(url: str) -> None:
    """Removes collections that were to take the places of others."""
    async with opened(url) as database:
        for name in await database.list_collection_names():
            if name.startswith(PARTIAL):
                await database.drop_collection(name)


@asynccontextmanager
async def opened(url: str, kind: type[Any] = dict) -> AsyncIterator[Any]:
    """The database of the address, whose documents come as `kind`. DocumentsError for what the
    server does not do."""
    from pymongo import AsyncMongoClient

    client: AsyncMongoClient[Any] = AsyncMongoClient(
        url, document_class=kind, appname="ichibase backup", serverSelectionTimeoutMS=30_000
    )
    async with said(), client:
        yield client.get_default_database()


@asynccontextmanager
async def said() -> AsyncIterator[None]:
    """What the driver says, as DocumentsError."""
    from pymongo.errors import PyMongoError

    try:
        yield
    except PyMongoError as error:
        text = f"the document server: {str(error)[:500]}"
        raise DocumentsError(text, "documents_failed") from None


def same(expected: dict[str, Collection], found: dict[str, Collection]) -> int:
    """How many documents there are; DocumentsError when they are others."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DocumentsError(f"the collection {name} differs from the backup")
    return sum(one.documents for one in found.values())


async def sums(source: AsyncIterator[bytes]) -> dict[str, Collection]:
    """What a stream holds, by collection. DocumentsError."""
    import bson

    found: dict[str, Collection] = {}
    name, count, checksum = "", 0, 0
    async for kind, body in parse(source):
        if kind == b"D":
            count += 1
            checksum += hashed(body)
            continue
        if name:
            found[name] = Collection(count, str(checksum))
            name = ""
        if kind == b"C":
            name, count, checksum = bson.decode(body)["name"], 0, 0
    return found
