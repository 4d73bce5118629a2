"""What can go wrong between a statement and its result."""

from __future__ import annotations


class PgError(Exception):
    """The server refused a statement; the whole group was rolled back.

    sqlstate: five characters. severity: ERROR or FATAL. message, detail, hint, context: as the
    server wrote them, None when absent. statement: index in the group of the one that failed.
    """

    def __init__(
        self,
        sqlstate: str,
        severity: str,
        message: str,
        detail: str | None = None,
        hint: str | None = None,
        context: str | None = None,
        statement: int = 0,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.severity = severity
        self.message = message
        self.detail = detail
        self.hint = hint
        self.context = context
        self.statement = statement

    def __str__(self) -> str:
        return f"{self.sqlstate}: {self.message}"


class PgUnavailable(Exception):
    """The server cannot be reached, or was lost while the group ran: whether it was committed is
    then unknown. retry_after: seconds after which trying again may help."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PoolTimeout(Exception):
    """No connection became free in time; nothing was executed."""


class StatementTimeout(Exception):
    """The group did not finish in time and is being cancelled."""
