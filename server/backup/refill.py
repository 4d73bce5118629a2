"""Documents of a backup, back into their server.

An embedded server has a folder for each project: another is filled beside it and takes its place by
renaming, with all collections and views at once. In a server outside collections are made beside
those in use under other names, and take their places one by one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any

import msgspec

from server.backup import documents
from server.backup.documents import PARTIAL, Collection
from server.mongo.address import of_project
from server.mongo.provision import Documents

BATCH_BYTES = 4 << 20
# A collection has documents that its validator would refuse, and only an administrator may set one.
LATER = ("validator", "validationLevel", "validationAction")
TIMES = ("timeseries", "expireAfterSeconds")

Place = Callable[[int, str], str]


class Shape(msgspec.Struct):
    """What a collection or view is besides its documents and indexes, as the server lists it."""

    name: str
    options: dict[str, Any]
    view: bool

    @property
    def later(self) -> dict[str, Any]:
        return {name: self.options[name] for name in LATER if name in self.options}


class Refill:
    """A project's documents while they are restored: first load(), then replace() or clear().
    server: None for one of which only the project's own login is known."""

    def __init__(self, server: Documents | None, kept: str, url: str) -> None:
        self.server = server
        self.kept = kept
        self.url = url
        self.shapes: list[Shape] = []

    @property
    def apart(self) -> bool:
        """Whether the server has a folder for each project."""
        return self.server is not None and self.server.server.desk is not None

    async def load(self, source: AsyncIterator[bytes], expected: dict[str, Collection]) -> None:
        """Makes what is in the stream beside what is in use. DocumentsError when it is not as
        expected, or ApiError."""
        if not self.apart:
            await documents.clear(self.url)
            async with documents.opened(self.url) as database:
                self.shapes = await fill(database, source, expected, _partial, renamed=True)
            await self._define(_partial)
            return
        assert self.server is not None
        async with documents.said(), self.server.beside(self.kept) as database:
            self.shapes = await fill(database, source, expected)
            await define(database, self.shapes)
            await views(database, self.shapes)

    async def replace(self) -> list[str]:
        """Puts it in its place, and says what could not be made as it was. DocumentsError or
        ApiError."""
        if self.apart:
            assert self.server is not None
            await self.server.replace(self.kept)
        else:
            await self._rename()
            async with documents.opened(self.url) as database:
                await views(database, self.shapes)
                if await differences(database, self.shapes):  # renaming may cost what was defined
                    await self._define(_own)
        async with documents.opened(self.url) as database:
            return await differences(database, self.shapes)

    async def clear(self) -> None:
        """Removes what load() has made, where it is not to replace anything. DocumentsError or
        ApiError."""
        if self.apart:
            assert self.server is not None
            await self.server.forget(self.kept)
        else:
            await documents.clear(self.url)

    async def _rename(self) -> None:
        names = [one.name for one in self.shapes if not one.view]
        async with documents.opened(self.url) as database:
            for one in await (await database.list_collections(filter={"type": "view"})).to_list():
                await database.drop_collection(one["name"])
            for number, name in enumerate(names):
                await database[_partial(number, name)].rename(name, dropTarget=True)
            for name in await database.list_collection_names():
                if name not in names and not name.startswith("system."):
                    await database.drop_collection(name)

    async def _define(self, place: Place) -> None:
        if self.server is not None and any(one.later for one in self.shapes):
            async with documents.said(), self.server.admin(self.kept, long=True) as client:
                await define(client[self.server.database(self.kept)], self.shapes, place)


async def verify(
    server: Documents,
    kept: str,
    address: str | None,
    source: AsyncIterator[bytes],
    expected: dict[str, Collection],
) -> tuple[int, list[str]]:
    """Fills a scratch database, reads it again and removes it: the number of documents, and what
    could not be made as it was. DocumentsError or ApiError."""
    url = of_project(kept, address)
    assert url is not None
    await server.remove(kept)  # what an interrupted one has left
    try:
        await server.provision(kept)
        async with documents.opened(url) as database:
            shapes = await fill(database, source, expected)
        async with documents.said(), server.admin(kept, long=True) as client:
            await define(client[server.database(kept)], shapes)
        async with documents.opened(url) as database:
            await views(database, shapes)
            warnings = await differences(database, shapes)
        found: dict[str, Collection] = {}
        async for _ in documents.read(url, found):
            pass
        return documents.same(expected, found), warnings
    finally:
        await server.remove(kept)


