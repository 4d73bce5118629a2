from datetime import datetime
from typing import Any

class Context:
    """Who asks. uid, email: None or "" when there is none. claims: of the verified token. now: an
    aware datetime, epoch seconds, or None when no rule may use it."""

    role: str
    uid: str | None
    email: str | None
    claims: dict[str, Any]
    now: datetime | None
    def __init__(
        self,
        role: str = "anon",
        uid: str | None = None,
        email: str | None = None,
        claims: dict[str, Any] | None = None,
        now: datetime | float | None = None,
    ) -> None: ...
    def value(self, name: str) -> object:
        """The value of a variable such as "auth.uid", or None."""

class Match:
    """A compiled match expression; immutable, for any number of identities and documents."""

    source: object
    variables: tuple[str, ...]
    """Names of the identity that the expression needs, sorted, such as ("auth.uid",)."""
    paths: tuple[str, ...]
    """Document paths that it reads, sorted; those of `old` as "old.<path>"."""
    uses_old: bool
    def test(
        self,
        document: dict[str, Any] | None,
        identity: Context,
        old: dict[str, Any] | None = None,
        request: dict[str, str] | None = None,
    ) -> bool:
        """Whether it holds; False when a variable does not resolve."""

    def bind(self, identity: Context, request: dict[str, str] | None = None) -> Bound | None:
        """The expression for one identity; None when a variable does not resolve: deny."""

    def equalities(self) -> tuple[tuple[str, str], ...]:
        """Top-level ANDed equalities with one variable, as (document path, variable name)."""

    def index(self) -> tuple[tuple[str, str], ...] | None:
        """Equalities with a variable of which at least one must hold for the expression to hold
        (one branch of an `$or` each), or None when there is no such set. Values in arrays match
        too, so a document has as many keys as the array has elements, and the array itself."""

class Bound:
    """A match expression for one identity."""

    match: Match
    key: tuple[object, ...]
    """Hashable; equal for two identities for which the expression means the same."""
    filter: dict[str, Any]
    """As a plain MongoDB filter; values of the identity stand in `$eq` where they could be read as
    operators."""
    bson: bytes
    """The same as a BSON document."""
    def test(self, document: dict[str, Any], old: dict[str, Any] | None = None) -> bool: ...
    def test_raw(self, document: bytes) -> bool:
        """The same for the bytes of a BSON document."""

    def equality_terms(self) -> dict[str, Any]:
        """Top-level ANDed equalities with their values: what an upsert inserts."""

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
