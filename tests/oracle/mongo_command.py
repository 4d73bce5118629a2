"""The slow twin of ichicore.mongo.command: decoded JSON is turned into Python values, then BSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import bson
from bson.errors import BSONError
from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.mongo.parts import Caps, Command, Part
from ichicore.rules.extended import READERS, is_hex_id
from ichicore.rules.patterns import PatternError, check_pattern
from tests.oracle.mongo_reply import id_text

BITS = 1 << 63


def bad(message: str) -> NoReturn:
    raise ApiError(400, "bad_request", message)


def forbidden(where: str) -> NoReturn:
    raise ApiError(400, "operator_not_allowed", f"{where}: operator not allowed")


def check_collection(name: str) -> None:
    """ApiError 400 invalid_collection unless requests may name it."""
    if not grammar.COLLECTION.fullmatch(name) or name.startswith("system."):
        raise ApiError(400, "invalid_collection", f"not a name of a collection: {name[:130]}")


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

    try:
        return json.loads(body.decode(), object_pairs_hook=pairs, parse_constant=constant)
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
    reader = _Reader(caps)
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
    reader = _Reader(Caps())
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


def _inserts(reader: _Reader, part: Part, members: dict[str, Any], where: str) -> None:
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


class _Reader:
    """Turns decoded JSON into values for BSON, noting which paths are read and written."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.reads: list[str] = []
        self.writes: list[tuple[str, str]] = []
        self.array_filters: list[bytes] = []
        self.expression_used = False
        self.upsert = False
        self.stages = 0

    def encode(self, value: dict[str, Any]) -> bytes:
        try:
            return bson.encode(value)
        except (BSONError, OverflowError, UnicodeError, ValueError, RecursionError):
            bad("a value that cannot be stored")

    # --- names and values

    def path(self, text: str, where: str, *, positions: bool = False) -> str:
        parts = text.split(".")
        if len(text) > grammar.MOST_PATH or "\0" in text or "" in parts or "__proto__" in parts:
            bad(f"{where}: not a path of a field")
        for number, part in enumerate(parts):
            if part[0] == "$":
                if (
                    positions
                    and number
                    and (
                        part == "$" or (part[1] == "[" and part[-1] == "]" and self.position(part))
                    )
                ):
                    continue
                forbidden(where)
        return text

    def position(self, part: str) -> bool:
        name = part[2:-1]
        return name == "" or (name.isascii() and name.isalnum() and name[0].islower())

    def value(self, source: Any, where: str, depth: int) -> Any:
        if depth > grammar.MOST_DEPTH:
            bad(f"{where[:200]}: nested deeper than {grammar.MOST_DEPTH}")
        if type(source) is dict:
            if len(source) == 1:
                ((key, inner),) = source.items()
                if key in grammar.EXTENDED:
                    return self.extended(key, inner, where)
            made = {}
            for key, inner in source.items():
                if key[:1] == "$":
                    forbidden(f"{where}.{key[:80]}")
                if "." in key or "\0" in key or key == "__proto__":
                    bad(f"{where}.{key[:80]}: not a name of a field")
                made[key] = self.value(inner, f"{where}.{key}", depth + 1)
            return made
        if type(source) is list:
            return [
                self.value(inner, f"{where}[{number}]", depth + 1)
                for number, inner in enumerate(source)
            ]
        return self.scalar(source, where)

    def scalar(self, source: Any, where: str) -> Any:
        if type(source) is int and not -BITS <= source < BITS:
            bad(f"{where}: a number beyond 64 bits; use $numberDecimal")
        if type(source) is float and source - source != 0:
            bad(f"{where}: a number beyond what can be stored")
        return source

    def extended(self, key: str, inner: Any, where: str) -> Any:
        try:
            return READERS[key](inner)
        except ValueError as error:
            bad(f"{where}.{key}: {error}")

    def document(self, source: Any, where: str) -> bytes:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        for key in source:
            if key[:1] == "$":
                forbidden(f"{where}.{key[:80]}")
        made = self.value(source, where, 0)
        if type(made.get("_id")) is list:
            bad(f"{where}._id: a list cannot be an identifier")
        data = self.encode(made)
        if len(data) > self.caps.max_doc_bytes:
            raise ApiError(
                413, "doc_too_large", f"{where}: more than {self.caps.max_doc_bytes} bytes"
            )
        return data

    def number(self, source: Any, where: str) -> Any:
        if type(source) is dict and len(source) == 1:
            ((key, inner),) = source.items()
            if key.startswith("$number"):
                if key in grammar.EXTENDED:
                    return self.extended(key, inner, where)
        if type(source) not in (int, float):
            bad(f"{where}: a number is expected")
        return self.scalar(source, where)

    def integer(self, source: Any, where: str, low: int = -(1 << 31)) -> int:
        if type(source) is float and source.is_integer() and abs(source) < 1 << 31:
            source = int(source)
        if type(source) is not int or not low <= source < 1 << 31:
            bad(f"{where}: a whole number is expected")
        return source

    # --- filters

    def filter(
        self, source: Any, where: str, depth: int = 0, *, top: bool = False, prefix: str = ""
    ) -> dict[str, Any]:
        """top: `_id` is the document's. prefix: path of the array whose elements are tested."""
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        if depth > grammar.MOST_DEPTH:
            bad(f"{where[:200]}: nested deeper than {grammar.MOST_DEPTH}")
        made: dict[str, Any] = {}
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            if key in grammar.LOGICAL:
                if type(value) is not list or not value:
                    bad(f"{inner}: a list of at least one filter is expected")
                if len(value) > grammar.MOST_LIST:
                    bad(f"{inner}: more than {grammar.MOST_LIST} filters")
                made[key] = [
                    self.filter(one, f"{inner}[{number}]", depth + 1, top=top, prefix=prefix)
                    for number, one in enumerate(value)
                ]
            elif key == "$expr" and top:
                self.expression_used = True
                made[key] = self.expression(value, inner, depth + 1)
            elif key[:1] == "$":
                forbidden(inner)
            else:
                path = prefix + self.path(key, inner)
                made[key] = self.condition(value, inner, depth, path, top and key == "_id")
        return made

    def condition(self, value: Any, where: str, depth: int, path: str, is_id: bool) -> Any:
        if type(value) is dict and any(key[:1] == "$" for key in value):
            if not (len(value) == 1 and next(iter(value)) in grammar.EXTENDED):
                return self.operators(value, where, depth + 1, path, is_id)
        self.reads.append(path)
        made = self.value(value, where, depth + 1)
        if is_id and type(made) is str and is_hex_id(made):
            # an upsert inserts what the filter equals: one value
            return ObjectId(made) if self.upsert else {"$in": [ObjectId(made), made]}
        return made

    def operators(
        self, source: dict[str, Any], where: str, depth: int, path: str, is_id: bool
    ) -> dict[str, Any]:
        if depth > grammar.MOST_DEPTH:
            bad(f"{where[:200]}: nested deeper than {grammar.MOST_DEPTH}")
        made: dict[str, Any] = {}
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            if key not in grammar.QUERY:
                if key[:1] == "$":
                    forbidden(inner)
                bad(f"{inner}: a name beside operators")
            if key != "$elemMatch" and key != "$not":
                self.reads.append(path)
            name, value = self.operator(key, value, source, inner, depth, path, is_id)
            if name in made:
                bad(f"{inner}: cannot stand beside {name} here")
            made[name] = value
        return made

    def operator(
        self,
        key: str,
        value: Any,
        beside: dict[str, Any],
        where: str,
        depth: int,
        path: str,
        is_id: bool,
    ) -> tuple[str, Any]:
        if key in ("$eq", "$ne"):
            made = self.value(value, where, depth)
            if is_id and type(made) is str and is_hex_id(made):
                if self.upsert and key == "$eq":
                    return key, ObjectId(made)
                return "$in" if key == "$eq" else "$nin", [ObjectId(made), made]
            return key, made
        if key in ("$gt", "$gte", "$lt", "$lte"):
            made = self.value(value, where, depth)
            if is_id and type(made) is str and is_hex_id(made):
                made = ObjectId(made)
            return key, made
        if key in ("$in", "$nin"):
            return key, self.membership(value, where, depth, is_id)
        if key == "$not":
            if type(value) is not dict or not any(name[:1] == "$" for name in value):
                bad(f"{where}: an object of operators is expected")
            return key, self.operators(value, where, depth + 1, path, is_id)
        if key == "$exists":
            if value not in (0, 1):
                bad(f"{where}: true or false is expected")
            return key, bool(value)
        if key == "$type":
            return key, self.types(value, where)
        if key == "$all":
            if type(value) is not list or len(value) > grammar.MOST_LIST:
                bad(f"{where}: a list is expected")
            return key, [
                self.all_member(one, f"{where}[{number}]", depth, path)
                for number, one in enumerate(value)
            ]
        if key == "$elemMatch":
            return key, self.element(value, where, depth, path)
        if key == "$size":
            return key, self.integer(value, where, 0)
        if key == "$mod":
            if type(value) is not list or len(value) != 2:
                bad(f"{where}: a list of divisor and remainder is expected")
            pair = [self.number(one, where) for one in value]
            if pair[0] in (0, 0.0):
                bad(f"{where}: the divisor is zero")
            return key, pair
        if key == "$regex":
            options = beside.get("$options", "")
            self.pattern(value, options, where)
            return key, value
        if "$regex" not in beside or type(value) is not str:  # $options
            bad(f"{where}: stands beside $regex, as a text")
        return key, value

    def pattern(self, text: Any, options: Any, where: str) -> None:
        if type(text) is not str or type(options) is not str:
            bad(f"{where}: a text is expected")
        try:
            check_pattern(text, options)
        except PatternError as error:
            bad(f"{where}: {error}")

    def membership(self, value: Any, where: str, depth: int, is_id: bool) -> list[Any]:
        if type(value) is not list or len(value) > grammar.MOST_LIST:
            bad(f"{where}: a list of at most {grammar.MOST_LIST} values is expected")
        found = []
        for number, one in enumerate(value):
            made = self.value(one, f"{where}[{number}]", depth)
            if is_id and type(made) is str and is_hex_id(made):
                found.append(ObjectId(made))
            found.append(made)
        return found

    def types(self, value: Any, where: str) -> Any:
        names = value if type(value) is list else [value]
        if not names:
            bad(f"{where}: a type is expected")
        for name in names:
            if type(name) is int and (0 < name < 20 or name in (-1, 127)):
                continue
            if type(name) is not str or name not in grammar.TYPES:
                bad(f"{where}: not a type")
        return value

    def all_member(self, value: Any, where: str, depth: int, path: str) -> Any:
        if type(value) is dict and "$elemMatch" in value:
            if len(value) != 1:
                bad(f"{where}: $elemMatch stands alone here")
            inner = self.element(value["$elemMatch"], f"{where}.$elemMatch", depth, path)
            return {"$elemMatch": inner}
        return self.value(value, where, depth)

    def element(self, value: Any, where: str, depth: int, path: str) -> dict[str, Any]:
        if type(value) is not dict or not value:
            bad(f"{where}: an object is expected")
        first = next(iter(value))
        if first[:1] == "$" and first not in grammar.LOGICAL:
            self.reads.append(path)
            return self.operators(value, where, depth + 1, path, False)
        return self.filter(value, where, depth + 1, prefix=path + ".")

    # --- shapes of the result

    def projection(self, source: Any, where: str) -> bytes | None:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        if not source:
            return None
        kinds = set()
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            path = self.path(key, inner)
            if value not in (0, 1) or type(value) not in (int, float, bool):
                bad(f"{inner}: 0 or 1 is expected")
            if value and path != "_id":
                self.reads.append(path)
            if path != "_id":
                kinds.add(bool(value))
        if len(kinds) > 1:
            bad(f"{where}: either fields to take or fields to leave out")
        return self.encode({key: int(value) for key, value in source.items()})

    def sort(self, source: Any, where: str) -> bytes | None:
        if type(source) is not dict:
            bad(f"{where}: an object is expected")
        if len(source) > grammar.MOST_KEYS:
            bad(f"{where}: more than {grammar.MOST_KEYS} fields")
        for key, value in source.items():
            inner = f"{where}.{key[:200]}"
            self.reads.append(self.path(key, inner))
            if value not in (1, -1) or type(value) not in (int, float):
                bad(f"{inner}: 1 or -1 is expected")
        return self.encode({key: int(value) for key, value in source.items()}) if source else None

    # --- updates

    def update(self, source: Any, where: str, filters: Any, outer: str) -> bytes:
        if type(source) is not dict or not source:
            bad(f"{where}: an object of update operators is expected")
        self.filters(filters, f"{outer}array_filters")
        made: dict[str, Any] = {}
        named: set[str] = set()
        for key, operand in source.items():
            inner = f"{where}.{key[:200]}"
            if key[:1] != "$":
                bad(f"{inner}: an update holds operators only; replaceOne takes documents")
            if key not in grammar.UPDATE:
                forbidden(inner)
            if type(operand) is not dict:
                bad(f"{inner}: an object is expected")
            fields = {}
            for text, value in operand.items():
                place = f"{inner}.{text[:200]}"
                path = self.path(text, place, positions=True)
                named.update(
                    part[2:-1] for part in path.split(".") if part[:2] == "$[" and part != "$[]"
                )
                self.writes.append((key, path))
                if key in grammar.READING_UPDATE:
                    self.reads.append(path)
                fields[path] = self.change(key, value, place, path)
            made[key] = fields
        if named != {name for name, _ in self.named_filters}:
            bad(f"{where}: each $[name] needs its entry in array_filters, and each entry its use")
        for name, reads in self.named_filters:
            for _, path in list(self.writes):
                parts = path.split(".")
                if f"$[{name}]" in parts:
                    head = ".".join(parts[: parts.index(f"$[{name}]")])
                    self.reads += [f"{head}.{rest}" if rest else head for rest in reads]
        data = self.encode(made)
        if len(data) > self.caps.max_doc_bytes:
            raise ApiError(
                413, "doc_too_large", f"{where}: more than {self.caps.max_doc_bytes} bytes"
            )
        return data

    def filters(self, source: Any, where: str) -> None:
        self.named_filters: list[tuple[str, list[str]]] = []
        if type(source) is not list or len(source) > 100:
            bad(f"{where}: a list is expected")
        kept, self.reads = self.reads, []
        for number, one in enumerate(source):
            inner = f"{where}[{number}]"
            made = self.filter(one, inner)
            heads = {path.split(".")[0] for path in self.reads}
            if len(heads) != 1:
                bad(f"{inner}: conditions on one name are expected")
            (name,) = heads
            if not self.position(f"$[{name}]") or name in [
                other for other, _ in self.named_filters
            ]:
                bad(f"{inner}: not a name for elements")
            self.named_filters.append((name, [path[len(name) + 1 :] for path in self.reads]))
            self.reads = []
            self.array_filters.append(self.encode(made))
        self.reads = kept

    def change(self, operator: str, value: Any, where: str, path: str) -> Any:
        if operator in ("$set", "$setOnInsert", "$min", "$max"):
            return self.value(value, where, 1)
        if operator == "$unset":
            return ""
        if operator in ("$inc", "$mul"):
            return self.number(value, where)
        if operator == "$rename":
            if type(value) is not str:
                bad(f"{where}: a path is expected")
            self.path(value, where)
            self.writes.append((operator, value))
            return value
        if operator == "$currentDate":
            if value is True:
                return True
            if value in ({"$type": "date"}, {"$type": "timestamp"}):
                return value
            bad(f'{where}: true or {{"$type": "date"}} is expected')
        if operator == "$pop":
            if value not in (1, -1) or type(value) is bool:
                bad(f"{where}: 1 or -1 is expected")
            return int(value)
        if operator in ("$push", "$addToSet"):
            return self.pushed(operator, value, where, path)
        if operator == "$pull":
            return self.pulled(value, where, path)
        if operator == "$pullAll":
            if type(value) is not list:
                bad(f"{where}: a list is expected")
            return self.value(value, where, 1)
        return self.bits(value, where)

    def pushed(self, operator: str, value: Any, where: str, path: str) -> Any:
        if type(value) is not dict or "$each" not in value:
            return self.value(value, where, 1)
        known = ("$each", "$position", "$slice", "$sort") if operator == "$push" else ("$each",)
        made: dict[str, Any] = {}
        for key, operand in value.items():
            inner = f"{where}.{key[:200]}"
            if key not in known:
                forbidden(inner)
            if key == "$each":
                if type(operand) is not list:
                    bad(f"{inner}: a list is expected")
                made[key] = self.value(operand, inner, 1)
            elif key == "$sort":
                names = list(operand) if type(operand) is dict else []
                self.reads += [f"{path}.{name}" for name in names]
                if type(operand) is not dict:
                    self.reads.append(path)
                made[key] = self.push_sort(operand, inner)
            else:
                made[key] = self.integer(operand, inner)
        return made

    def push_sort(self, value: Any, where: str) -> Any:
        if type(value) is dict:
            if not value or len(value) > grammar.MOST_KEYS:
                bad(f"{where}: fields are expected")
            for key, direction in value.items():
                self.path(key, f"{where}.{key[:200]}")
                if direction not in (1, -1) or type(direction) is bool:
                    bad(f"{where}: 1 or -1 is expected")
            return {key: int(direction) for key, direction in value.items()}
        if value not in (1, -1) or type(value) is bool:
            bad(f"{where}: 1 or -1 is expected")
        return int(value)

    def pulled(self, value: Any, where: str, path: str) -> Any:
        if type(value) is dict and not (len(value) == 1 and next(iter(value)) in grammar.EXTENDED):
            if any(key[:1] == "$" and key not in grammar.LOGICAL for key in value):
                return self.operators(value, where, 1, path, False)
            return self.filter(value, where, 1, prefix=path + ".")
        return self.value(value, where, 1)

    def bits(self, value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict or not value:
            bad(f"{where}: an object of and, or, xor is expected")
        made = {}
        for key, operand in value.items():
            if key not in ("and", "or", "xor"):
                bad(f"{where}.{key[:80]}: and, or, xor are expected")
            number = self.number(operand, f"{where}.{key}")
            if not isinstance(number, int):
                bad(f"{where}.{key}: a whole number is expected")
            made[key] = number
        return made

    # --- pipelines

    def pipeline(self, source: Any, where: str) -> tuple[bytes, ...]:
        return tuple(self.encode(stage) for stage in self.pipeline_stages(source, where, False))

    def pipeline_stages(self, source: Any, where: str, nested: bool) -> list[dict[str, Any]]:
        if type(source) is not list:
            bad(f"{where}: a list of stages is expected")
        self.stages += len(source)
        if self.stages > grammar.MOST_STAGES:
            bad(f"{where}: more than {grammar.MOST_STAGES} stages")
        made = []
        for number, stage in enumerate(source):
            inner = f"{where}[{number}]"
            if type(stage) is not dict or len(stage) != 1:
                bad(f"{inner}: an object with one stage is expected")
            ((name, value),) = stage.items()
            place = f"{inner}.{name[:80]}"
            allowed = name in grammar.STAGES or (
                self.caps.privileged and name in grammar.SERVICE_STAGES
            )
            if not allowed or (nested and name == "$facet"):
                raise ApiError(400, "stage_not_allowed", f"{place}: stage not allowed")
            made.append({name: STAGE_READERS[name](self, value, place)})
        return made

    def stage_match(self, value: Any, where: str) -> Any:
        return self.filter(value, where, top=True)

    def stage_project(self, value: Any, where: str) -> Any:
        if type(value) is not dict or not value:
            bad(f"{where}: an object is expected")
        return self.fields(value, where, 0)

    def fields(self, value: dict[str, Any], where: str, depth: int) -> dict[str, Any]:
        made = {}
        for key, inner in value.items():
            self.path(key, f"{where}.{key[:200]}")
            made[key] = self.expression(inner, f"{where}.{key[:200]}", depth + 1)
        return made

    def stage_unset(self, value: Any, where: str) -> Any:
        for path in value if type(value) is list and value else [value]:
            if type(path) is not str:
                bad(f"{where}: a path or a list of paths is expected")
            self.path(path, where)
        return value

    def stage_group(self, value: Any, where: str) -> Any:
        if type(value) is not dict or "_id" not in value:
            bad(f"{where}: an object with _id is expected")
        made = {}
        for key, inner in value.items():
            place = f"{where}.{key[:200]}"
            if key == "_id":
                made[key] = self.expression(inner, place, 1)
            else:
                made[key] = self.accumulator(key, inner, place)
        return made

    def accumulator(self, key: str, value: Any, where: str) -> Any:
        self.path(key, where)
        if "." in key:
            bad(f"{where}: not a name of a field")
        if type(value) is not dict or len(value) != 1:
            bad(f"{where}: an object with one accumulator is expected")
        ((name, operand),) = value.items()
        if name not in grammar.ACCUMULATORS:
            forbidden(f"{where}.{name[:80]}")
        return {name: self.operand(name, operand, f"{where}.{name}", 2)}

    def stage_sort(self, value: Any, where: str) -> Any:
        kept, self.reads = self.reads, []
        if type(value) is not dict or not value:
            bad(f"{where}: an object is expected")
        self.sort(value, where)
        self.reads = kept
        return {key: int(direction) for key, direction in value.items()}

    def stage_limit(self, value: Any, where: str) -> Any:
        return self.integer(value, where, 1)

    def stage_skip(self, value: Any, where: str) -> Any:
        return self.integer(value, where, 0)

    def stage_unwind(self, value: Any, where: str) -> Any:
        if type(value) is str:
            return self.reference(value, where)
        if type(value) is not dict or type(value.get("path")) is not str:
            bad(f'{where}: a path such as "$items" is expected')
        made: dict[str, Any] = {}
        for key, inner in value.items():
            place = f"{where}.{key[:80]}"
            if key == "path":
                made[key] = self.reference(inner, place)
            elif key == "includeArrayIndex" and type(inner) is str:
                made[key] = self.path(inner, place)
            elif key == "preserveNullAndEmptyArrays" and type(inner) is bool:
                made[key] = inner
            else:
                bad(f"{place}: not a member of $unwind")
        return made

    def stage_count(self, value: Any, where: str) -> Any:
        if type(value) is not str or "." in value:
            bad(f"{where}: a name is expected")
        return self.path(value, where)

    def stage_expression(self, value: Any, where: str) -> Any:
        return self.expression(value, where, 1)

    def stage_bucket(self, value: Any, where: str) -> Any:
        known = ("groupBy", "boundaries", "default", "output")
        return self.buckets(value, where, known)

    def stage_bucket_auto(self, value: Any, where: str) -> Any:
        return self.buckets(value, where, ("groupBy", "buckets", "output", "granularity"))

    def buckets(self, value: Any, where: str, known: tuple[str, ...]) -> Any:
        if type(value) is not dict or "groupBy" not in value:
            bad(f"{where}: an object with groupBy is expected")
        made: dict[str, Any] = {}
        for key, inner in value.items():
            place = f"{where}.{key[:80]}"
            if key not in known:
                bad(f"{place}: known are {', '.join(known)}")
            if key == "output":
                if type(inner) is not dict:
                    bad(f"{place}: an object is expected")
                made[key] = {
                    name: self.accumulator(name, one, f"{place}.{name[:80]}")
                    for name, one in inner.items()
                }
            elif key == "buckets":
                made[key] = self.integer(inner, place, 1)
            elif key == "granularity":
                if type(inner) is not str:
                    bad(f"{place}: a text is expected")
                made[key] = inner
            elif key == "groupBy":
                made[key] = self.expression(inner, place, 1)
            else:
                made[key] = self.value(inner, place, 1)
        return made

    def stage_facet(self, value: Any, where: str) -> Any:
        if type(value) is not dict or not value:
            bad(f"{where}: an object is expected")
        made = {}
        for key, inner in value.items():
            place = f"{where}.{key[:80]}"
            self.path(key, place)
            if "." in key:
                bad(f"{place}: not a name of a field")
            made[key] = self.pipeline_stages(inner, place, True)
        return made

    def stage_replace_root(self, value: Any, where: str) -> Any:
        if type(value) is not dict or set(value) != {"newRoot"}:
            bad(f"{where}: an object with newRoot is expected")
        return {"newRoot": self.expression(value["newRoot"], f"{where}.newRoot", 1)}

    def stage_sample(self, value: Any, where: str) -> Any:
        if type(value) is not dict or set(value) != {"size"}:
            bad(f"{where}: an object with size is expected")
        return {"size": self.integer(value["size"], f"{where}.size", 1)}

    def stage_lookup(self, value: Any, where: str) -> Any:
        if type(value) is not dict or type(value.get("from")) is not str:
            bad(f"{where}: an object with from is expected")
        made: dict[str, Any] = {}
        for key, inner in value.items():
            place = f"{where}.{key[:80]}"
            if key == "from":
                check_collection(inner)
                made[key] = inner
            elif key in ("localField", "foreignField", "as"):
                if type(inner) is not str:
                    bad(f"{place}: a path is expected")
                made[key] = self.path(inner, place)
            elif key == "let":
                made[key] = self.bindings(inner, place, 1)
            elif key == "pipeline":
                made[key] = self.pipeline_stages(inner, place, False)
            else:
                bad(f"{place}: not a member of $lookup")
        return made

    def stage_union(self, value: Any, where: str) -> Any:
        if type(value) is str:
            check_collection(value)
            return value
        if type(value) is not dict or type(value.get("coll")) is not str:
            bad(f"{where}: an object with coll is expected")
        check_collection(value["coll"])
        made: dict[str, Any] = {"coll": value["coll"]}
        for key, inner in value.items():
            if key == "pipeline":
                made[key] = self.pipeline_stages(inner, f"{where}.pipeline", False)
            elif key != "coll":
                bad(f"{where}.{key[:80]}: not a member of $unionWith")
        return made

    # --- expressions

    def reference(self, text: str, where: str) -> str:
        """A path such as "$a.b" or a variable such as "$$ROOT.a"."""
        if text[:1] != "$":
            bad(f'{where}: a path such as "$items" is expected')
        if text[:2] != "$$":
            self.path(text[1:], where)
            return text
        name, _, rest = text[2:].partition(".")
        if name not in grammar.VARIABLES and not (
            name[:1].isascii() and name[:1].islower() and all(c.isalnum() or c == "_" for c in name)
        ):
            forbidden(f"{where}: {text[:80]}")
        if rest or text.endswith("."):
            self.path(rest, where)
        return text

    def expression(self, value: Any, where: str, depth: int) -> Any:
        if depth > grammar.MOST_DEPTH:
            bad(f"{where[:200]}: nested deeper than {grammar.MOST_DEPTH}")
        if type(value) is str:
            return self.reference(value, where) if value[:1] == "$" else value
        if type(value) is list:
            return [
                self.expression(one, f"{where}[{number}]", depth + 1)
                for number, one in enumerate(value)
            ]
        if type(value) is not dict:
            return self.scalar(value, where)
        if any(key[:1] == "$" for key in value):
            if len(value) != 1:
                bad(f"{where}: one operator, alone, is expected")
            ((name, operand),) = value.items()
            if name in grammar.EXTENDED:
                return self.extended(name, operand, where)
            if name not in grammar.EXPRESSIONS:
                forbidden(f"{where}.{name[:80]}")
            return {name: self.operand(name, operand, f"{where}.{name}", depth + 1)}
        return self.fields(value, where, depth)

    def operand(self, name: str, value: Any, where: str, depth: int) -> Any:
        if name == "$literal":
            return self.value(value, where, depth)
        if name in grammar.PATTERNS:
            return self.matcher(value, where, depth)
        if name == "$range":
            self.check_range(value, where)
        if name == "$let" and type(value) is dict:
            made = {
                key: self.bindings(inner, f"{where}.vars", depth)
                if key == "vars"
                else self.expression(inner, f"{where}.{key[:80]}", depth)
                for key, inner in value.items()
            }
            if set(made) != {"vars", "in"}:
                bad(f"{where}: vars and in are expected")
            return made
        if name in ("$top", "$topN", "$bottom", "$bottomN", "$sortArray") and type(value) is dict:
            return {
                key: self.push_sort(inner, f"{where}.sortBy")
                if key == "sortBy"
                else self.expression(inner, f"{where}.{key[:80]}", depth)
                for key, inner in value.items()
            }
        return self.expression(value, where, depth)

    def bindings(self, value: Any, where: str, depth: int) -> dict[str, Any]:
        if type(value) is not dict:
            bad(f"{where}: an object is expected")
        for name in value:
            if not (name[:1].isascii() and name[:1].islower()) or "." in name:
                bad(f"{where}.{name[:80]}: a variable begins with a small letter")
        return {
            name: self.expression(inner, f"{where}.{name[:80]}", depth + 1)
            for name, inner in value.items()
        }

    def matcher(self, value: Any, where: str, depth: int) -> dict[str, Any]:
        if type(value) is not dict or not set(value) <= {"input", "regex", "options"}:
            bad(f"{where}: input, regex and options are expected")
        text: Any = value.get("regex")
        options: Any = value.get("options", "")
        self.pattern(text, options, f"{where}.regex")
        if text[:1] == "$" or options[:1] == "$":
            bad(f"{where}.regex: a pattern itself is expected, not an expression")
        made = dict(value)
        if "input" in value:
            made["input"] = self.expression(value["input"], f"{where}.input", depth + 1)
        return made

    def check_range(self, value: Any, where: str) -> None:
        if type(value) is not list or not 2 <= len(value) <= 3:
            bad(f"{where}: start, end and step are expected")
        if any(type(one) is not int for one in value):
            bad(f"{where}: numbers themselves are expected")
        step = value[2] if len(value) == 3 else 1
        if step == 0 or (value[1] - value[0]) // step > grammar.MOST_RANGE:
            bad(f"{where}: more than {grammar.MOST_RANGE} numbers")


STAGE_READERS: dict[str, Callable[[_Reader, Any, str], Any]] = {
    "$match": _Reader.stage_match,
    "$project": _Reader.stage_project,
    "$addFields": _Reader.stage_project,
    "$set": _Reader.stage_project,
    "$unset": _Reader.stage_unset,
    "$group": _Reader.stage_group,
    "$sort": _Reader.stage_sort,
    "$limit": _Reader.stage_limit,
    "$skip": _Reader.stage_skip,
    "$unwind": _Reader.stage_unwind,
    "$count": _Reader.stage_count,
    "$sortByCount": _Reader.stage_expression,
    "$bucket": _Reader.stage_bucket,
    "$bucketAuto": _Reader.stage_bucket_auto,
    "$facet": _Reader.stage_facet,
    "$replaceRoot": _Reader.stage_replace_root,
    "$replaceWith": _Reader.stage_expression,
    "$sample": _Reader.stage_sample,
    "$redact": _Reader.stage_expression,
    "$lookup": _Reader.stage_lookup,
    "$unionWith": _Reader.stage_union,
}
