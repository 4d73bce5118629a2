from typing import Any

from ichicore.rules.context import Context

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
        partial: int = 0,
    ) -> bool:
        """Whether it holds; False when a variable does not resolve. partial: 1 when names that the
        document lacks may stand for values that are not known, 2 the same of `old`, 3 both; then it
        holds only when it does whatever those values are."""

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
    def test(
        self, document: dict[str, Any], old: dict[str, Any] | None = None, partial: int = 0
    ) -> bool: ...
    def test_raw(self, document: bytes) -> bool:
        """The same for the bytes of a BSON document."""

    def equality_terms(self) -> dict[str, Any]:
        """Top-level ANDed equalities with their values: what an upsert inserts."""
