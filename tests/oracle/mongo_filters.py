"""Filters, for the slow twin."""

from __future__ import annotations

from typing import Any

from bson.objectid import ObjectId

from ichicore.mongo import grammar
from ichicore.rules.extended import is_hex_id
from ichicore.rules.patterns import PatternError, check_pattern
from tests.oracle.mongo_values import Values, bad, forbidden


class Filters(Values):
    """Reads `$expr` by the `expression` of whoever derives from it."""

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
