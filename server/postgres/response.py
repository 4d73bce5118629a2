"""Outcome of a plan -> HTTP answer: status, headers and body as PostgREST gives them."""

from __future__ import annotations

import re
from urllib.parse import quote as percent_encode

import orjson

from ichicore.errors import ApiError
from server.base.http import Headers, Response
from server.postgres.execute import Outcome
from server.postgres.faults import HIGHEST_STATUS, LOWEST_STATUS, sendable
from server.postgres.plan import EXPLAIN, Plan
from server.postgres.spool import Spool

LEADING_DIGITS = re.compile(rb"\d+")


def content_range(lower: int, upper: int, total: int | None) -> str:
    """The Content-Range value of rows lower to upper."""
    rows = f"{lower}-{upper}" if lower <= upper and total != 0 else "*"
    return f"{rows}/{'*' if total is None else total}"


def range_status(lower: int, upper: int, total: int | None) -> int:
    """200, 206 for a part of the rows, 416 for a start beyond the last one."""
    if total is None:
        return 200
    if lower > total:
        return 416
    return 206 if upper - lower + 1 < total else 200


def out_of_bounds(offset: int, total: int | None) -> ApiError:
    """The error of an offset that is larger than the number of rows."""
    return ApiError(
        416,
        "PGRST103",
        "Requested range not satisfiable",
        details=f"An offset of {offset} was requested, but there are only {total or 0} rows.",
        headers=(("content-range", f"*/{total or 0}"),),
    )


def set_headers(text: bytes) -> Headers:
    """response.headers as SQL set it: a JSON array of objects with one member. PGRST111."""
    error = ApiError(
        500,
        "PGRST111",
        "response.headers guc must be a JSON array composed of objects with a single key and a "
        "string value",
    )
    try:
        told = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise error from None
    if not isinstance(told, list):
        raise error
    headers: Headers = []
    for entry in told:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise error
        for name, value in entry.items():
            if not isinstance(value, str):
                raise error
            headers.append((name.lower(), value))
    if not sendable(headers):
        raise error
    return headers


def set_status(text: bytes) -> int:
    """response.status as SQL set it. PGRST112 unless it is the status of a final answer."""
    found = LEADING_DIGITS.match(text)
    status = int(found.group()[:9]) if found else 0
    if not LOWEST_STATUS <= status <= HIGHEST_STATUS:
        raise ApiError(500, "PGRST112", "response.status guc must be a valid status code")
    return status


def _key_location(plan: Plan, keys: tuple[str | None, ...]) -> str:
    parts = [
        percent_encode(name, safe="-._~")
        + "="
        + ("is.null" if value is None else percent_encode("eq." + value, safe="-._~"))
        for name, value in zip(plan.keys, keys, strict=True)
    ]
    return f"{plan.path}?{'&'.join(parts)}"


def respond(
    plan: Plan, outcome: Outcome, *, offset: int, canonical: str, base_path: str
) -> Response:
    """The answer to a plan that ran. offset: of the page. canonical: query string as
    Content-Location shows it. base_path: where clients see the engine. Raises ApiError PGRST103,
    111 and 112."""
    headers: Headers = []
    body: bytes | Spool = b""
    typed = False
    status = 200
    if plan.result == EXPLAIN:
        explained = [("content-type", plan.media.content_type)]
        if plan.profile is not None:
            explained.append(("content-profile", plan.profile))
        return _answer(plan, 200, explained, outcome.body, None)
    if plan.action in ("read", "call"):
        upper = offset + outcome.rows - 1
        status = range_status(offset, upper, outcome.total)
        if status == 416:
            raise out_of_bounds(offset, outcome.total)
        headers.append(("content-range", content_range(offset, upper, outcome.total)))
        if plan.action == "read":
            location = base_path + plan.path
            if canonical:
                location += f"?{canonical}"
            headers.append(("content-location", location))
        typed, body = True, b"" if plan.head else outcome.body
        if plan.void:
            status, typed, body = 204, False, b""
    else:
        status, typed = _written(plan, outcome, headers, base_path)
        if typed:
            body = outcome.body
    if typed:
        headers.append(("content-type", plan.media.content_type))
        if plan.profile is not None:
            headers.append(("content-profile", plan.profile))
    if plan.applied is not None:
        headers.append(("preference-applied", plan.applied))
    return _answer(plan, status, headers, body, outcome)


def _written(plan: Plan, outcome: Outcome, headers: Headers, base_path: str) -> tuple[int, bool]:
    """Status of a write, and whether the changed rows are sent."""
    full = plan.preferences.representation == "representation"
    total = outcome.rows if plan.counted else None
    if plan.action == "insert":
        if outcome.keys is not None:
            headers.append(("location", base_path + _key_location(plan, outcome.keys)))
        headers.append(("content-range", content_range(1, 0, total)))
        merged = plan.preferences.resolution == "merge-duplicates" and outcome.inserted <= 0
        return (200 if merged else 201), full
    if plan.action == "put":
        created = outcome.inserted > 0
        return (201 if created else 200) if full else 204, full
    if plan.action == "update":
        headers.append(("content-range", content_range(0, outcome.rows - 1, total)))
    else:
        headers.append(("content-range", content_range(1, 0, total)))
    return (200 if full else 204), full


def _answer(
    plan: Plan, status: int, headers: Headers, body: bytes | Spool, outcome: Outcome | None
) -> Response:
    if outcome is not None:
        if outcome.status is not None:
            status = set_status(outcome.status)
        if outcome.headers is not None:
            own = set_headers(outcome.headers)
            taken = {name for name, _ in own}
            headers = [h for h in headers if h[0] not in taken] + own
    if isinstance(body, Spool):
        headers.append(("content-length", str(len(body))))
        return Response(status, headers, stream=body)
    return Response(status, headers, body)
