from datetime import datetime
from typing import Any

class Context:
    """Who asks. uid, email: None or "" when there is none. claims: of the verified token. now: an
    aware datetime, epoch seconds, or None when no rule may use it. timed: something has looked at
    it."""

    role: str
    uid: str | None
    email: str | None
    claims: dict[str, Any]
    now: datetime | None
    timed: bool
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
