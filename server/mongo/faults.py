"""What a document server's errors mean to a client."""

from __future__ import annotations

import re
from typing import Any

from ichicore.errors import ApiError

# The server takes no writes, or is about to end: another one does, or will.
NOT_PRIMARY = frozenset({10107, 13435, 13436, 11602, 11600, 189, 91})
TIMED_OUT = frozenset({50, 262})
DUPLICATE = frozenset({11000, 11001, 12582})
TRANSIENT = frozenset({112, 251, 246, 267})  # of transactions that met another one
TOO_LARGE = frozenset({10334, 17419, 17420, 17280, 10003, 51191, 13548})
REFUSED_LOGIN = frozenset({13, 18, 11})
# Codes of values and commands that the server cannot make sense of.
BAD = {
    2: "bad_request", 9: "bad_request", 14: "bad_request", 15: "bad_request", 16: "bad_request",
    28: "bad_request", 40: "bad_request", 52: "bad_request", 54: "bad_request",
    55: "bad_request", 56: "bad_request", 57: "bad_request", 58: "bad_request",
    66: "bad_request", 73: "invalid_collection", 168: "operator_not_allowed",
    292: "memory_limit",
}  # fmt: skip
_DUPLICATE_INDEX = re.compile(r"index:\s*([\w.$-]{1,128})")


class DriverError(Exception):
    """An error document of the server. Not for clients: `refusal` says what they are told."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(str(document.get("errmsg", "the server refused")))
        self.code = int(document.get("code", 0) or 0)
        self.document = document
        self.labels = tuple(document.get("errorLabels", ()))


def away(detail: str = "The project's documents do not answer.") -> ApiError:
    return ApiError(503, "unavailable", detail, headers=(("retry-after", "1"),))


def timed_out() -> ApiError:
    return ApiError(504, "timeout", "The operation took longer than it may.")


def duplicate(text: str) -> ApiError:
    found = _DUPLICATE_INDEX.search(text)
    name = found[1] if found else "_id_"
    return ApiError(409, "duplicate_key", f"A document with this value of {name} exists already.")


def of_code(code: int, text: str) -> ApiError:
    """What a server's error code means; the text of a refused value is passed on, cut."""
    if code in DUPLICATE:
        return duplicate(text)
    if code in TIMED_OUT:
        return timed_out()
    if code == 121:
        return ApiError(
            400, "schema_violation", "The document does not fit the collection's schema."
        )
    if code in TOO_LARGE:
        return ApiError(413, "doc_too_large", "The document would become too large.")
    if code in NOT_PRIMARY or code in REFUSED_LOGIN:
        return away()
    if code in TRANSIENT:
        return ApiError(
            409, "write_conflict", "Another write changed the same documents; try again.",
            headers=(("retry-after", "1"),),
        )  # fmt: skip
    if code in (292, 146, 39):
        return ApiError(400, "memory_limit", "The operation needs more memory than it may use.")
    if code == 14031:
        return ApiError(507, "quota_exceeded", "The server has no room for more data.")
    return ApiError(400, BAD.get(code, "bad_request"), _cut(text))


def _cut(text: str) -> str:
    """One line of the server's text: it names the client's own values, nothing of the server."""
    line = " ".join(text.split())
    line = re.sub(r"\bichi_[a-z0-9]{12}\.", "", line)
    return (line[:300] or "The server refused the operation.").rstrip(".") + "."


def refusal(error: Exception) -> ApiError | None:
    """The coded answer to what the driver raises; None for what is no error of the server."""
    from pymongo import errors

    if isinstance(error, DriverError):
        return of_code(error.code, str(error))
    if isinstance(error, errors.ExecutionTimeout | errors.NetworkTimeout | errors.WTimeoutError):
        return timed_out()
    if isinstance(error, errors.OperationFailure):
        return of_code(error.code or 0, str((error.details or {}).get("errmsg", error)))
    if isinstance(error, errors.DocumentTooLarge):
        return ApiError(413, "doc_too_large", "The document is too large.")
    if isinstance(error, errors.InvalidOperation | errors.InvalidDocument | errors.InvalidName):
        return ApiError(400, "bad_request", _cut(str(error)))
    if isinstance(error, errors.ConnectionFailure | errors.PyMongoError | OSError):
        return away()
    return None
