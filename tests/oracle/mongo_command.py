"""The slow twin of ichicore.mongo.command: decoded JSON is turned into Python values, then BSON."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.mongo.parts import Caps, Command, Part
from ichicore.rules.extended import is_hex_id
from tests.oracle.mongo_reply import id_text
from tests.oracle.mongo_stages import Reader
from tests.oracle.mongo_values import BITS, bad

DIGITS = 20  # of a whole number of 64 bits, with its sign


def parse(operation: str, body: bytes, caps: Caps) -> Command:
    """ApiError: 404 unknown_operation, 400 bad_request, operator_not_allowed, stage_not_allowed,
    413 too_many_docs, doc_too_large. The message names the member, such as
    "filter.$or[1].a.$foo: operator not allowed"."""
    if operation not in grammar.OPERATIONS:
        raise ApiError(404, "unknown_operation", f"unknown operation: {operation[:40]}")
    source = _decode(body)
    if type(source) is not dict:
        bad("the body must be a JSON object")
    members = _members(operation, source, "")
    if operation == grammar.BULK:
        ordered = _flag(members, "ordered", "", False)
        return Command(operation, _batch(members, caps), caps, body, {}, ordered)
    ordered = _flag(members, "ordered", "", True)
    return Command(operation, (_part(operation, members, "", caps),), caps, body, {}, ordered)


def _decode(body: bytes) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            seen: set[str] = set()
            for key, _ in found:
                if key in seen:
                    bad(f"the member {key[:80]!r} appears twice in one object")
                seen.add(key)
        return made

    def constant(name: str) -> NoReturn:
        bad(f"{name} is not JSON")

    def whole(text: str) -> int:
        number = int(text) if len(text) <= DIGITS else BITS
        if not -BITS <= number < BITS:
            bad("a number beyond 64 bits; use $numberDecimal")
        return number

    try:
        return json.loads(
            body.decode(), object_pairs_hook=pairs, parse_constant=constant, parse_int=whole
        )
    except ApiError:
        raise
    except RecursionError:
        bad("nested too deep")
    except ValueError:
        bad("the body is not JSON")


def _members(operation: str, source: dict[str, Any], where: str) -> dict[str, Any]:
    """Members by their standard names; null counts as absent."""
    known = grammar.MEMBERS[operation]
    members: dict[str, Any] = {}
    for key, value in source.items():
        if where and key == "op":
            continue
        name = known.get(key)
        if name is None:
            bad(f"{where}{key[:80]}: unknown member; known are {', '.join(sorted(known))}")
        if value is None:
            continue
        if name in members:
            bad(f"{where}{key}: given twice, by two names")
        members[name] = value
    return members


def _flag(members: dict[str, Any], name: str, where: str, default: bool) -> bool:
    value = members.get(name, default)
    if value is not True and value is not False:
        bad(f"{where}{name}: true or false is expected")
    return value


def _whole(members: dict[str, Any], name: str, where: str) -> int:
    value = members.get(name, 0)
    if type(value) is float and value.is_integer() and abs(value) < 1 << 53:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 31:
        bad(f"{where}{name}: a whole number from 0 is expected")
    return value


def _batch(members: dict[str, Any], caps: Caps) -> tuple[Part, ...]:
    ops = members.get("ops")
    if type(ops) is not list or not ops:
        bad("ops: a list of at least one operation is expected")
    if len(ops) > caps.max_docs:
        raise ApiError(413, "too_many_docs", f"more than {caps.max_docs} operations")
    parts = []
    for number, op in enumerate(ops):
        where = f"ops[{number}]."
        if type(op) is not dict or type(op.get("op")) is not str:
            bad(f'ops[{number}]: an object with "op" is expected')
        if op["op"] not in grammar.BULK_OPERATIONS:
            bad(f"{where}op: not an operation of bulkWrite")
        parts.append(_part(op["op"], _members(op["op"], op, where), where, caps))
    return tuple(parts)


def _part(operation: str, members: dict[str, Any], where: str, caps: Caps) -> Part:
    reader = Reader(caps)
    part = Part(operation)
    if operation in grammar.INSERTS:
        _inserts(reader, part, members, where)
        return part
    if operation == "aggregate":
        part.pipeline = reader.pipeline(members.get("pipeline"), "pipeline")
        part.limit = caps.max_docs
        part.look_ahead = True
        return part
    filter_ = members.get("filter")
    if filter_ is None:
        if operation not in grammar.READS:
            bad(f"{where}filter: is missing")
        filter_ = {}
    part.upsert = reader.upsert = _flag(members, "upsert", where, False)
    part.filter = reader.encode(reader.filter(filter_, f"{where}filter", top=True))
    part.expression = reader.expression_used
    if operation in ("find", "findOne"):
        part.skip = _whole(members, "skip", where)
    if operation == "find":
        _limit(part, _whole(members, "limit", where), caps)
    if operation == "findOne":
        part.limit = 1
    if operation == "distinct":
        field = members.get("field")
        if type(field) is not str:
            bad("field: a path is expected")
        part.field = reader.path(field, "field")
        reader.reads.append(part.field)
        part.limit = caps.max_docs
    if "projection" in members:
        part.projection = reader.projection(members["projection"], f"{where}projection")
    if "sort" in members:
        part.sort = reader.sort(members["sort"], f"{where}sort")
    if "return_document" in members:
        if members["return_document"] not in ("after", "before"):
            bad(f'{where}return_document: "after" or "before" is expected')
        part.after = members["return_document"] == "after"
    if operation == "replaceOne":
        part.replacement = reader.document(members.get("replacement"), f"{where}replacement")
    elif operation in grammar.UPDATES:
        filters = members.get("array_filters", [])
        part.update = reader.update(members.get("update"), f"{where}update", filters, where)
        part.array_filters = tuple(reader.array_filters)
    if part.upsert:
        part.terms = tuple(
            (path, reader.encode({"v": value})) for path, value in _terms(filter_, f"{where}filter")
        )
    part.reads = tuple(reader.reads)
    part.writes = tuple(reader.writes)
    return part


def _terms(source: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    """What an upsert takes over from its filter: ANDed equalities at the top."""
    found: list[tuple[str, Any]] = []
    reader = Reader(Caps())
    for key, value in source.items():
        if key == "$and":
            for member in value:
                found += _terms(member, where)
        elif key[:1] == "$":
            continue
        elif type(value) is dict and any(name[:1] == "$" for name in value):
            if len(value) == 1 and next(iter(value)) in grammar.EXTENDED:
                found.append((key, reader.value(value, where, 0)))
            elif "$eq" in value:
                found.append((key, reader.value(value["$eq"], where, 0)))
        else:
            found.append((key, reader.value(value, where, 0)))
    return [
        (
            path,
            ObjectId(value) if path == "_id" and type(value) is str and is_hex_id(value) else value,
        )
        for path, value in found
    ]


def _limit(part: Part, limit: int, caps: Caps) -> None:
    if limit == 0:
        limit, part.look_ahead = min(caps.default_limit, caps.max_docs), True
    if limit > caps.max_docs:
        limit, part.look_ahead = caps.max_docs, True
    part.limit = limit


def _inserts(reader: Reader, part: Part, members: dict[str, Any], where: str) -> None:
    if part.operation == "insertOne":
        docs = [members.get("doc")]
        names = [f"{where}doc"]
    else:
        docs = members.get("docs")  # type: ignore[assignment]
        if type(docs) is not list or not docs:
            bad("docs: a list of at least one document is expected")
        if len(docs) > reader.caps.max_docs:
            raise ApiError(
                413, "too_many_docs", f"more than {reader.caps.max_docs} documents at once"
            )
        names = [f"docs[{number}]" for number in range(len(docs))]
    made, ids = [], []
    for doc, name in zip(docs, names, strict=True):
        if type(doc) is not dict:
            bad(f"{name}: an object is expected")
        if doc.get("_id") is None:
            doc = {"_id": {"$oid": str(ObjectId())}, **{k: v for k, v in doc.items() if k != "_id"}}
        data = reader.document(doc, name)
        made.append(data)
        ids.append(id_text(data) or "")
    part.documents = tuple(made)
    part.ids = tuple(ids)
