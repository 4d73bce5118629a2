"""Conditions to SQL, written the slow obvious way, to compare with ichicore.rest.filters.

Values are collected in order of appearance, so the text can be compared with the compiled one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ichicore.rest.ast import Filter, Logic

SYMBOLS = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
    "like": "LIKE",
    "ilike": "ILIKE",
    "match": "~",
    "imatch": "~*",
    "isdistinct": "IS DISTINCT FROM",
    "cs": "@>",
    "cd": "<@",
    "ov": "&&",
    "sl": "<<",
    "sr": ">>",
    "nxr": "&<",
    "nxl": "&>",
    "adj": "-|-",
}
SEARCHES = {
    "fts": "to_tsquery",
    "plfts": "plainto_tsquery",
    "phfts": "phraseto_tsquery",
    "wfts": "websearch_to_tsquery",
}


def quoted(name: str) -> str:
    return '"' + name.split("\0")[0].replace('"', '""') + '"'


@dataclass
class Sql:
    """Text with $1, $2 ... and where each comes from: a slot, or bytes of the shape."""

    qualifier: str
    types: dict[str, str]
    layout: list[int | bytes] = field(default_factory=list)

    def parameter(self, source: int | bytes) -> str:
        self.layout.append(source)
        return f"${len(self.layout)}"

    def column(self, condition: Filter) -> str:
        name = condition.field.name
        text = f"{self.qualifier}.{quoted(name)}"
        if condition.field.path:
            if self.types.get(name) not in ("json", "jsonb"):
                text = f"to_jsonb({text})"
            for step in condition.field.path:
                text += "->>" if step.as_text else "->"
                text += self.parameter(step.key.encode()) + ("::int" if step.is_index else "")
        return text

    def filter(self, condition: Filter) -> str:
        negation = "NOT " if condition.negated else ""
        if condition.op in SEARCHES:
            return negation + self.search(condition)
        column = self.column(condition)
        if condition.op == "is":
            return f"{negation}{column} IS {condition.value.upper().replace('_', ' ')}"
        value = self.parameter(condition.slot)
        if condition.op == "in":
            return f"{negation}{column} = ANY ({value})"
        if condition.quantifier is not None:
            value = f"{condition.quantifier.upper()}({value})"
        return f"{negation}{column} {SYMBOLS[condition.op]} {value}"

    def search(self, condition: Filter) -> str:
        vector = self.types.get(condition.field.name, "tsvector") == "tsvector"
        config = condition.config
        if vector:
            document = self.column(condition)
        else:
            first = "" if config is None else self.parameter(config.encode()) + ", "
            document = f"to_tsvector({first}{self.column(condition)})"
        second = "" if config is None else self.parameter(config.encode()) + ", "
        query = f"{SEARCHES[condition.op]}({second}{self.parameter(condition.slot)})"
        return f"{document} @@ {query}"

    def logic(self, part: Filter | Logic) -> str:
        if isinstance(part, Filter):
            return self.filter(part)
        joined = f" {part.op.upper()} ".join(self.logic(child) for child in part.children)
        return f"{'NOT ' if part.negated else ''}({joined})"
