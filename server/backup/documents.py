"""A project's documents as one stream of BSON, and back.

The stream is a row of records: a length (4 bytes, little-endian), a kind byte and a BSON document.
Kind C opens a collection ({"name", "indexes"}); kind D is one of its documents as the server gave
it. The end is a record of kind E without a document, so that a cut shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Any

import msgspec

from server.backup.seal import whole_chunks

BATCH_BYTES = 4 << 20
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


async def read(url: str, found: dict[str, Collection]) -> AsyncIterator[bytes]:
    """All of a database, in pieces. `found` is filled with what was read, by collection."""
    async for piece in whole_chunks(_records(url, found), PIECE):
        yield piece


async def _records(url: str, found: dict[str, Collection]) -> AsyncIterator[bytes]:
    import bson
    from bson.raw_bson import RawBSONDocument

    async with _opened(url, RawBSONDocument) as database:
        listed = [_plain(one) async for one in await database.list_collections()]
        for one in sorted(listed, key=itemgetter("name")):
            name = one["name"]
            if name.startswith(("system.", PARTIAL)):
                continue
            if one.get("type") == "view":
                continue
            collection = database[name]
            indexes = [_plain(index) async for index in await collection.list_indexes()]
            opening = {"name": name, "indexes": [i for i in indexes if i.get("name") != "_id_"]}
            yield record(b"C", bson.encode(opening))
            count, checksum = 0, 0
            async for document in collection.find({}, batch_size=BATCH):
                count += 1
                raw = bytes(document.raw)
                checksum += hashed(raw)
                yield record(b"D", raw)
            found[name] = Collection(count, str(checksum))
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
    """Removes what load() has made, where it is not to replace anything."""
    async with _opened(url) as database:
        await _clear(database)


@asynccontextmanager
async def _opened(url: str, kind: type[Any] = dict) -> AsyncIterator[Any]:
    """The database of the address, whose documents come as `kind`. DocumentsError for what the
    server does not do."""
    from pymongo import AsyncMongoClient
    from pymongo.errors import PyMongoError

    client: AsyncMongoClient[Any] = AsyncMongoClient(
        url, document_class=kind, appname="ichibase backup", serverSelectionTimeoutMS=30_000
    )
    try:
        async with client:
            yield client.get_default_database()
    except PyMongoError as error:
        text = f"the document server: {str(error)[:500]}"
        raise DocumentsError(text, "documents_failed") from None


async def _clear(database: Any) -> None:
    for name in await database.list_collection_names():
        if name.startswith(PARTIAL):
            await database.drop_collection(name)


async def load(url: str, source: AsyncIterator[bytes], expected: dict[str, Collection]) -> None:
    """Makes the collections of the stream beside those in use, for replace(). DocumentsError when
    they are not as expected."""
    import bson
    from bson.raw_bson import RawBSONDocument
    from pymongo import WriteConcern

    found: dict[str, Collection] = {}
    async with _opened(url) as database:
        await _clear(database)
        collection: Any = None
        batch: list[RawBSONDocument] = []
        name, size, count, checksum = "", 0, 0, 0

        async def flush() -> None:
            nonlocal batch, size
            if batch:
                await collection.insert_many(batch, ordered=False)
            batch, size = [], 0

        async for kind, body in parse(source):
            if kind == b"D":
                batch.append(RawBSONDocument(body))
                size += len(body)
                count += 1
                checksum += hashed(body)
                if size >= BATCH_BYTES or len(batch) >= BATCH:
                    await flush()
                continue
            if collection is not None:
                await flush()
                found[name] = Collection(count, str(checksum))
            if kind == b"C":
                opening = bson.decode(body)
                name, count, checksum = opening["name"], 0, 0
                partial = f"{PARTIAL}{len(found)}"
                collection = database.get_collection(
                    partial, write_concern=WriteConcern(w=1, j=True)
                )
                await database.create_collection(partial)
                await _index(database, partial, opening["indexes"])
    same(expected, found)


async def replace(url: str, names: Iterable[str]) -> None:
    """Puts the collections that load() has made in the places of those in use, and drops those that
    have no such name, and all views."""
    kept = sorted(names)
    async with _opened(url) as database:
        for one in await (await database.list_collections(filter={"type": "view"})).to_list():
            await database.drop_collection(one["name"])
        for number, name in enumerate(kept):
            await database[f"{PARTIAL}{number}"].rename(name, dropTarget=True)
        for name in await database.list_collection_names():
            if name not in kept and not name.startswith("system."):
                await database.drop_collection(name)


def same(expected: dict[str, Collection], found: dict[str, Collection]) -> int:
    """How many documents there are; DocumentsError when they are others."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DocumentsError(f"the collection {name} differs from the backup")
    return sum(one.documents for one in found.values())


async def _index(database: Any, name: str, indexes: list[dict[str, Any]]) -> None:
    if not indexes:
        return
    wanted = [{k: v for k, v in index.items() if k not in ("ns", "v")} for index in indexes]
    await database.command("createIndexes", name, indexes=wanted)


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
        if kind == b"C":
            name, count, checksum = bson.decode(body)["name"], 0, 0
    return found
