"""Runs single operations on a project's documents: BSON in, BSON out.

A write is one command wherever that suffices. Where what it left behind must be looked at before
anybody sees it, or told to others, it is a transaction: find, write those very documents, read them
again. Documents that another write changes meanwhile make the server refuse, and it runs again.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument

from ichicore.errors import ApiError
from ichicore.mongo import message, reply, splice
from ichicore.rules import Bound
from server.mongo import faults
from server.mongo.faults import DriverError
from server.mongo.store import RAW, Store
from server.mongo.transaction import MAJORITY, Direct, Transaction, atomically

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

    def left(self) -> float:
        """Seconds; ApiError 504 when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise faults.timed_out()
        return left

    # Reading

    async def ask(self, elements: bytes) -> bytes:
        """The raw answer to a command of these members."""
        left = self.left()
        answer = await self.store.run(message.sealed(elements, left, self.store.tail), left)
        self.store.succeeded(answer)
        return answer

    async def found(self, elements: bytes) -> list[bytes]:
        """The raw answers that hold what a find or an aggregation gives."""
        return await self.rest(await self.ask(elements))

    async def rest(self, first: bytes) -> list[bytes]:
        """A reply, and what its cursor gives until it ends, bounded by its command's limit."""
        answers, size, last = [first], len(first), first
        while (cursor := reply.cursor_id(last)) != 0:
            if size > MOST_BYTES:
                await self._close(cursor)
                raise ApiError(
                    413, "result_too_large",
                    f"The result has more than {MOST_BYTES >> 20} MiB; ask for fewer documents.",
                )  # fmt: skip
            command = message.whole(self._more(cursor), self.store.tail)
            answer = await self.store.run(command, self.left())
            self.store.succeeded(answer)
            answers.append(answer)
            size += len(answer)
            last = answer
        return answers

    def _more(self, cursor: int) -> bytes:
        body = {"getMore": bson.Int64(cursor), "collection": self.collection}
        return bson.encode(body)[4:-1]

    async def _close(self, cursor: int) -> None:
        body = {"killCursors": self.collection, "cursors": [bson.Int64(cursor)]}
        await self.store.run(bson.encode({**body, "$db": self.store.database}), 2.0)

    # Writing

    async def write(self, elements: bytes) -> dict[str, Any]:
        """One command that waits for the journal. The answer with its writeErrors."""
        return written(await self.store.write(elements + MAJORITY, self.left()), self.store)

    async def update(self, change: Change) -> Written:
        """Of one whose documents must be looked at; others are one command."""
        return await self._guarded(change, lambda work: self._update(work, change))

    async def delete(self, filter: bytes, *, multi: bool) -> Written:
        """The same of a deletion."""
        return await self._guarded(
            None, lambda work: self._delete(work, filter, multi=multi, sort=None)
        )

    async def find_one_and_update(
        self, change: Change, *, after: bool, projection: bytes | None
    ) -> Written:
        """found: the document, None when there is none or an upsert made it."""
        profile = await self.store.profile()
        if profile.quick_find_and_modify and not (
            change.look or change.check is not None or change.insert_check is not None
        ):
            elements = message.find_and_modify(
                self.collection, change.filter, update=change.change, after=after,
                upsert=change.upsert, sort=change.sort, fields=projection,
                array_filters=change.array_filters,
            )  # fmt: skip
            answer = await self.write(elements)
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
            elements = message.find_and_modify(
                self.collection, filter, sort=sort, fields=projection
            )
            value = (await self.write(elements)).get("value")
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
        chosen = _these(ids)
        if not transaction.isolated or POSITION.search(change.change):
            # another version may be there, or the place is that of the element the filter found
            chosen = splice.both(chosen, change.filter)
        statement = message.update_statement(
            chosen, change.change, change.multi, False, change.array_filters
        )
        answer = await transaction.run(message.update(self.collection, (statement,)))
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
        chosen: bytes,
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
        answer = await transaction.run(message.update(self.collection, (update_statement(change),)))
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
        chosen = _these(ids)
        if not transaction.isolated:
            chosen = splice.both(chosen, filter)
        statement = message.delete_statement(chosen, True)
        answer = await transaction.run(message.delete(self.collection, (statement,)))
        if errors_of(answer):
            raise _as_error(answer)
        events = tuple(Event("delete", None, document) for document in before)
        return Written(matched=int(answer["n"]), events=events, found=found)

    async def _pick(
        self, transaction: Transaction, filter: bytes, multi: bool, sort: bytes | None
    ) -> list[bytes]:
        """The documents that a write is about. ApiError 413 when there are more than may be."""
        found = await self._read(transaction, filter, self.most + 1 if multi else 1, sort=sort)
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
        chosen: bytes,
        limit: int,
        keep: bytes | None = None,
        sort: bytes | None = None,
    ) -> list[bytes]:
        answer = await transaction.raw(
            message.find(self.collection, chosen, limit, projection=keep, sort=sort), reads=True
        )
        found = reply.documents(answer)
        size = len(answer)
        while (cursor := reply.cursor_id(answer)) != 0:
            answer = await transaction.raw(self._more(cursor), reads=True)
            size += len(answer)
            if size > MOST_BYTES:
                raise ApiError(413, "too_many_docs", "This write would change too many documents.")
            found += reply.documents(answer)
        return found


def _key(document: bytes) -> bytes:
    """The identifier of a document, as something to look it up by."""
    return bson.encode({"": raw(document)["_id"]})


def _these(ids: list[Any]) -> bytes:
    """The filter for documents of these identifiers."""
    return bson.encode({"_id": {"$eq": ids[0]} if len(ids) == 1 else {"$in": ids}})


def update_statement(change: Change) -> bytes:
    """An element of an update command."""
    return message.update_statement(
        change.filter, change.change, change.multi, change.upsert, change.array_filters
    )


def written(answer: bytes, store: Store) -> dict[str, Any]:
    """The answer to a write, with its writeErrors; DriverError when it failed as a whole."""
    document: Any = bson.decode(answer, RAW)
    if document.get("ok") != 1:
        raise store.failure(document)
    concern = document.get("writeConcernError")
    if concern:
        raise DriverError(concern)
    return document


def updated(answer: dict[str, Any]) -> Written:
    """What an update of one statement did; ApiError when it was refused."""
    failed = errors_of(answer)
    if failed:
        raise failed[0][1]
    return _written(answer)


def deleted(answer: dict[str, Any]) -> Written:
    """The same of a deletion."""
    failed = errors_of(answer)
    if failed:
        raise failed[0][1]
    return Written(matched=int(answer["n"]))


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
