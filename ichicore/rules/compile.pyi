from typing import Any

from ichicore.rules.match import Match

ALWAYS: Match
NEVER: Match

def compile_into(
    errors: list[tuple[str, str]],
    expression: object,
    path: str,
    *,
    roots: tuple[str, ...] = (),
    default: str | None = "record",
    interpolate: bool = True,
    loose: bool = False,
    lenient: bool = False,
) -> Match | None:
    """As compile_match, but adds the mistakes to `errors` and gives None then. lenient: a variable
    that does not resolve equals nothing, instead of refusing all."""

def compile_values(
    errors: list[tuple[str, str]], source: dict[str, Any], path: str, *, interpolate: bool = True
) -> Match | None:
    """An object of paths and values as a Match whose bound `filter` is that object with the values
    of an identity: what `set` writes."""

def compile_match(
    expression: object,
    path: str = "filter",
    *,
    roots: tuple[str, ...] = (),
    default: str | None = "record",
    interpolate: bool = True,
    loose: bool = False,
) -> Match:
    """Compiles a match expression (decoded JSON).

    path: how messages name the expression. roots: prefixes that paths may begin with, of "auth",
    "request", "record", "old". default: the root of other paths, None refuses them. interpolate:
    whether strings may name variables; else they are taken as they are. loose: numbers and strings
    compare with each other by value ("12" and 12), as the records of Postgres need.
    RuleError with the path of every mistake.
    """
