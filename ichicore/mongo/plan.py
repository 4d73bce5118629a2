"""A parsed operation under a policy's decision: what is sent to the database."""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from ichicore.errors import ApiError
from ichicore.mongo import grammar, splice
from ichicore.mongo.parts import EMPTY, Caps, Command, Part
from ichicore.rules.codec import decode
from ichicore.rules.encode import encode
from ichicore.rules.fields import FieldRule, overlaps
from ichicore.rules.match import Bound
from ichicore.rules.policy import Decision
from ichicore.rules.values import values_equal


class Plan(msgspec.Struct, gc=False):
    """What is sent for one operation. All bytes are BSON documents.

    filter: with the policy's. limit: documents to answer with, 0 for no such number; ask: how many
    to ask for. pipeline: with the policy's stages and the limit. update: with the policy's values.
    check: must hold for every document as it is after an update; None when it cannot fail.
    insert_check: the same for what an upsert inserts. read: fields to leave out of the answer.
    """

    operation: str
    filter: bytes = EMPTY
    projection: bytes | None = None
    sort: bytes | None = None
    limit: int = 0
    ask: int = 0
    skip: int = 0
    field: str = ""
    pipeline: tuple[bytes, ...] = ()
    documents: tuple[bytes, ...] = ()
    ids: tuple[str, ...] = ()
    update: bytes | None = None
    replacement: bytes | None = None
    array_filters: tuple[bytes, ...] = ()
    upsert: bool = False
    after: bool = True
    read: FieldRule | None = None
    check: Bound | None = None
    insert_check: Bound | None = None


def denied(reason: str) -> NoReturn:
    raise ApiError(403, "policy_denied", reason)


def apply(
    command: Command, decision: Decision | dict[tuple[str, bool], Decision]
) -> tuple[Plan, ...]:
    """A plan for each part; ApiError 403 policy_denied. decision: as Policy.decide gives it, for a
    bulkWrite as Policy.decide_bulk does."""
    if isinstance(decision, dict):
        return tuple(
            _plan(part, decision[part.operation, part.upsert], command.caps)
            for part in command.parts
        )
    return tuple(_plan(part, decision, command.caps) for part in command.parts)


def _plan(part: Part, decision: Decision, caps: Caps) -> Plan:
    if not decision.allow:
        denied(decision.reason)
    plan = Plan(part.operation)
    plan.read = decision.read
    if part.operation in grammar.INSERTS:
        plan.documents = tuple(_inserted(doc, decision, caps) for doc in part.documents)
        plan.ids = part.ids
        return plan
    read = decision.read
    if read is not None:
        if part.expression:
            denied("$expr cannot be used where some fields may not be read")
        for path in part.reads:
            if not read.allows(path):
                denied(f"the field {path} may not be read")
    plan.filter = part.filter
    if decision.filter is not None:
        plan.filter = splice.both(part.filter, decision.filter.bson)
    plan.limit = part.limit
    plan.ask = part.limit + part.look_ahead
    plan.skip = part.skip
    plan.sort = part.sort
    plan.field = part.field
    plan.projection = part.projection
    if part.operation == "aggregate":
        plan.pipeline = _pipeline(part, decision, plan.ask)
    elif read is not None and plan.projection is None and part.operation in _RETURNING:
        plan.projection = encode(read.projection())
    if part.operation in grammar.UPDATES:
        _updated(plan, part, decision, caps)
    return plan


_RETURNING = ("find", "findOne", "findOneAndUpdate", "findOneAndDelete")


def _inserted(document: bytes, decision: Decision, caps: Caps) -> bytes:
    if decision.write is not None:
        found = decision.write.first_denied(decode(document))
        if found is not None:
            denied(f"the field {found} may not be written")
    if decision.set:
        document = splice.overwrite(document, decision.set)
        _check_size(document, caps)
    if decision.check is not None and not decision.check.test_raw(document):
        denied("the document is not one that the rule allows")
    return document


def _check_size(document: bytes, caps: Caps) -> None:
    if len(document) > caps.max_doc_bytes:
        raise ApiError(413, "doc_too_large", f"more than {caps.max_doc_bytes} bytes")


def _pipeline(part: Part, decision: Decision, ask: int) -> tuple[bytes, ...]:
    stages = []
    if decision.filter is not None:
        stages.append(splice.under(b"$match", decision.filter.bson))
    if decision.read is not None:
        stages.append(encode({"$project": decision.read.projection()}))
    stages += part.pipeline
    stages.append(encode({"$limit": ask}))
    return tuple(stages)


