"""Runs single operations on a project's documents: BSON in, BSON out.

A write is one command wherever that suffices. Where what it left behind must be looked at before
anybody sees it, or told to others, it is a transaction: find, write those very documents, read them
again. Documents that another write changes meanwhile make the server refuse, and it runs again.
"""

from __future__ import annotations

import re
import struct
import time
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument

from ichicore.errors import ApiError
from ichicore.mongo import reply
from ichicore.rules import Bound
from server.mongo import faults
from server.mongo.faults import DriverError
from server.mongo.store import RAW, Store
from server.mongo.transaction import Direct, Transaction, atomically

JOURNALED = {"w": "majority", "j": True}
MOST_BYTES = 64 << 20  # of one result, as BSON
POSITION = re.compile(rb"\.\$[.\x00]")


class Event(NamedTuple):
    """A changed document: kind insert, update or delete; record and old as BSON or None."""

    kind: str
    record: bytes | None
    old: bytes | None


class Written(NamedTuple):
    """What a write did. upserted: text of the identifier that an upsert made. found: the document
    that findOneAnd... answers with."""

    matched: int = 0
    modified: int = 0
    upserted: str | None = None
    events: tuple[Event, ...] = ()
    found: bytes | None = None


class Change(NamedTuple):
    """An update or replacement, ready for the server. check: what each document must satisfy
    afterwards, None when the filter alone sees to that; insert_check: the same for a document that
    an upsert makes. look: whether what is changed must be known, for `check`, events or an answer.
    """

    filter: bytes
    change: bytes
    multi: bool = False
    upsert: bool = False
    array_filters: tuple[bytes, ...] = ()
    sort: bytes | None = None
    check: Bound | None = None
    insert_check: Bound | None = None
    look: bool = False


SIZE = struct.Struct("<i")
SINGLE = b"\x08singleBatch\0\x01"


def _text(name: bytes, value: str) -> bytes:
    """A member of a BSON document."""
    data = value.encode()
    return b"".join((b"\x02", name, b"\0", SIZE.pack(len(data) + 1), data, b"\0"))


def _number(name: bytes, value: int) -> bytes:
    return b"".join((b"\x10", name, b"\0", SIZE.pack(value)))


def denied() -> ApiError:
    return ApiError(403, "policy_denied", "The document would leave what the rules allow.")


def raw(document: bytes) -> RawBSONDocument:
    return RawBSONDocument(document)


