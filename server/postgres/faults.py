"""Errors of the database and of this engine -> HTTP answers with PostgREST's codes and statuses."""

from __future__ import annotations

import re

import msgspec
import orjson

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from server.base.http import Headers, Response

ERROR_TYPE = ("content-type", "application/json; charset=utf-8")
LOWEST_STATUS, HIGHEST_STATUS = 200, 599  # of a final answer; what SQL may set
RETRY_AFTER = "1"  # seconds

# SQLSTATE, whole or its class, to status; the longest match wins, 400 is the default.
STATUSES = {
    "08": 503,
    "09": 500,
    "0L": 403,
    "0P": 403,
    "21000": 500,
    "22023": 400,
    "23503": 409,
    "23505": 409,
    "25": 500,
    "25006": 405,
    "28": 403,
    "2D": 500,
    "38": 500,
    "39": 500,
    "3B": 500,
    "40": 500,
    "42883": 404,
    "42P01": 404,
    "42P17": 500,
    "53": 503,
    "53400": 500,
    "54": 500,
    "55": 500,
    "57": 500,
    "57P01": 503,
    "58": 500,
    "F0": 500,
    "HV": 500,
    "P0": 500,
    "P0001": 400,
    "XX": 500,
}


class RaisedMessage(msgspec.Struct):
    """MESSAGE of a `RAISE SQLSTATE 'PGRST'`."""

    code: str
    message: str
    details: str | None = None
    hint: str | None = None


class RaisedDetail(msgspec.Struct):
    """DETAIL of a `RAISE SQLSTATE 'PGRST'`."""

    status: int
    headers: dict[str, str]
    status_text: str | None = None


def error_body(
    code: str, message: str, details: object, hint: object, *, minimal: bool = False
) -> bytes:
    """The JSON of an error. minimal: without what may tell of the database's inside."""
    if minimal:
        return orjson.dumps({"code": code, "message": message})
    return orjson.dumps({"code": code, "details": details, "hint": hint, "message": message})


def _answer(
    status: int,
    code: str,
    message: str,
    details: object,
    hint: object,
    headers: Headers,
    minimal: bool,
) -> Response:
    body = error_body(code, message, details, hint, minimal=minimal)
    first = [ERROR_TYPE, ("proxy-status", f"PostgREST; error={code}")]
    if status == 503:
        first.append(("retry-after", RETRY_AFTER))
    return Response(status, [*first, *headers], body)


def api_error(error: ApiError, *, minimal: bool = False) -> Response:
    """The answer to an error that this engine found itself."""
    return _answer(
        error.status,
        error.code,
        error.message,
        error.details,
        error.hint,
        list(error.headers),
        minimal,
    )


def sqlstate_status(sqlstate: str, message: str, *, authenticated: bool) -> int:
    """HTTP status of an SQLSTATE. authenticated: the role is not the anonymous one."""
    if sqlstate == "42501":
        return 403 if authenticated else 401
    if sqlstate == "21000" and message.endswith("requires a WHERE clause"):
        return 400  # pg-safeupdate
    if sqlstate == "22023" and message.startswith("role") and message.endswith("does not exist"):
        return 401
    if sqlstate == "42883" and message.startswith("function xmlagg("):
        return 406
    if sqlstate.startswith("PT"):
        status = int(sqlstate[2:]) if re.fullmatch(r"\d{3}", sqlstate[2:]) else 500
        return status if LOWEST_STATUS <= status <= HIGHEST_STATUS else 500
    return STATUSES.get(sqlstate) or STATUSES.get(sqlstate[:2]) or 400


def _raised(error: PgError, minimal: bool) -> Response:
    """`RAISE SQLSTATE 'PGRST'`: the function decides the whole answer."""

    def refuse(details: str, hint: str) -> Response:
        return api_error(
            ApiError(
                500,
                "PGRST121",
                "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error",
                details=details,
                hint=hint,
            ),
            minimal=minimal,
        )

    detail_hint = (
        "DETAIL must be a JSON object with obligatory keys: 'status', 'headers' and optional "
        "key: 'status_text'."
    )
    try:
        told = msgspec.json.decode(error.message, type=RaisedMessage)
    except (msgspec.DecodeError, UnicodeError):
        return refuse(
            f"Invalid JSON value for MESSAGE: '{error.message}'",
            "MESSAGE must be a JSON object with obligatory keys: 'code', 'message' and optional "
            "keys: 'details', 'hint'.",
        )
    if error.detail is None:
        return refuse("DETAIL is missing in the RAISE statement", detail_hint)
    try:
        detail = msgspec.json.decode(error.detail, type=RaisedDetail)
    except (msgspec.DecodeError, UnicodeError):
        return refuse(f"Invalid JSON value for DETAIL: '{error.detail}'", detail_hint)
    headers = [(name.lower(), value) for name, value in detail.headers.items()]
    if not LOWEST_STATUS <= detail.status <= HIGHEST_STATUS or not sendable(headers):
        return refuse(f"Invalid JSON value for DETAIL: '{error.detail}'", detail_hint)
    body = error_body(told.code, told.message, told.details, told.hint, minimal=minimal)
    return Response(
        detail.status,
        [ERROR_TYPE, ("proxy-status", f"PostgREST; error={told.code}"), *headers],
        body,
    )


TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def sendable(headers: Headers) -> bool:
    """Whether SQL-made headers can be sent: names are tokens, values hold no control characters."""
    return all(
        TOKEN.fullmatch(name)
        and not any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in value)
        and value.isascii()
        for name, value in headers
    )


def database_error(error: PgError, *, authenticated: bool, minimal: bool = False) -> Response:
    """The answer to an error that Postgres raised."""
    if error.sqlstate == "PGRST":
        return _raised(error, minimal)
    status = sqlstate_status(error.sqlstate, error.message, authenticated=authenticated)
    headers: Headers = [("www-authenticate", "Bearer")] if status == 401 else []
    return _answer(
        status, error.sqlstate, error.message, error.detail, error.hint, headers, minimal
    )


def pool_error(error: Exception, *, minimal: bool = False, busy: int = 504) -> Response:
    """The answer when the database could not be asked, or did not answer in time. busy: the status
    where no connection came free."""
    if isinstance(error, PoolTimeout):
        return _answer(
            busy,
            "PGRST003",
            "Timed out acquiring connection from connection pool.",
            None,
            None,
            [],
            minimal,
        )
    if isinstance(error, StatementTimeout):
        return _answer(
            500,
            "57014",
            "canceling statement due to statement timeout",
            None,
            None,
            [],
            minimal,
        )
    return _answer(
        503, "PGRST001", "Database client error. Retrying the connection.", None, None, [], minimal
    )


POOL_ERRORS = (PgUnavailable, PoolTimeout, StatementTimeout)
