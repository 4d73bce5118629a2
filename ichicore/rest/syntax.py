"""The syntax of the texts in a Postgres REST query string: a parser of each kind."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NoReturn

from ichicore.errors import ApiError
from ichicore.rest.parsec import (
    Parser,
    Result,
    alt,
    attempt,
    between,
    char,
    describe,
    end_of_input,
    label,
    look_ahead,
    many,
    not_followed_by,
    one,
    optional,
    position,
    pure,
    separated,
    separated1,
    seq,
    span,
    string,
)

MAX_DEPTH = 64
LONGEST = 4096  # characters of a text whose structure is looked into here: it takes a while
PLAIN_COLUMNS = re.compile(r"[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*(?=,)")
BLANKS = " \t\n\r\f\v\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000"
SIMPLE = ("neq", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl", "adj")
QUANTIFIABLE = ("eq", "gte", "gt", "lte", "lt", "like", "ilike", "match", "imatch")
TEXT_SEARCH = ("fts", "plfts", "phfts", "wfts")
TRUTH = ("null", "not_null", "true", "false", "unknown")
RESERVED_LAST = ("order", "limit", "offset", "and", "or")


class TooDeepError(Exception):
    """Nesting beyond MAX_DEPTH; args[0] is the index."""


def _join(*parts: Any) -> Any:
    return parts


def _first(value: Any, *_rest: Any) -> Any:
    return value


def _second(_first_value: Any, value: Any, *_rest: Any) -> Any:
    return value


def _apply(parser: Parser, change: Any) -> Parser:
    return seq(parser, then=change)


def _is_identifier(letter: str) -> bool:
    return letter.isalpha() or letter in "0123456789_ $"


def lexeme(parser: Parser) -> Parser:
    blanks = span(lambda c: c in " \t")
    return between(blanks, blanks, parser)


def literal_words(words: tuple[str, ...]) -> list[Parser]:
    return [attempt(string(word)) for word in words]


def any_case(word: str) -> Parser:
    letters = [alt(char(c), char(c.upper())) for c in word]
    return seq(*letters, then=lambda *_letters: word)


delimiter = label(char("."), "delimiter (.)")
escaped = seq(char("\\"), one(lambda c: True), then=_second)
quoted: Parser = between(
    char('"'),
    char('"'),
    _apply(
        many(alt(one(lambda c: c not in '\\"'), escaped)),
        "".join,
    ),
)
identifier: Parser = _apply(span(_is_identifier, ("letter", "digit"), 1), lambda t: t.strip(" "))
dash = attempt(seq(char("-"), not_followed_by(char(">")), then=_first))


def dashed(parser: Parser) -> Parser:
    return _apply(separated1(parser, dash), "-".join)


field_name = label(alt(quoted, dashed(identifier)), "field name (* or [a..z0..9_$])")
digits = span(lambda c: c in "0123456789", ("digit",), 1)
json_key_part = _apply(span(lambda c: c not in "(-:.,>)", (), 1), lambda t: t.strip(BLANKS))
json_key = label(
    alt(quoted, dashed(json_key_part)), "any non reserved character different from: .,>()"
)
json_index_end = alt(
    *[attempt(look_ahead(string(mark))) for mark in ("->", "::", ".", ",")],
    attempt(end_of_input),
)
json_index = seq(
    optional(char("-"), ""), digits, json_index_end, then=lambda sign, number, _: sign + number
)
json_operand = alt(
    attempt(_apply(json_index, lambda t: (t, True))),
    attempt(_apply(json_key, lambda t: (t, False))),
)
json_arrow = alt(
    _apply(attempt(string("->>")), lambda _: True), _apply(attempt(string("->")), lambda _: False)
)
json_path = many(seq(json_arrow, json_operand, then=_join))
field = lexeme(seq(field_name, optional(json_path, []), then=_join))
alias = optional(
    attempt(seq(field_name, char(":"), not_followed_by(char(":")), then=_first)),
)
embed_parameter = seq(
    char("!"),
    alt(
        attempt(_apply(string("left"), lambda _: ("join", "left"))),
        attempt(_apply(string("inner"), lambda _: ("join", "inner"))),
        attempt(_apply(field_name, lambda name: ("hint", name))),
    ),
    then=_second,
)
embed_parameters = seq(optional(embed_parameter), optional(embed_parameter), then=_join)
open_ahead = attempt(look_ahead(string("(")))


def relation_name(text: str, index: int) -> Result:
    """A field name other than `count`, which is the aggregate."""
    ok, ate, value, end, error = field_name(text, index)
    if ok and value == "count":
        return False, ate, None, index, error if error[1] else (end, ())
    return ok, ate, value, end, error


relation_select = lexeme(
    seq(
        alias,
        relation_name,
        embed_parameters,
        open_ahead,
        then=lambda other, name, params, _open: (other, name, params),
    )
)
spread_select = lexeme(
    seq(
        string("..."),
        field_name,
        embed_parameters,
        open_ahead,
        then=lambda _dots, name, params, _open: (None, name, params),
    )
)
select_end = alt(
    attempt(look_ahead(string(")"))), attempt(look_ahead(string(","))), attempt(end_of_input)
)
cast = optional(seq(string("::"), identifier, then=_second))
aggregation = alt(
    string("sum"), string("avg"), string("count"), attempt(string("max")), attempt(string("min"))
)
EVERYTHING: tuple[Any, ...] = ("field", ("*", []), None, None, None, None)
star_item = seq(string("*"), select_end, then=lambda *_: EVERYTHING)
count_item = seq(
    alias,
    string("count()"),
    cast,
    select_end,
    then=lambda name, _count, kind, _end: ("field", None, name, None, "count", kind),
)
plain_item = seq(
    alias,
    field,
    cast,
    optional(attempt(seq(char("."), aggregation, string("()"), then=_second))),
    cast,
    select_end,
    then=lambda name, fld, kind, agg, agg_cast, _end: ("field", fld, name, kind, agg, agg_cast),
)
field_select = lexeme(alt(attempt(star_item), attempt(count_item), plain_item))


def _embed(spread: bool) -> Any:
    def build(head: tuple[Any, str, tuple[Any, Any]], children: list[Any]) -> tuple[Any, ...]:
        given = [p for p in head[2] if p is not None]
        hint = next((v for k, v in given if k == "hint"), None)
        join = next((v for k, v in given if k == "join"), None)
        return "embed", head[1], head[0], hint, join, spread, children

    return build


@cache
def forest(depth: int) -> Parser:
    """Items of a select list, `depth` parentheses deep."""

    def inner(text: str, index: int) -> Result:
        if depth >= MAX_DEPTH:
            raise TooDeepError(index)
        return forest(depth + 1)(text, index)

    children = between(char("("), char(")"), inner)
    tree = alt(
        seq(attempt(spread_select), children, then=_embed(True)),
        seq(attempt(relation_select), children, then=_embed(False)),
        field_select,
    )
    comma = lexeme(char(","))
    whole = separated(tree, comma)
    further = many(seq(comma, tree, then=_second))

    def items(text: str, index: int) -> Result:
        # A comma behind an item settles it: no error before the comma survives, so plain columns
        # need no attempts.
        plain = PLAIN_COLUMNS.match(text, index)
        if plain is None:
            return whole(text, index)
        ok, _, rest, end, error = further(text, plain.end())
        if not ok:
            return False, True, None, end, error
        columns: list[Any] = [
            ("field", (name, []), None, None, None, None) for name in plain[0].split(",")
        ]
        return True, True, columns + rest, end, error

    return items


order_end = alt(attempt(look_ahead(char(","))), attempt(end_of_input))
direction = alt(
    attempt(seq(delimiter, string("asc"), then=_second)),
    attempt(seq(delimiter, string("desc"), then=_second)),
)
nulls = alt(
    attempt(seq(delimiter, string("nullsfirst"), then=_second)),
    attempt(seq(delimiter, string("nullslast"), then=_second)),
)
nulls_end = alt(seq(optional(nulls), order_end, then=_first), _apply(order_end, lambda _: None))
order_relation = seq(
    field_name, between(char("("), char(")"), field), optional(direction), nulls_end, then=_join
)
order_plain = seq(
    field,
    optional(direction),
    nulls_end,
    then=lambda fld, way, first: (None, fld, way, first),
)
order_list = separated1(lexeme(alt(attempt(order_relation), order_plain)), char(","))
column_list = separated1(field_name, lexeme(char(",")))
tree_path = seq(separated1(field_name, delimiter), optional(json_path, []), then=_join)
logic_path = separated1(field_name, delimiter)

quoted_alone = attempt(seq(quoted, not_followed_by(one(lambda c: c not in ",)")), then=_first))
bare_value = span(lambda c: c not in ",)")
list_element = alt(quoted_alone, bare_value)
list_value = seq(
    lexeme(char("(")),
    separated1(list_element, char(",")),
    lexeme(char(")")),
    then=lambda _left, items, _right: items,
)
truth_value = label(
    alt(*[attempt(any_case(word)) for word in TRUTH]),
    "isVal: (null, not_null, true, false, unknown)",
)
single_value = span(lambda c: True)
array_value = seq(
    string("{"), span(lambda c: c not in "{}"), string("}"), then=lambda a, b, c: a + b + c
)
logic_value = alt(quoted_alone, attempt(array_value), bare_value)


def operation(value: Parser) -> Parser:
    """op[(modifier)].value as (op, quantifier, config, value)."""

    def dotted(word: str) -> Parser:
        return attempt(seq(string(word), delimiter, then=_first))

    config = optional(attempt(between(char("("), char(")"), identifier)))
    unknown = "unknown single value operator"
    quantifier = optional(
        attempt(between(char("("), char(")"), alt(attempt(string("any")), string("all"))))
    )
    return label(
        alt(
            seq(dotted("in"), list_value, then=lambda op, v: ("in", None, None, v)),
            seq(dotted("is"), truth_value, then=lambda op, v: ("is", None, None, v)),
            seq(dotted("isdistinct"), value, then=lambda op, v: ("isdistinct", None, None, v)),
            attempt(
                seq(
                    alt(*literal_words(TEXT_SEARCH)),
                    config,
                    delimiter,
                    value,
                    then=lambda op, cfg, _dot, v: (op, None, cfg, v),
                )
            ),
            attempt(
                seq(
                    label(alt(*literal_words(SIMPLE)), unknown),
                    delimiter,
                    value,
                    then=lambda op, _dot, v: (op, None, None, v),
                )
            ),
            attempt(
                seq(
                    label(alt(*literal_words(QUANTIFIABLE)), unknown),
                    quantifier,
                    delimiter,
                    value,
                    then=lambda op, quant, _dot, v: (op, quant, None, v),
                )
            ),
        ),
        "operator (eq, gt, ...)",
    )


def operator_expression(value: Parser) -> Parser:
    negation = alt(attempt(seq(string("not"), delimiter, then=lambda *_: True)), pure(False))
    return seq(negation, operation(value), then=_join)


top_expression = operator_expression(single_value)
logic_expression = operator_expression(logic_value)
logic_filter = seq(
    field, delimiter, logic_expression, then=lambda fld, _dot, expr: ("filter", fld, expr)
)
logic_not = label(
    alt(attempt(seq(string("not"), delimiter, then=lambda *_: True)), pure(False)),
    "negation operator (not)",
)
logic_operator = label(alt(attempt(string("and")), string("or")), "logic operator (and, or)")


@cache
def logic_tree(depth: int) -> Parser:
    def inner(text: str, index: int) -> Result:
        if depth >= MAX_DEPTH:
            raise TooDeepError(index)
        return logic_tree(depth + 1)(text, index)

    return alt(
        attempt(logic_filter),
        seq(
            logic_not,
            logic_operator,
            lexeme(char("(")),
            separated1(inner, lexeme(char(","))),
            lexeme(char(")")),
            then=lambda negated, op, _left, items, _right: ("logic", negated, op, items),
        ),
    )


def argument(text: str, index: int) -> Result:
    return True, False, (None, text), index, (index, ())


expression_or_argument = alt(top_expression, argument)
# Parsers of values, which are read fast whatever their length.
LINEAR = (top_expression, expression_or_argument)


def run(parser: Parser, name: str, text: str) -> Any:
    """The parsed value, or ApiError PGRST100 in Parsec's words; `name` says what was parsed."""
    if len(text) > LONGEST and parser not in LINEAR:
        refuse(name, position(text, 0), f"longer than {LONGEST} characters and not in a usual form")
    try:
        ok, _, value, _, error = parser(text, 0)
    except TooDeepError as deep:
        refuse(name, position(text, deep.args[0]), f"nested deeper than {MAX_DEPTH} levels")
    if ok:
        return value
    return refuse(name, position(text, error[0]), describe(error))


def refuse(name: str, place: str, details: str) -> NoReturn:
    raise ApiError(400, "PGRST100", f'"{name}" {place}', details)