def _updated(plan: Plan, part: Part, decision: Decision, caps: Caps) -> None:
    plan.upsert = part.upsert
    plan.after = part.after
    plan.array_filters = part.array_filters
    insert = decision.insert if part.upsert else None
    terms: dict[str, Any] = {}
    if part.upsert:
        terms = _upsert_terms(plan, part, decision, insert)
    if part.replacement is not None:
        _replaced(plan, part, decision, insert, caps)
        return
    assert part.update is not None
    for _, path in part.writes:
        for rule in (decision.write, insert.write if insert else None):
            if rule is not None and not rule.allows(path):
                denied(f"the field {path} may not be written")
        for stamped in decision.set:
            if overlaps(path, stamped):
                denied(f"the field {stamped} is set by the policy")
    update = part.update
    if decision.set:
        update = splice.merge_operator(update, "$set", decision.set)
    if part.upsert:
        on_insert = {
            path: value
            for path, value in terms.items()
            if not _touched(path, part, decision.set) and (insert is None or path not in insert.set)
        }
        if insert is not None:
            _stamp_insert(on_insert, part, decision, insert)
            plan.insert_check = insert.check
        elif decision.check is not None and not _inserts_terms(decision.check, on_insert):
            plan.insert_check = decision.check
        if on_insert:
            update = splice.merge_operator(update, "$setOnInsert", on_insert)
    plan.update = update
    _check_size(update, caps)
    if decision.check is not None and _must_check(part, decision, decision.check):
        plan.check = decision.check


def _stamp_insert(
    on_insert: dict[str, Any], part: Part, decision: Decision, insert: Decision
) -> None:
    """Adds what the rule for inserts sets to what an upsert inserts."""
    for path, value in insert.set.items():
        if any(overlaps(path, written) for _, written in part.writes):
            denied(f"the field {path} is set by the policy")
        if not any(overlaps(path, stamped) for stamped in decision.set):
            on_insert[path] = value


def _inserts_terms(check: Bound, on_insert: dict[str, Any]) -> bool:
    """Whether a check is nothing but equalities that are inserted as they are."""
    terms = check.equality_terms()
    single = all(not isinstance(one, dict) or len(one) == 1 for one in check.filter.values())
    return single and check.filter.keys() == terms.keys() and terms.keys() <= on_insert.keys()


def _touched(path: str, part: Part, stamps: dict[str, Any]) -> bool:
    return any(overlaps(path, written) for _, written in part.writes) or any(
        overlaps(path, stamped) for stamped in stamps
    )


def _must_check(part: Part, decision: Decision, check: Bound) -> bool:
    """Whether an update could make a document fail the check. One that is the filter held before:
    it can fail only by what is written."""
    if not decision.check_is_filter:
        return True
    paths = check.match.paths
    if any(overlaps(written, path) for _, written in part.writes for path in paths):
        return True
    stamped = [path for path in paths if any(overlaps(path, one) for one in decision.set)]
    if not stamped:
        return False
    plain = not any(key[:1] == "$" for key in check.filter)
    terms = check.equality_terms()
    return not all(
        plain
        and path in terms
        and path in decision.set
        and values_equal(terms[path], decision.set[path])
        for path in stamped
    )


def _upsert_terms(
    plan: Plan, part: Part, decision: Decision, insert: Decision | None
) -> dict[str, Any]:
    """Equality terms of the policy's filter, for the document that an upsert may insert. A term of
    the caller for the same path must be equal; it is dropped, for MongoDB refuses two."""
    for path, _ in part.terms:
        for rule in (decision.write, insert.write if insert else None):
            if rule is not None and not rule.allows(path):
                denied(f"the field {path} may not be written")
    if decision.filter is None:
        return {}
    terms = decision.filter.equality_terms()
    own = part.filter
    for path, encoded in part.terms:
        if path in terms:
            if not values_equal(decode(encoded)["v"], terms[path]):
                denied(f"the field {path} may not have this value")
            own = splice.without(own, path)
    if own is not part.filter:
        plan.filter = splice.both(own, decision.filter.bson)
    return terms


def _replaced(
    plan: Plan, part: Part, decision: Decision, insert: Decision | None, caps: Caps
) -> None:
    assert part.replacement is not None
    if decision.write is not None:
        denied("a replacement writes every field, and some may not be written")
    document = part.replacement
    decoded = None
    if insert is not None and insert.write is not None:
        decoded = decode(document)
        if (found := insert.write.first_denied(decoded)) is not None:
            denied(f"the field {found} may not be written")
    stamps = {**(insert.set if insert else {}), **decision.set}
    if stamps:
        document = splice.overwrite(document, stamps)
    _check_size(document, caps)
    plan.replacement = document
    for check in (decision.check, insert.check if insert else None):
        if check is None:
            continue
        if any(path == "_id" or path.startswith("_id.") for path in check.match.paths):
            # the identifier is the replaced document's: only the database can tell
            if check is decision.check:
                plan.check = check
            else:
                plan.insert_check = check
        elif not check.test_raw(document):
            denied("the document is not one that the rule allows")
