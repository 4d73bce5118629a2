"""The error that every layer raises: a status, a code and a text that a client may read.

Two body shapes leave the server: the project's own services answer {"code","detail"}, the
Postgres REST engine answers {"code","details","hint","message"}. `ApiError` carries what either
needs; the place that sends the answer chooses the shape.
"""

from __future__ import annotations


class ApiError(Exception):
    """A request that cannot be served, told to the client.

    status: HTTP status, 100 to 599. code: stable machine-readable code. message: one sentence for
    a person. details, hint: more of the same, or None. headers: extra response headers as
    (lower-case name, value) pairs.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: object = None,
        hint: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.hint = hint
        self.headers = headers
