"""Regular expressions whose cost is bounded.

Evaluated here by RE2: time is linear in the text, memory is bounded. What is sent to a database
server is run by that server's own backtracking engine, so patterns that make one exponential are
refused as well: repeats, options and alternatives within repeats, back references, look-around,
more than three repeats without a bound, and long rows of options or alternatives. What is left
takes at most time that grows with a power (up to the fourth) of the length of the text.
"""

from __future__ import annotations

import re
import re._constants as codes
import re._parser as parser
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2

MOST_PATTERN = 256
MOST_UNBOUNDED = 3
MOST_COUNT = 256
MOST_WAYS = 1024
OPTIONS = frozenset("imsx")
_LOOK = {codes.ASSERT, codes.ASSERT_NOT, codes.GROUPREF, codes.GROUPREF_EXISTS}
_REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}
_MEMORY = 1 << 20


class PatternError(ValueError):
    """A pattern that is not one, or that may cost too much."""


class Pattern:
    """A compiled pattern; calling it says whether a text contains a match."""

    __slots__ = ("_search", "options", "text")

    def __init__(self, text: str, options: str, search: Any) -> None:
        self.text = text
        self.options = options
        self._search = search

    def __call__(self, value: str) -> bool:
        try:
            return self._search(value) is not None
        except (re2.error, UnicodeError):  # a lone surrogate
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and (self.text, self.options) == (
            other.text,
            other.options,
        )

    def __hash__(self) -> int:
        return hash((self.text, self.options))


def quote(text: str) -> str:
    """A text as a pattern that matches just it."""
    return re.escape(text)


@lru_cache(maxsize=1024)
def check_pattern(text: str, options: str = "") -> None:
    """PatternError unless a backtracking engine runs it in polynomial time of a low degree."""
    if len(text) > MOST_PATTERN:
        raise PatternError(f"a pattern longer than {MOST_PATTERN} characters")
    if "\0" in text:
        raise PatternError("a pattern with a NUL character")
    if not set(options) <= OPTIONS:
        raise PatternError("options other than i, m, s and x")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = parser.parse(text, _flags(options))
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise PatternError(f"not a pattern: {error}") from None
    if _cost(tree, False)[0] > MOST_UNBOUNDED:
        raise PatternError(f"more than {MOST_UNBOUNDED} repeats without a bound")


@lru_cache(maxsize=1024)
def compile_pattern(text: str, options: str = "") -> Pattern:
    """PatternError for what check_pattern or RE2 refuse."""
    check_pattern(text, options)
    settings = re2.Options()
    settings.max_mem = _MEMORY
    settings.log_errors = False
    flags = "".join(sorted(set(options) - {"x"}))
    source = text if "x" not in options else _without_blanks(text)
    try:
        found = re2.compile(f"(?{flags}){source}" if flags else source, settings)
    except re2.error as error:
        reason = error.args[0] if error.args else "refused"
        if isinstance(reason, bytes):
            reason = reason.decode("utf-8", "replace")
        raise PatternError(f"not a pattern: {reason}") from None
    return Pattern(text, options, found.search)


def _flags(options: str) -> int:
    flags = 0
    for letter in options:
        flags |= int(getattr(re, letter.upper()))
    return flags


def _without_blanks(text: str) -> str:
    """A pattern of option x without the blanks and comments that it allows."""
    kept = []
    in_class = escaped = False
    at = 0
    while at < len(text):
        char = text[at]
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char.isspace():
            at += 1
            continue
        elif char == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        kept.append(char)
        at += 1
    return "".join(kept)


def _cost(tree: Iterable[Any], repeated: bool) -> tuple[int, int]:
    """Of a parsed pattern, how many repeats without a bound it has, and in how many ways the rest
    of it can be tried at one place. `repeated`: within a repeat."""
    unbounded, ways = 0, 1
    for operation, argument in tree:
        inner, choices = 0, 1
        if operation in _LOOK:
            raise PatternError("back references and look-around are not allowed")
        if operation in _REPEATS:
            low, high, body = argument
            endless = high is parser.MAXREPEAT
            if low > MOST_COUNT or (high > MOST_COUNT and not endless):
                raise PatternError(f"a repeat of more than {MOST_COUNT}")
            if repeated and high > 1:
                raise PatternError("a repeat within a repeat")
            if repeated and low != high:
                raise PatternError("an optional part within a repeat")
            inner, choices = _cost(body, repeated or high > 1)
            if endless:
                inner += 1
            else:
                choices = choices + 1 if high <= 1 and low == 0 else choices * (high - low + 1)
        elif operation is codes.BRANCH:
            if repeated:
                raise PatternError("alternatives within a repeat")
            found = [_cost(branch, repeated) for branch in argument[1]]
            inner, choices = max(one for one, _ in found), sum(many for _, many in found)
        elif operation is codes.SUBPATTERN:
            inner, choices = _cost(argument[3], repeated)
        elif operation is codes.ATOMIC_GROUP:
            inner, choices = _cost(argument, repeated)
        unbounded += inner
        ways *= choices
        if ways > MOST_WAYS:
            raise PatternError("too many optional parts, repeats or alternatives after each other")
    return unbounded, ways