class Executor:
    """For one request. seconds: for all of it. most: documents of a write whose documents must be
    known."""

    def __init__(
        self, store: Store, collection: str, seconds: float, most: int, disk: bool
    ) -> None:
        self.store = store
        self.collection = collection
        self.deadline = time.monotonic() + seconds
        self.most = most
        self.disk = disk
        self._tail = store.suffix

    def left(self) -> float:
        """Seconds; ApiError 504 when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise faults.timed_out()
        return left

    # Reading

    async def ask(self, elements: bytes) -> bytes:
        """The raw answer to a command of these encoded members."""
        left = self.left()
        length = len(elements) + len(self._tail) + 20
        command = b"".join((
            SIZE.pack(length), elements, b"\x10maxTimeMS\0", SIZE.pack(max(1, int(left * 1000))),
            self._tail, b"\0",
        ))  # fmt: skip
        answer = await self.store.run(command, left)
        self.store.succeeded(answer)
        return answer

    async def find(
        self,
        filter: bytes,
        *,
        projection: bytes | None = None,
        sort: bytes | None = None,
        limit: int,
        skip: int = 0,
    ) -> list[bytes]:
        """The raw answers that hold the documents, at most `limit` of them."""
        parts = [_text(b"find", self.collection), b"\x03filter\0", filter, _number(b"limit", limit)]
        if projection is not None:
            parts += [b"\x03projection\0", projection]
        if sort is not None:
            parts += [b"\x03sort\0", sort]
        if skip:
            parts.append(_number(b"skip", skip))
        parts.append(SINGLE if limit == 1 else _number(b"batchSize", limit))
        return await self._batches(await self.ask(b"".join(parts)))

    async def aggregate(self, pipeline: tuple[bytes, ...], limit: int) -> list[bytes]:
        """limit: that of the pipeline's last stage."""
        body: dict[str, Any] = {
            "aggregate": self.collection, "pipeline": [raw(stage) for stage in pipeline],
            "cursor": {"batchSize": limit}, "allowDiskUse": self.disk,
        }  # fmt: skip
        return await self._batches(await self.ask(bson.encode(body)[4:-1]))

    async def _batches(self, first: bytes) -> list[bytes]:
        """What a cursor gives until it ends; its documents are bounded by its command's limit."""
        answers, size, last = [first], len(first), first
        while (cursor := reply.cursor_id(last)) != 0:
            if size > MOST_BYTES:
                await self._close(cursor)
                raise ApiError(
                    413, "result_too_large",
                    f"The result has more than {MOST_BYTES >> 20} MiB; ask for fewer documents.",
                )  # fmt: skip
            body = {"getMore": bson.Int64(cursor), "collection": self.collection}
            left = self.left()
            answer = await self.store.run(bson.encode({**body, "$db": self.store.database}), left)
            self.store.succeeded(answer)
            answers.append(answer)
            size += len(answer)
            last = answer
        return answers

    async def _close(self, cursor: int) -> None:
        body = {"killCursors": self.collection, "cursors": [bson.Int64(cursor)]}
        await self.store.run(bson.encode({**body, "$db": self.store.database}), 2.0)

    async def count(self, filter: bytes) -> int:
        answer = await self.ask(_text(b"count", self.collection) + b"\x03query\0" + filter)
        return int(bson.decode(answer)["n"])

    async def distinct(self, field: str, filter: bytes) -> bytes:
        return await self.ask(
            _text(b"distinct", self.collection) + _text(b"key", field) + b"\x03query\0" + filter
        )

    # Writing

    async def write(self, body: dict[str, Any]) -> dict[str, Any]:
        """One command that waits for the journal. The answer with its writeErrors."""
        body["writeConcern"] = JOURNALED
        body["maxTimeMS"] = max(1, round(self.left() * 1000))
        body["$db"] = self.store.database
        answer: Any = bson.decode(await self.store.write(body, self.left()), RAW)
        if answer.get("ok") != 1:
            raise self.store.failure(answer)
        concern = answer.get("writeConcernError")
        if concern:
            raise DriverError(concern)
        return answer

    async def insert(
        self, documents: tuple[bytes, ...], ordered: bool
    ) -> list[tuple[int, ApiError]]:
        """What was refused, by place; the rest is stored."""
        answer = await self.write(
            {"insert": self.collection, "documents": [raw(d) for d in documents],
             "ordered": ordered}
        )  # fmt: skip
        return errors_of(answer)

    async def update(self, change: Change) -> Written:
        if change.look or change.check is not None or change.insert_check is not None:
            return await self._guarded(change, lambda work: self._update(work, change))
        answer = await self.write(
            {"update": self.collection, "updates": [update_statement(change)]}
        )
        failed = errors_of(answer)
        if failed:
            raise failed[0][1]
        return _written(answer)

    async def delete(self, filter: bytes, *, multi: bool, look: bool) -> Written:
        if look:
            return await self._guarded(
                None, lambda work: self._delete(work, filter, multi=multi, sort=None)
            )
        answer = await self.write(
            {"delete": self.collection, "deletes": [{"q": raw(filter), "limit": 0 if multi else 1}]}
        )
        failed = errors_of(answer)
        if failed:
            raise failed[0][1]
        return Written(matched=int(answer["n"]))

    async def find_one_and_update(
        self, change: Change, *, after: bool, projection: bytes | None
    ) -> Written:
        """found: the document, None when there is none or an upsert made it."""
        profile = await self.store.profile()
        if profile.quick_find_and_modify and not (
            change.look or change.check is not None or change.insert_check is not None
        ):
            body: dict[str, Any] = {
                "findAndModify": self.collection, "query": raw(change.filter),
                "update": raw(change.change), "new": after, "upsert": change.upsert,
            }  # fmt: skip
            if change.sort is not None:
                body["sort"] = raw(change.sort)
            if change.array_filters:
                body["arrayFilters"] = [raw(one) for one in change.array_filters]
            if projection is not None:
                body["fields"] = raw(projection)
            answer = await self.write(body)
            upserted = (answer.get("lastErrorObject") or {}).get("upserted")
            value = None if upserted is not None else answer.get("value")
            found = None if value is None else bytes(value.raw)
            return Written(1 if found else 0, upserted=id_text(upserted), found=found)
        return await self._guarded(
            change, lambda work: self._update(work, change, keep=projection, after=after)
        )

    async def find_one_and_delete(
        self, filter: bytes, *, sort: bytes | None, projection: bytes | None, look: bool
    ) -> Written:
        profile = await self.store.profile()
        if profile.quick_find_and_modify and not look:
            body: dict[str, Any] = {
                "findAndModify": self.collection, "query": raw(filter), "remove": True,
            }  # fmt: skip
            if sort is not None:
                body["sort"] = raw(sort)
            if projection is not None:
                body["fields"] = raw(projection)
            value = (await self.write(body)).get("value")
            return Written(found=None if value is None else bytes(value.raw))
        return await self._guarded(
            None,
            lambda work: self._delete(work, filter, multi=False, sort=sort, keep=projection),
        )

    async def _guarded(self, change: Change | None, work: Any) -> Written:
        """In a transaction; without one where the server has none and nothing is to be checked."""
        profile = await self.store.profile()
        done: Written
        if profile.transactions:
            done = await atomically(self.store, work, self.left())
        elif change is not None and (change.check or change.insert_check) is not None:
            raise ApiError(
                403, "policy_denied",
                "The server has no transactions (it is no replica set), so what this write leaves "
                "behind cannot be checked before others see it.",
            )  # fmt: skip
        else:
            done = await work(Direct(self.store, self.deadline))
        return done

    async def _update(
        self,
        transaction: Transaction,
        change: Change,
        *,
        keep: bytes | None = None,
        after: bool = True,
    ) -> Written:
        """keep: projection of the document that is answered."""
        before = await self._pick(transaction, change.filter, change.multi, change.sort)
        if not before:
            if not change.upsert:
                return Written()
            return await self._upsert(transaction, change)
        ids = [raw(document)["_id"] for document in before]
        # What was found is what is written: the transaction would not see another version of it.
        chosen: Any = _these(ids)
        if not transaction.isolated or POSITION.search(change.change):
            # another version may be there, or the place is that of the element the filter found
            chosen = {"$and": [chosen, raw(change.filter)]}
        answer = await transaction.run(
            {"update": self.collection, "updates": [update_statement(change) | {
                "q": chosen, "multi": change.multi, "upsert": False}]}
        )  # fmt: skip
        failed = errors_of(answer)
        if failed:
            raise _as_error(answer)
        now = await self._read(transaction, _these(ids), len(ids))
        check = change.check
        if check is not None and not all(check.test_raw(document) for document in now):
            raise denied()
        found = None
        if not change.multi and (now or not after):
            found = now[0] if after else before[0]
            if keep is not None:
                found = await self._projected(transaction, _these(ids), keep, found, after)
        old = {_key(document): document for document in before} if change.look else {}
        events = tuple(Event("update", document, old.get(_key(document))) for document in now)
        written = _written(answer)
        return written._replace(events=events, found=found)

    async def _projected(
        self,
        transaction: Transaction,
        chosen: dict[str, Any],
        keep: bytes,
        document: bytes,
        after: bool,
    ) -> bytes:
        """The document under a projection; what it was before is no longer there to be asked."""
        if not after:
            from server.mongo.project import project

            return project(document, keep)
        found = await self._read(transaction, chosen, 1, keep)
        return found[0]

    async def _upsert(self, transaction: Transaction, change: Change) -> Written:
        answer = await transaction.run(
            {"update": self.collection, "updates": [update_statement(change)]}
        )
        if errors_of(answer):
            raise _as_error(answer)
        upserted = answer.get("upserted")
        if not upserted:  # it came into being meanwhile
            raise DriverError({"code": 112, "errmsg": "another write", "errorLabels": []})
        made = upserted[0]["_id"]
        now = await self._read(transaction, _these([made]), 1)
        check = change.insert_check
        if check is not None and not all(check.test_raw(document) for document in now):
            raise denied()
        events = tuple(Event("insert", document, None) for document in now)
        return Written(upserted=id_text(made), events=events)

    async def _delete(
        self,
        transaction: Transaction,
        filter: bytes,
        *,
        multi: bool,
        sort: bytes | None,
        keep: bytes | None = None,
    ) -> Written:
        before = await self._pick(transaction, filter, multi, sort)
        if not before:
            return Written()
        found = None
        ids = [raw(document)["_id"] for document in before]
        if not multi:
            found = before[0]
            if keep is not None:
                found = (await self._read(transaction, _these(ids), 1, keep))[0]
        chosen: Any = _these(ids)
        if not transaction.isolated:
            chosen = {"$and": [chosen, raw(filter)]}
        answer = await transaction.run(
            {"delete": self.collection, "deletes": [{"q": chosen, "limit": 0}]}
        )
        if errors_of(answer):
            raise _as_error(answer)
        events = tuple(Event("delete", None, document) for document in before)
        return Written(matched=int(answer["n"]), events=events, found=found)

    async def _pick(
        self, transaction: Transaction, filter: bytes, multi: bool, sort: bytes | None
    ) -> list[bytes]:
        """The documents that a write is about. ApiError 413 when there are more than may be."""
        found = await self._read(transaction, raw(filter), self.most + 1 if multi else 1, sort=sort)
        if len(found) > self.most:
            raise ApiError(
                413, "too_many_docs",
                f"This write would change more than {self.most} documents, which is the most where "
                "each is checked or told of.",
            )  # fmt: skip
        return found

    async def _read(
        self,
        transaction: Transaction,
        chosen: Any,
        limit: int,
        keep: bytes | None = None,
        sort: bytes | None = None,
    ) -> list[bytes]:
        body: dict[str, Any] = {
            "find": self.collection, "filter": chosen, "limit": limit, "batchSize": limit,
        }  # fmt: skip
        if keep is not None:
            body["projection"] = raw(keep)
        if sort is not None:
            body["sort"] = raw(sort)
        answer = await transaction.raw(body)
        found = reply.documents(answer)
        size = len(answer)
        while (cursor := reply.cursor_id(answer)) != 0:
            answer = await transaction.raw(
                {"getMore": bson.Int64(cursor), "collection": self.collection}
            )
            size += len(answer)
            if size > MOST_BYTES:
                raise ApiError(413, "too_many_docs", "This write would change too many documents.")
            found += reply.documents(answer)
        return found


