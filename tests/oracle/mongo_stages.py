"""Expressions and the stages of pipelines, for the slow twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from tests.oracle.mongo_updates import Updates
from tests.oracle.mongo_values import bad, check_collection, forbidden


class Expressions(Updates):
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

    def fields(self, value: dict[str, Any], where: str, depth: int) -> dict[str, Any]:
        made = {}
        for key, inner in value.items():
            self.path(key, f"{where}.{key[:200]}")
            made[key] = self.expression(inner, f"{where}.{key[:200]}", depth + 1)
        return made


class Reader(Expressions):
    """Turns decoded JSON into values for BSON, noting which paths are read and written."""

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


STAGE_READERS: dict[str, Callable[[Reader, Any, str], Any]] = {
    "$match": Reader.stage_match,
    "$project": Reader.stage_project,
    "$addFields": Reader.stage_project,
    "$set": Reader.stage_project,
    "$unset": Reader.stage_unset,
    "$group": Reader.stage_group,
    "$sort": Reader.stage_sort,
    "$limit": Reader.stage_limit,
    "$skip": Reader.stage_skip,
    "$unwind": Reader.stage_unwind,
    "$count": Reader.stage_count,
    "$sortByCount": Reader.stage_expression,
    "$bucket": Reader.stage_bucket,
    "$bucketAuto": Reader.stage_bucket_auto,
    "$facet": Reader.stage_facet,
    "$replaceRoot": Reader.stage_replace_root,
    "$replaceWith": Reader.stage_expression,
    "$sample": Reader.stage_sample,
    "$redact": Reader.stage_expression,
    "$lookup": Reader.stage_lookup,
    "$unionWith": Reader.stage_union,
}
