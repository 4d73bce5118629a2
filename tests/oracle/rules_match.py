"""The slow twin of ichicore.rules.match: an expression is walked anew for every document.

What a variable resolves to, and what a path leads to, are lists made in full; every operator is a
few lines over them. Raises KeyError for what the compiler refuses.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from bson.decimal128 import Decimal128
from bson.objectid import ObjectId

ABSENT = object()
UNRESOLVED = object()
HEX = re.compile(r"[0-9a-fA-F]{24}")


class Unresolved(Exception):
    pass


def sort_key(value: Any) -> Any:
    """A key by which values compare: the place of the type, then the value."""
    if value is None:
        return (1,)
    if isinstance(value, bool):
        return (6, value)
    if isinstance(value, int | float | Decimal128):
        number = value.to_decimal() if isinstance(value, Decimal128) else value
        if number != number:
            return (2, 0)
        return (2, 1, number if math.isinf(number) else Decimal(number))
    if isinstance(value, str):
        return (3, value.encode())
    if isinstance(value, dict):
        return (4, [(sort_key(v)[0], k.encode(), sort_key(v)) for k, v in value.items()])
    if isinstance(value, list):
        return (4.5, [sort_key(v) for v in value])
    if isinstance(value, ObjectId):
        return (5, value.binary)
    raise TypeError(type(value))


def kind(value: Any) -> Any:
    return sort_key(value)[0]


def equal(a: Any, b: Any) -> bool:
    if a is ABSENT or b is ABSENT:
        return (a is ABSENT or a is None) and (b is ABSENT or b is None)
    return sort_key(a) == sort_key(b)


def resolve(name: str, identity: Any) -> Any:
    if name in ("auth.uid", "auth.role", "auth.email"):
        found = getattr(identity, name[5:])
    else:
        found = identity.claims
        for part in name.split(".")[2:]:
            found = found.get(part) if isinstance(found, dict) else None
    if found is None or (found == "" and name != "auth.claims"):
        if name in ("auth.uid", "auth.email") or found is None:
            raise Unresolved
    return found


def interpolate(value: Any, identity: Any) -> Any:
    if isinstance(value, str):
        if value.startswith("$auth."):
            return resolve(value[1:], identity)
        whole = re.fullmatch(r"\$\{([^}]*)\}", value)
        if whole:
            return resolve(whole[1], identity)

        def put(found: re.Match[str]) -> str:
            if found[0].startswith("$$"):
                return "${"
            inserted = resolve(found[1], identity)
            if isinstance(inserted, bool):
                return "true" if inserted else "false"
            if isinstance(inserted, dict | list):
                raise Unresolved
            return str(inserted)

        return re.sub(r"\$\$\{|\$\{([^}]*)\}", put, value)
    if isinstance(value, list):
        return [interpolate(one, identity) for one in value]
    if isinstance(value, dict):
        if list(value) == ["$oid"]:
            return ObjectId(value["$oid"])
        return {key: interpolate(one, identity) for key, one in value.items()}
    return value


def leads_to(document: Any, parts: list[str]) -> list[tuple[Any, bool]]:
    """(value, whether its elements count too) of everything a path leads to."""
    if not isinstance(document, dict) or parts[0] not in document:
        return [(ABSENT, False)]
    value = document[parts[0]]
    rest = parts[1:]
    if not rest:
        return [(value, True)]
    if isinstance(value, list):
        return into_list(value, rest)
    return leads_to(value, rest)


def into_list(items: list[Any], rest: list[str]) -> list[tuple[Any, bool]]:
    found = []
    for item in items:
        if isinstance(item, dict):
            found += leads_to(item, rest)
    if rest[0].isdigit() and str(int(rest[0])) == rest[0] and int(rest[0]) < len(items):
        item = items[int(rest[0])]
        if len(rest) == 1:
            found.append((item, False))
        elif isinstance(item, dict):
            found += leads_to(item, rest[1:])
        elif isinstance(item, list):
            found += into_list(item, rest[1:])
    return found


def candidates(found: list[tuple[Any, bool]], whole: bool) -> list[Any]:
    values = []
    for value, spread in found:
        if spread and not whole and isinstance(value, list):
            values += value
        values.append(value)
    return values


def compare(operator: str, value: Any, operand: Any) -> bool:
    if operand is None:
        return operator in ("$gte", "$lte") and (value is None or value is ABSENT)
    if value is ABSENT or kind(value) != kind(operand):
        return False
    a, b = sort_key(value), sort_key(operand)
    if a[0] == 2 and (a[1] == 0 or b[1] == 0):
        return operator in ("$gte", "$lte") and a[1] == b[1]
    return {"$gt": a > b, "$gte": a >= b, "$lt": a < b, "$lte": a <= b}[operator]


def ids(values: list[Any], coerce: bool) -> list[Any]:
    if not coerce:
        return values
    found = []
    for value in values:
        if isinstance(value, str) and HEX.fullmatch(value):
            found.append(ObjectId(value))
        found.append(value)
    return found


def test_operator(
    operator: str, operand: Any, beside: dict[str, Any], found: Any, identity: Any, coerce: bool
) -> bool:
    values = candidates(found, operator in ("$exists", "$size", "$elemMatch"))
    if operator == "$not":
        return not all(
            test_operator(name, one, operand, found, identity, coerce)
            for name, one in operand.items()
        )
    if operator == "$elemMatch":
        return any(
            isinstance(value, list) and any(element(item, operand, identity) for item in value)
            for value in values
        )
    if operator == "$exists":
        return any(value is not ABSENT for value in values) == operand
    if operator == "$size":
        return any(isinstance(value, list) and len(value) == operand for value in values)
    if operator == "$options":
        return True
    if operator == "$regex":
        flags = {"i": re.I, "m": re.M, "s": re.S, "x": re.X}
        options = sum(flags[letter] for letter in beside.get("$options", ""))
        return any(isinstance(v, str) and re.search(operand, v, options) for v in values)
    if operator == "$all" and isinstance(operand, list):
        return bool(operand) and all(
            test_operator("$elemMatch", one["$elemMatch"], {}, found, identity, False)
            if isinstance(one, dict) and "$elemMatch" in one
            else any(equal(value, interpolate(one, identity)) for value in values)
            for one in operand
        )
    operand = interpolate(operand, identity)
    if operator == "$all":
        if not isinstance(operand, list):
            raise Unresolved
        return bool(operand) and all(any(equal(v, one) for v in values) for one in operand)
    if operator in ("$eq", "$ne"):
        hit = any(equal(v, one) for v in values for one in ids([operand], coerce))
        return hit == (operator == "$eq")
    if operator in ("$in", "$nin"):
        if not isinstance(operand, list):
            raise Unresolved
        hit = any(equal(v, one) for v in values for one in ids(operand, coerce))
        return hit == (operator == "$in")
    return any(compare(operator, value, operand) for value in values)


def element(item: Any, operand: dict[str, Any], identity: Any) -> bool:
    if any(key[0] == "$" for key in operand) and not set(operand) & {"$and", "$or", "$nor"}:
        return all(
            test_operator(name, one, operand, [(item, True)], identity, False)
            for name, one in operand.items()
        )
    if isinstance(item, list):
        item = {str(number): one for number, one in enumerate(item)}
    return isinstance(item, dict) and holds(operand, item, identity)


def holds(expression: Any, document: dict[str, Any], identity: Any) -> bool:
    """Whether the expression holds; raises Unresolved."""
    if isinstance(expression, bool):
        return expression
    results = []
    for key, value in expression.items():
        if key == "$and":
            results.append(all(holds(one, document, identity) for one in value))
        elif key == "$or":
            results.append(any(holds(one, document, identity) for one in value))
        elif key == "$nor":
            results.append(not any(holds(one, document, identity) for one in value))
        elif key == "$not":
            results.append(not holds(value, document, identity))
        else:
            found = leads_to(document, key.split("."))
            coerce = key == "_id"
            if (
                isinstance(value, dict)
                and any(name[0] == "$" for name in value)
                and (list(value) != ["$oid"])
            ):
                results += [
                    test_operator(name, one, value, found, identity, coerce)
                    for name, one in value.items()
                ]
            else:
                results.append(test_operator("$eq", value, {}, found, identity, coerce))
    return all(results)


def resolves(expression: Any, identity: Any) -> bool:
    """Whether every variable in an expression resolves, wherever it stands."""
    if isinstance(expression, dict):
        for key, value in expression.items():
            if key in ("$in", "$nin", "$all") and isinstance(value, str):
                try:
                    if not isinstance(interpolate(value, identity), list):
                        return False
                except Unresolved:
                    return False
            if not resolves(value, identity):
                return False
        return True
    if isinstance(expression, list):
        return all(resolves(one, identity) for one in expression)
    try:
        interpolate(expression, identity)
    except Unresolved:
        return False
    return True


def match(expression: Any, document: dict[str, Any], identity: Any) -> bool:
    return resolves(expression, identity) and holds(expression, document, identity)


def certain(expression: Any, document: dict[str, Any], identity: Any) -> bool:
    """Whether the expression holds whatever values the names have that the document lacks."""
    return resolves(expression, identity) and _known(expression, document, identity) is True


def _known(expression: Any, document: dict[str, Any], identity: Any) -> bool | None:
    """True, False or None for what depends on values that are not known (Kleene's logic)."""
    if isinstance(expression, bool):
        return expression
    results: list[bool | None] = []
    for key, value in expression.items():
        if key in ("$and", "$or", "$nor"):
            parts = [_known(one, document, identity) for one in value]
            if key == "$and":
                results.append(_all(parts))
            else:
                some = _not(_all([_not(part) for part in parts]))
                results.append(some if key == "$or" else _not(some))
        elif key == "$not":
            results.append(_not(_known(value, document, identity)))
        elif key.split(".")[0] in document:
            results.append(holds({key: value}, document, identity))
        elif isinstance(value, dict) and any(name[0] == "$" for name in value):
            results.append(_all([_unknown(name, one, identity) for name, one in value.items()]))
        else:
            results.append(None)
    return _all(results)


def _unknown(operator: str, operand: Any, identity: Any) -> bool | None:
    """An operator upon a value that is not known. Some settle it all the same."""
    if operator == "$not":
        return _not(_all([_unknown(name, one, identity) for name, one in operand.items()]))
    if operator == "$options":
        return True
    if operator == "$all" and not (
        operand if isinstance(operand, list) else interpolate(operand, identity)
    ):
        return False
    return None


def _all(parts: list[bool | None]) -> bool | None:
    return False if False in parts else None if None in parts else True


def _not(part: bool | None) -> bool | None:
    return None if part is None else not part