def _key(document: bytes) -> bytes:
    """The identifier of a document, as something to look it up by."""
    return bson.encode({"": raw(document)["_id"]})


def _these(ids: list[Any]) -> dict[str, Any]:
    return {"_id": {"$eq": ids[0]} if len(ids) == 1 else {"$in": ids}}


def update_statement(change: Change) -> dict[str, Any]:
    """An element of an update command."""
    one: dict[str, Any] = {"q": raw(change.filter), "u": raw(change.change)}
    if change.multi:
        one["multi"] = True
    if change.upsert:
        one["upsert"] = True
    if change.array_filters:
        one["arrayFilters"] = [raw(filter) for filter in change.array_filters]
    return one


def _written(answer: dict[str, Any]) -> Written:
    upserted = answer.get("upserted")
    made = upserted[0]["_id"] if upserted else None
    matched = int(answer.get("n", 0)) - (1 if upserted else 0)
    return Written(matched, int(answer.get("nModified", 0)), id_text(made))


def id_text(value: Any) -> str | None:
    """An identifier as clients get it."""
    return None if value is None else reply.id_text(bson.encode({"_id": value}))


def errors_of(answer: dict[str, Any]) -> list[tuple[int, ApiError]]:
    """Places and reasons of what a write refused."""
    return [
        (int(one["index"]), faults.of_code(int(one.get("code", 0)), str(one.get("errmsg", ""))))
        for one in answer.get("writeErrors", ())
    ]


def _as_error(answer: dict[str, Any]) -> DriverError:
    """The first refusal within a transaction, which ends it."""
    one = answer["writeErrors"][0]
    return DriverError({**one, "errorLabels": answer.get("errorLabels", [])})
