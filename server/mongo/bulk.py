"""bulkWrite: neighbours of a kind go to the server as one command."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import orjson

from ichicore.errors import ApiError
from ichicore.mongo import Plan, message
from server.mongo import faults
from server.mongo.execute import Change, Event, Executor, errors_of, id_text, update_statement
from server.mongo.faults import DriverError

KIND = {
    "insertOne": "insert", "updateOne": "update", "updateMany": "update", "replaceOne": "update",
    "deleteOne": "delete", "deleteMany": "delete",
}  # fmt: skip
BATCH = 1000  # operations of one command
BATCH_BYTES = 12 << 20


class Tally:
    """What a batch has done so far."""

    def __init__(self) -> None:
        self.inserted = self.matched = self.modified = self.deleted = 0
        self.upserted: dict[str, str] = {}
        self.errors: dict[int, ApiError] = {}
        self.events: list[Event] = []
        self.done = 0  # operations that did not fail

    def answer(self) -> bytes:
        found: dict[str, Any] = {
            "inserted": self.inserted, "matched": self.matched, "modified": self.modified,
            "deleted": self.deleted, "upserted": len(self.upserted),
            "upserted_ids": self.upserted,
        }  # fmt: skip
        if self.errors:
            found["errors"] = [
                {"index": index, "code": error.code, "detail": error.message}
                for index, error in sorted(self.errors.items())
            ]
        return orjson.dumps(found)


async def write(
    executor: Executor, plans: tuple[Plan, ...], ordered: bool, told: bool
) -> tuple[bytes, list[Event]]:
    """The answer, and what changed where that is told. The first refusal when all were refused."""
    tally = Tally()
    for alone, group in groupby(enumerate(plans), lambda pair: _key(pair[1], told)):
        for batch in _batches(list(group)):
            await _run(executor, batch, alone, ordered, told, tally)
            if ordered and tally.errors:
                break
        if ordered and tally.errors:
            break
    if tally.errors and tally.done == 0:
        raise tally.errors[min(tally.errors)]
    return tally.answer(), tally.events


def _key(plan: Plan, told: bool) -> tuple[str, bool]:
    """What may go together: of one kind, and not one whose documents must be looked at."""
    kind = KIND[plan.operation]
    looked = told and kind != "insert"
    return kind, looked or plan.check is not None or plan.insert_check is not None


def _batches(group: list[tuple[int, Plan]]) -> list[list[tuple[int, Plan]]]:
    found: list[list[tuple[int, Plan]]] = []
    size = BATCH_BYTES
    for pair in group:
        plan = pair[1]
        own = len(plan.filter) + len(plan.update or plan.replacement or b"")
        own += sum(map(len, plan.documents))
        if not found or size + own > BATCH_BYTES or len(found[-1]) >= BATCH:
            found.append([])
            size = 0
        found[-1].append(pair)
        size += own
    return found


async def _run(
    executor: Executor,
    batch: list[tuple[int, Plan]],
    key: tuple[str, bool],
    ordered: bool,
    told: bool,
    tally: Tally,
) -> None:
    kind, alone = key
    if alone:
        for index, plan in batch:
            try:
                await _one(executor, index, plan, told, tally)
            except (ApiError, DriverError) as error:
                _failed(tally, index, error)
                if ordered:
                    return
        return
    try:
        answer = await executor.write(_command(executor, kind, [p for _, p in batch], ordered))
    except (ApiError, DriverError) as error:
        for index, _ in batch:
            _failed(tally, index, error)
        return
    failed = dict(errors_of(answer))
    for place, refused in failed.items():
        tally.errors[batch[place][0]] = refused
    reached = len(batch) if not (ordered and failed) else min(failed)
    succeeded = [i for i in range(reached) if i not in failed]
    tally.done += len(succeeded)
    if kind == "insert":
        tally.inserted += int(answer["n"])
        if told:
            tally.events += [Event("insert", batch[i][1].documents[0], None) for i in succeeded]
    elif kind == "delete":
        tally.deleted += int(answer["n"])
    else:
        upserted = answer.get("upserted", [])
        tally.matched += int(answer["n"]) - len(upserted)
        tally.modified += int(answer.get("nModified", 0))
        for one in upserted:
            tally.upserted[str(batch[one["index"]][0])] = id_text(one["_id"]) or ""


def _command(executor: Executor, kind: str, plans: list[Plan], ordered: bool) -> bytes:
    name = executor.collection
    if kind == "insert":
        return message.insert(name, [plan.documents[0] for plan in plans], ordered)
    if kind == "update":
        statements = [update_statement(change_of(plan, False)) for plan in plans]
        return message.update(name, statements, ordered)
    statements = [
        message.delete_statement(plan.filter, plan.operation == "deleteMany") for plan in plans
    ]
    return message.delete(name, statements, ordered)


async def _one(executor: Executor, index: int, plan: Plan, told: bool, tally: Tally) -> None:
    if KIND[plan.operation] == "delete":
        done = await executor.delete(plan.filter, multi=plan.operation == "deleteMany")
        tally.deleted += done.matched
    else:
        done = await executor.update(change_of(plan, told))
        tally.matched += done.matched
        tally.modified += done.modified
        if done.upserted is not None:
            tally.upserted[str(index)] = done.upserted
    tally.done += 1
    if told:
        tally.events += done.events


def _failed(tally: Tally, index: int, error: Exception) -> None:
    known = error if isinstance(error, ApiError) else faults.refusal(error)
    assert isinstance(known, ApiError)
    if known.status >= 500 and known.code != "timeout":
        raise known
    tally.errors[index] = known


def change_of(plan: Plan, look: bool) -> Change:
    """The update or replacement that a plan asks for."""
    change = plan.replacement if plan.update is None else plan.update
    assert change is not None
    return Change(
        plan.filter, change, multi=plan.operation == "updateMany", upsert=plan.upsert,
        array_filters=plan.array_filters, sort=plan.sort, check=plan.check,
        insert_check=plan.insert_check, look=look,
    )  # fmt: skip
