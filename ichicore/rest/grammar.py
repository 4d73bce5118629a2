"""The grammar of a Postgres REST query string, in full and without haste.

The compiled parser (query.pyx) hands over whatever it does not take: wrong input, whose error
texts are worded by the parsers of syntax.py, and rare but valid forms. `parse` gives the same Query
that the compiled parser gives where both succeed.
"""

from __future__ import annotations

import re
from typing import Any

from ichicore.errors import ApiError
from ichicore.rest import ast
from ichicore.rest.syntax import (
    BLANKS,
    RESERVED_LAST,
    column_list,
    expression_or_argument,
    forest,
    logic_path,
    logic_tree,
    order_list,
    run,
    top_expression,
    tree_path,
)


def unescape(raw: bytes) -> bytes:
    """Percent-decode, plus for space; a percent sign without two hex digits stays."""
    spaced = raw.replace(b"+", b" ")
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes((int(found.group(1), 16),)), spaced)


def pairs(raw: bytes) -> list[tuple[bytes, bytes | None]]:
    """(key, value) of a query string; value None where there is no equals sign."""
    found: list[tuple[bytes, bytes | None]] = []
    raw = raw.removeprefix(b"?")
    if not raw:
        return found
    pieces = re.split(rb"[&;]", raw)
    if pieces[-1] == b"":
        pieces.pop()
    for piece in pieces:
        key, equals, value = piece.partition(b"=")
        found.append((unescape(key), unescape(value) if equals else None))
    return found


def canonical(raw: bytes) -> str:
    """The query string sorted by key and re-encoded; values of one key joined by commas."""
    grouped: dict[bytes, list[bytes]] = {}
    for key, value in pairs(raw):
        grouped.setdefault(key, []).append(value or b"")
    return "&".join(
        f"{reescape(key)}={','.join(reescape(v) for v in grouped[key])}" for key in sorted(grouped)
    )


def reescape(raw: bytes) -> str:
    safe = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
    return "".join(chr(c) if c in safe else f"%{c:02X}" for c in raw)


def decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ApiError(
            400, "PGRST100", "failed to decode the query string as UTF-8", "invalid UTF-8"
        ) from None


def read_integer(text: str) -> int | None:
    """Haskell's reading of a whole number: blanks, parentheses, a minus, hex and octal."""
    text = text.strip(BLANKS)
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip(BLANKS)
    sign, text = (-1, text[1:].strip(BLANKS)) if text.startswith("-") else (1, text)
    if not re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+", text):
        return None
    if text.isdigit():
        # Beyond bigint the database refuses it all the same; a shorter number says so sooner.
        return sign * (int(text) if len(text) <= 30 else 10**30)
    return sign * (int(text, 0) if len(text) <= 30 else 10**30)


def trim(text: str) -> str:
    """Postgres texts hold no NUL: what follows one is dropped."""
    return text.partition("\0")[0]


def array_literal(items: list[str]) -> str:
    if items == [""]:
        return "{}"
    escaped = (trim(i).replace("\\", "\\\\").replace('"', '\\"') for i in items)
    return "{" + ",".join(f'"{item}"' for item in escaped) + "}"


