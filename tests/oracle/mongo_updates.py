"""Updates, for the slow twin."""

from __future__ import annotations

from typing import Any

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from tests.oracle.mongo_filters import Filters
from tests.oracle.mongo_values import bad, forbidden


class Updates(Filters):
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
