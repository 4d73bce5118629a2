"""Operations that are one command: what is sent for a plan, and what its reply becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from ichicore.errors import ApiError
from ichicore.mongo import Command, Plan, message, reply
from ichicore.mongo.grammar import INSERTS
from server.mongo.execute import Written, deleted, errors_of, updated

DELETES = frozenset({"deleteOne", "deleteMany"})
CHANGES = frozenset({"updateOne", "updateMany", "replaceOne"})


def reading(plan: Plan, collection: str, disk: bool) -> bytes:
    """The members of the command of a find, findOne, count, distinct or aggregate."""
    operation = plan.operation
    if operation == "aggregate":
        return message.aggregate(collection, plan.pipeline, plan.ask, disk)
    if operation == "count":
        return message.count(collection, plan.filter)
    if operation == "distinct":
        return message.distinct(collection, plan.field, plan.filter)
    limit = 1 if operation == "findOne" else plan.ask
    return message.find(
        collection, plan.filter, limit, projection=plan.projection, sort=plan.sort, skip=plan.skip
    )


def read(plan: Plan, replies: Sequence[bytes]) -> bytes:
    """The answer, from the reply and those that its cursor gave after it."""
    operation = plan.operation
    if operation == "findOne":
        return reply.doc_reply(replies[0], plan.read)
    if operation == "find":
        return reply.find_reply(replies, plan.limit, plan.read)
    if operation == "aggregate":
        return reply.find_reply(replies, plan.limit)
    if operation == "count":
        return b'{"count":%d}' % reply.count(replies[0])
    return reply.distinct_reply(replies[0], plan.limit)


def is_open(plan: Plan, found: bytes) -> bool:
    """Whether a reply leaves a cursor open."""
    return plan.operation in ("find", "aggregate") and reply.cursor_id(found) != 0


def is_single(plan: Plan, told: bool) -> bool:
    """Whether one command does a write of its own kind: no document must be looked at."""
    if plan.operation in INSERTS:
        return True
    if plan.operation in DELETES:
        return not told
    return (
        plan.operation in CHANGES and not told and plan.check is None and plan.insert_check is None
    )


def writing(plan: Plan, collection: str, ordered: bool) -> bytes:
    """The members of the command of such a write."""
    if plan.operation in INSERTS:
        return message.insert(collection, plan.documents, ordered)
    if plan.operation in DELETES:
        statement = message.delete_statement(plan.filter, plan.operation == "deleteMany")
        return message.delete(collection, (statement,))
    change = plan.replacement if plan.update is None else plan.update
    assert change is not None
    statement = message.update_statement(
        plan.filter, change, plan.operation == "updateMany", plan.upsert, plan.array_filters
    )
    return message.update(collection, (statement,))


def written(command: Command, plan: Plan, document: dict[str, Any]) -> bytes:
    """The answer, from the reply; ApiError for what was refused."""
    if plan.operation in INSERTS:
        failed = errors_of(document)
        if failed:
            raise refused_insert(command, plan, failed)
        return inserted(plan)
    if plan.operation in DELETES:
        return b'{"deleted":%d}' % deleted(document).matched
    return changed(plan.operation, updated(document))


def quickly(plan: Plan, found: bytes) -> bytes | None:
    """The same from a reply that tells of nothing but numbers; None for any other."""
    numbers = reply.written(found)
    if numbers is None:
        return None
    if plan.operation in INSERTS:
        return inserted(plan)
    if plan.operation in DELETES:
        return b'{"deleted":%d}' % numbers[0]
    return b'{"matched":%d,"modified":%d,"upserted":0}' % numbers


def inserted(plan: Plan) -> bytes:
    if plan.operation == "insertOne":
        return orjson.dumps({"insertedId": plan.ids[0]})
    return orjson.dumps({"insertedIds": plan.ids})


def refused_insert(command: Command, plan: Plan, failed: list[tuple[int, ApiError]]) -> ApiError:
    """The refusal of an insert, which says how far it came."""
    place, error = failed[0]
    if plan.operation == "insertMany":
        stored = place if command.ordered else len(plan.documents) - len(failed)
        error.message = f"docs[{place}]: {error.message} {stored} documents were inserted."
    return error


def changed(operation: str, done: Written) -> bytes:
    """The answer to an update or a replacement."""
    answer: dict[str, object] = {"matched": done.matched, "modified": done.modified}
    answer["upserted"] = 0 if done.upserted is None else 1
    if done.upserted is not None:
        answer["upserted_id"] = done.upserted
        if operation != "replaceOne":
            answer["upsertedId"] = done.upserted
    return orjson.dumps(answer)
