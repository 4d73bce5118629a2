"""What is wrong with rules, and where."""

from __future__ import annotations


class RuleError(ValueError):
    """Rules that cannot be used.

    errors: every mistake as (path, message), such as
    ("rules.collections.notes.read.filter.$foo", "unknown operator"). path, message: of the first.
    The text has one "path: message" a line.
    """

    def __init__(self, path: str, message: str, more: tuple[tuple[str, str], ...] = ()) -> None:
        self.path = path
        self.message = message
        self.errors = ((path, message), *more)
        super().__init__("\n".join(f"{where}: {what}" for where, what in self.errors))

    @classmethod
    def of(cls, errors: list[tuple[str, str]]) -> RuleError:
        """One error of at least one mistake."""
        (path, message), *more = errors
        return cls(path, message, tuple(more))