def _own(_: int, name: str) -> str:
    return name


def _partial(number: int, _: str) -> str:
    return f"{PARTIAL}{number}"


async def fill(
    database: Any,
    source: AsyncIterator[bytes],
    expected: dict[str, Collection],
    place: Place = _own,
    *,
    renamed: bool = False,
) -> list[Shape]:
    """Makes the collections of the stream with their documents and indexes, under the names that
    `place` gives by number and name; gives what is to be made of them and of the views after that.
    renamed: they will be, which a time series cannot. DocumentsError when they are not as
    expected."""
    import bson
    from bson.raw_bson import RawBSONDocument
    from pymongo import WriteConcern

    shapes: list[Shape] = []
    found: dict[str, Collection] = {}
    numbers = count()
    collection: Any = None
    batch: list[RawBSONDocument] = []
    name, size, number, checksum = "", 0, 0, 0

    async def flush() -> None:
        nonlocal batch, size
        if batch:
            await collection.insert_many(batch, ordered="capped" in shapes[-1].options)
        batch, size = [], 0

    async for kind, body in documents.parse(source):
        if kind == b"D":
            batch.append(RawBSONDocument(body))
            size += len(body)
            number += 1
            checksum += documents.hashed(body)
            if size >= BATCH_BYTES or len(batch) >= documents.BATCH:
                await flush()
            continue
        if collection is not None:
            await flush()
            found[name] = Collection(number, str(checksum))
            collection = None
        if kind == b"C":
            opening = bson.decode(body)
            name, number, checksum = opening["name"], 0, 0
            shapes.append(Shape(name, opening.get("options", {}), view=False))
            where = place(next(numbers), name)
            collection = database.get_collection(where, write_concern=WriteConcern(w=1, j=True))
            without = (*LATER, *(TIMES if renamed and "timeseries" in shapes[-1].options else ()))
            await _make(database, where, shapes[-1].options, without)
            await _index(database, where, opening["indexes"])
        elif kind == b"V":
            opening = bson.decode(body)
            shapes.append(Shape(opening["name"], opening["options"], view=True))
    documents.same(expected, found)
    return shapes


async def _make(database: Any, name: str, options: dict[str, Any], without: Sequence[str]) -> None:
    """A collection with its options, or, in a server that knows others, without."""
    from pymongo.errors import OperationFailure

    options = {key: value for key, value in options.items() if key not in without}
    try:
        await database.command("create", name, **options)
    except OperationFailure:
        if not options:
            raise
        await database.command("create", name)


async def _index(database: Any, name: str, indexes: list[dict[str, Any]]) -> None:
    if not indexes:
        return
    wanted = [{k: v for k, v in index.items() if k not in ("ns", "v")} for index in indexes]
    await database.command("createIndexes", name, indexes=wanted)


async def define(database: Any, shapes: list[Shape], place: Place = _own) -> None:
    """Has the collections refuse what they refused. What a server does not take is told by
    differences(). database: as the administrator has it."""
    from pymongo.errors import OperationFailure

    for number, one in enumerate(one for one in shapes if not one.view):
        if one.later:
            try:
                await database.command("collMod", place(number, one.name), **one.later)
            except OperationFailure:
                continue


async def views(database: Any, shapes: list[Shape]) -> None:
    """The same for views."""
    from pymongo.errors import OperationFailure

    for one in shapes:
        if one.view:
            try:
                await database.command("create", one.name, **one.options)
            except OperationFailure:
                continue


async def differences(database: Any, shapes: list[Shape]) -> list[str]:
    """What is not as it was, in words."""
    there = {}
    for one in await (await database.list_collections()).to_list():
        there[one["name"]] = Shape(one["name"], one.get("options", {}), one.get("type") == "view")
    said = []
    for wanted in shapes:
        what = f"the {'view' if wanted.view else 'collection'} {wanted.name}"
        if wanted.name not in there:
            said.append(f"{what} could not be made")
        elif there[wanted.name] != wanted:
            said.append(f"{what} has not the options of the backup")
    return said