class _Builder:
    """Turns parsed tuples into nodes, giving values their slots."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def field(self, parsed: tuple[str, list[tuple[bool, tuple[str, bool]]]]) -> ast.Field:
        steps = tuple(ast.JsonStep(text, trim(key), index) for text, (key, index) in parsed[1])
        return ast.Field(trim(parsed[0]), steps)

    def filter(self, parsed_field: Any, expression: Any) -> ast.Filter:
        negated, (op, quantifier, config, value) = expression
        slot = -1
        if op == "in":
            text = array_literal(value)
        else:
            text = trim(value)
            if op in ("like", "ilike"):
                text = text.replace("*", "%")
        if op != "is":
            slot = len(self.values)
            self.values.append(text)
        return ast.Filter(
            self.field(parsed_field),
            op,
            text,
            negated=negated,
            quantifier=quantifier,
            config=config,
            slot=slot,
        )

    def logic(self, parsed: Any) -> ast.Filter | ast.Logic:
        if parsed[0] == "filter":
            return self.filter(parsed[1], parsed[2])
        _, negated, op, items = parsed
        return ast.Logic(op, tuple(self.logic(item) for item in items), negated)

    def select(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(self.item(item) for item in items)

    def item(self, parsed: tuple[Any, ...]) -> ast.SelectField | ast.SelectRelation:
        if parsed[0] == "field":
            _, fld, name, kind, aggregate, aggregate_cast = parsed
            return ast.SelectField(
                None if fld is None else self.field(fld),
                alias=None if name is None else trim(name),
                cast=kind,
                aggregate=aggregate,
                aggregate_cast=aggregate_cast,
            )
        _, name, other, hint, join, spread, children = parsed
        return ast.SelectRelation(
            trim(name),
            self.select(children),
            alias=None if other is None else trim(other),
            hint=None if hint is None else trim(hint),
            join=join,
            spread=spread,
        )

    def order(self, terms: list[Any]) -> tuple[ast.OrderTerm, ...]:
        return tuple(
            ast.OrderTerm(self.field(fld), way, first, None if rel is None else trim(rel))
            for rel, fld, way, first in terms
        )


def parse(raw: bytes, *, rpc: bool, mutation: bool, concatenate_order: bool) -> ast.Query:
    """See query.parse."""
    decoded = [
        (k.decode(errors="replace"), None) if v is None else (decode(k), decode(v))
        for k, v in pairs(raw)
    ]
    given = [(k, v) for k, v in decoded if v is not None]
    done: dict[int, Any] = {}

    def last(key: str) -> str:
        return key.rpartition(".")[2]

    def lookup(name: str) -> str | None:
        return next((v for k, v in decoded if k == name), None)

    # The order of these steps decides which of several errors is told.
    for number, (key, value) in enumerate(given):
        if last(key) == "order":
            path = run(tree_path, f"failed to parse tree path ({key})", key)
            done[number] = path, run(order_list, f"failed to parse order ({value})", value)
    for number, (key, value) in enumerate(given):
        if last(key) in ("and", "or"):
            path = run(logic_path, f"failed to parse logic path ({key})", key)
            op = "not." + path[-1] if "not" in path else path[-1]
            name = f"failed to parse logic tree ({value})"
            done[number] = path, run(logic_tree(0), name, op + value)
    columns, select, conflict = lookup("columns"), lookup("select"), lookup("on_conflict")
    column_names = select_items = conflict_names = None
    if columns is not None:
        column_names = run(column_list, f"failed to parse columns parameter ({columns})", columns)
    if select is not None:
        select_items = run(forest(0), f"failed to parse select parameter ({select})", select)
    for number, (key, value) in enumerate(given):
        if last(key) in RESERVED_LAST or key in ("select", "columns", "on_conflict"):
            continue
        path = run(tree_path, f"failed to parse tree path ({key})", key)
        name = f"failed to parse filter ({value})"
        done[number] = path, run(expression_or_argument if rpc else top_expression, name, value)
    if conflict is not None:
        conflict_names = run(
            column_list, f"failed to parse on_conflict parameter ({conflict})", conflict
        )
    for number, (key, _value) in enumerate(given):
        if last(key) in ("limit", "offset"):
            done[number] = run(tree_path, f"failed to parse tree path ({key})", key)
    return _build(
        given,
        done,
        select=select_items,
        columns=column_names,
        conflict=conflict_names,
        canonical_text="" if mutation else canonical(raw),
        concatenate_order=concatenate_order,
    )


def _build(
    given: list[tuple[str, str]],
    done: dict[int, Any],
    *,
    select: list[Any] | None,
    columns: list[str] | None,
    conflict: list[str] | None,
    canonical_text: str,
    concatenate_order: bool,
) -> ast.Query:
    build = _Builder()
    filters: list[Any] = []
    logic: list[Any] = []
    orders: dict[tuple[str, ...], tuple[ast.OrderTerm, ...]] = {}
    limits: dict[tuple[str, ...], list[int | None]] = {}
    slots: dict[tuple[str, ...], list[int]] = {}
    params: list[tuple[str, str]] = []
    param_slots: list[int] = []
    keys: set[str] = set()
    for number, (key, value) in enumerate(given):
        last = key.rpartition(".")[2]
        if last == "order":
            (names, _json), terms = done[number]
            embed = tuple(map(trim, names[:-1]))
            if embed not in orders:
                orders[embed] = build.order(terms)
            elif concatenate_order:
                orders[embed] += build.order(terms)
        elif last in ("and", "or"):
            names, tree = done[number]
            node = build.logic(tree)
            if isinstance(node, ast.Filter):
                node = ast.Logic("and", (node,))
            logic.append((tuple(trim(n) for n in names[:-1] if n != "not"), node))
        elif last in ("limit", "offset"):
            amount = read_integer(value)
            embed = tuple(map(trim, done[number][0][:-1]))
            which = int(last == "offset")
            limit, slot = limits.setdefault(embed, [None, None]), slots.setdefault(embed, [-1, -1])
            limit[which] = amount
            if amount is None:
                continue
            if slot[which] < 0:
                slot[which] = len(build.values)
                build.values.append("")
            build.values[slot[which]] = str(amount)
        elif number in done:
            (names, steps), expression = done[number]
            keys.add(key)
            if expression[0] is None:
                params.append((trim(names[-1]), trim(expression[1])))
                param_slots.append(len(build.values))
                build.values.append(trim(expression[1]))
            else:
                embed = tuple(map(trim, names[:-1]))
                filters.append((embed, build.filter((names[-1], steps), expression)))
    return ast.Query(
        select=(ast.SelectField(ast.Field("*")),) if select is None else build.select(select),
        filters=filters,
        logic=logic,
        order=list(orders.items()),
        limits={path: (both[0], both[1]) for path, both in limits.items()},
        limit_slots={
            path: (
                -1 if limits[path][0] is None else both[0],
                -1 if limits[path][1] is None else both[1],
            )
            for path, both in slots.items()
        },
        columns=None if columns is None else tuple(dict.fromkeys(map(trim, columns))),
        on_conflict=None if conflict is None else tuple(map(trim, conflict)),
        params=params,
        param_slots=param_slots,
        values=build.values,
        filter_keys=keys,
        canonical=canonical_text,
    )
