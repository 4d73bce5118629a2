"""Parser combinators that word their errors as Haskell's Parsec does.

PostgREST clients see Parsec's texts ("unexpected ... expecting ... or ..."), so the failure path
follows Parsec's rules for which error survives: every parser answers with an error even when it
succeeds, errors at the same place add up, the farthest place wins. Only failing requests come
here; the compiled parser serves the rest.

A parser is a function (text, index) -> (ok, consumed, value, index, error), where error is
(index, messages) and a message is (kind, text).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Error = tuple[int, tuple[tuple[int, str], ...]]
Result = tuple[bool, bool, Any, int, Error]
Parser = Callable[[str, int], Result]

SYSTEM_UNEXPECTED = 0
UNEXPECTED = 1
EXPECT = 2

CONTROL_NAMES = [
    "NUL",
    "SOH",
    "STX",
    "ETX",
    "EOT",
    "ENQ",
    "ACK",
    "a",
    "b",
    "t",
    "n",
    "v",
    "f",
    "r",
    "SO",
    "SI",
    "DLE",
    "DC1",
    "DC2",
    "DC3",
    "DC4",
    "NAK",
    "SYN",
    "ETB",
    "CAN",
    "EM",
    "SUB",
    "ESC",
    "FS",
    "GS",
    "RS",
    "US",
]


def show_char(char: str) -> str:
    """One character as Haskell prints it inside a literal, quotes left alone."""
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if code < 32:
        return "\\" + CONTROL_NAMES[code]
    if code == 127:
        return "\\DEL"
    return char if code < 127 else f"\\{code}"


def show_text(text: str) -> str:
    """A short text as a Haskell string literal."""
    return '"' + "".join('\\"' if c == '"' else show_char(c) for c in text) + '"'


def show_single(char: str) -> str:
    """A character as a Haskell character literal."""
    return "'\\''" if char == "'" else f"'{show_char(char)}'"


def merge(first: Error, second: Error) -> Error:
    """The error that remains of two: a meaningful one before an empty one, then the farther."""
    if first[1] and not second[1]:
        return first
    if second[1] and not first[1]:
        return second
    if first[0] == second[0]:
        return first[0], first[1] + second[1]
    return first if first[0] > second[0] else second


def expecting(error: Error, label: str) -> Error:
    kept = tuple(m for m in error[1] if m[0] != EXPECT)
    return error[0], ((EXPECT, label), *kept)


def unexpected_at(text: str, index: int) -> Error:
    shown = show_text(text[index]) if index < len(text) else ""
    return index, ((SYSTEM_UNEXPECTED, shown),)


def seq(*parsers: Parser, then: Callable[..., Any]) -> Parser:
    """All in turn; the value is then(*values)."""

    def run(text: str, index: int) -> Result:
        consumed = False
        error: Error = (index, ())
        values = []
        for parser in parsers:
            ok, ate, value, end, found = parser(text, index)
            if ate:
                consumed, error = True, found
            else:
                error = merge(error, found) if error[1] else found
            if not ok:
                return False, consumed, None, index, error
            values.append(value)
            index = end
        return True, consumed, then(*values), index, error

    return run


def alt(*parsers: Parser) -> Parser:
    """The first that succeeds or consumes."""

    def run(text: str, index: int) -> Result:
        error: Error = (index, ())
        for number, parser in enumerate(parsers):
            ok, ate, value, end, found = parser(text, index)
            if ate:
                return ok, ate, value, end, found
            error = merge(error, found) if number else found
            if ok:
                return True, False, value, end, error
        return False, False, None, index, error

    return run


def attempt(parser: Parser) -> Parser:
    """Failing after consumption counts as not having consumed."""

    def run(text: str, index: int) -> Result:
        ok, ate, value, end, error = parser(text, index)
        return (True, ate, value, end, error) if ok else (False, False, None, index, error)

    return run


def look_ahead(parser: Parser) -> Parser:
    def run(text: str, index: int) -> Result:
        ok, ate, value, _, error = parser(text, index)
        if ok:
            return True, False, value, index, (index, ())
        return False, ate, None, index, error

    return run


def label(parser: Parser, name: str) -> Parser:
    """Name what was expected, unless the parser consumed."""

    def run(text: str, index: int) -> Result:
        ok, ate, value, end, error = parser(text, index)
        if not ate and (not ok or error[1]):
            error = expecting(error, name)
        return ok, ate, value, end, error

    return run


def pure(value: Any) -> Parser:
    return lambda text, index: (True, False, value, index, (index, ()))


def one(accept: Callable[[str], bool]) -> Parser:
    """One character that `accept` likes."""

    def run(text: str, index: int) -> Result:
        if index < len(text) and accept(text[index]):
            return True, True, text[index], index + 1, (index + 1, ())
        return False, False, None, index, unexpected_at(text, index)

    return run


def char(wanted: str) -> Parser:
    return label(one(lambda c: c == wanted), show_text(wanted))


def string(wanted: str) -> Parser:
    """The text; the error names the first character that differs, at the text's beginning."""
    shown = show_text(wanted)

    def run(text: str, index: int) -> Result:
        for offset, letter in enumerate(wanted):
            if index + offset >= len(text):
                error = expecting((index, ((SYSTEM_UNEXPECTED, ""),)), shown)
                return False, offset > 0, None, index, error
            if text[index + offset] != letter:
                found = show_text(text[index + offset])
                error = expecting((index, ((SYSTEM_UNEXPECTED, found),)), shown)
                return False, offset > 0, None, index, error
        end = index + len(wanted)
        return True, True, wanted, end, (end, ())

    return run


def span(accept: Callable[[str], bool], labels: tuple[str, ...] = (), least: int = 0) -> Parser:
    """Characters as long as they please; `labels` name what else could have followed."""
    expects = tuple((EXPECT, name) for name in labels)

    def run(text: str, index: int) -> Result:
        end = index
        while end < len(text) and accept(text[end]):
            end += 1
        place, messages = unexpected_at(text, end)
        error = (place, messages + expects)
        if end - index < least:
            return False, end > index, None, index, error
        return True, end > index, text[index:end], end, error

    return run


def many(parser: Parser) -> Parser:
    def run(text: str, index: int) -> Result:
        values: list[Any] = []
        while True:
            ok, ate, value, end, error = parser(text, index)
            if not ok:
                if ate:
                    return False, True, None, index, error
                return True, bool(values), values, index, error
            values.append(value)
            index = end

    return run


def optional(parser: Parser, default: Any = None) -> Parser:
    return alt(parser, pure(default))


def between(left: Parser, right: Parser, parser: Parser) -> Parser:
    return seq(left, parser, right, then=lambda _left, value, _right: value)


def separated1(parser: Parser, separator: Parser) -> Parser:
    following = seq(separator, parser, then=lambda _mark, value: value)
    return seq(parser, many(following), then=lambda first, rest: [first, *rest])


def separated(parser: Parser, separator: Parser) -> Parser:
    return optional(separated1(parser, separator), [])


def not_followed_by(parser: Parser) -> Parser:
    """Fails, naming the character, where `parser` would succeed."""

    def refuse(text: str, index: int) -> Result:
        ok, ate, value, end, error = parser(text, index)
        if not ok:
            return True, False, None, index, error
        found: Error = (end, ((UNEXPECTED, show_single(value)),))
        return False, ate, None, index, found

    return attempt(refuse)


def end_of_input(text: str, index: int) -> Result:
    if index < len(text):
        messages = ((EXPECT, "end of input"), (UNEXPECTED, show_single(text[index])))
        return False, False, None, index, (index, messages)
    messages = ((EXPECT, "end of input"), (SYSTEM_UNEXPECTED, ""))
    return True, False, None, index, (index, messages)


def position(text: str, index: int) -> str:
    """Parsec's words for a place; tab stops are eight apart."""
    line = column = 1
    for letter in text[:index]:
        if letter == "\n":
            line, column = line + 1, 1
        elif letter == "\t":
            column += 8 - (column - 1) % 8
        else:
            column += 1
    return f"(line {line}, column {column})"


def joined(prefix: str, texts: list[str]) -> list[str]:
    unique = list(dict.fromkeys(text for text in texts if text))
    if not unique:
        return []
    listed = ", ".join(unique[:-1])
    return [prefix + " " + (f"{listed} or {unique[-1]}" if listed else unique[0])]


def describe(error: Error) -> str:
    """Parsec's sentence for an error, on one line."""
    if not error[1]:
        return "unknown parse error"
    by_kind: list[list[str]] = [[], [], []]
    for kind, text in error[1]:
        by_kind[kind].append(text)
    system, unexpected, expected = by_kind
    parts: list[str] = []
    if system and not unexpected:
        parts.append(f"unexpected {system[0] or 'end of input'}")
    parts += joined("unexpected", unexpected)
    parts += joined("expecting", expected)
    return " ".join(dict.fromkeys(parts))
