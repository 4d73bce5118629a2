"""The page a request asks for: limit, offset and the Range header together."""

from __future__ import annotations

import re

from ichicore.errors import ApiError
from ichicore.rest.ast import Query

RANGE = re.compile(r"(\d+)-(\d*)")
LONGEST = 18  # digits that surely fit a bigint


def is_range(header: str) -> bool:
    """Whether a Range header names rows; others are ignored."""
    return RANGE.fullmatch(header) is not None


def _refuse(details: str) -> ApiError:
    return ApiError(416, "PGRST103", "Requested range not satisfiable", details=details)


def _number(digits: bytes) -> int:
    if len(digits) > LONGEST:
        text = digits[:40].decode(errors="replace")
        raise ApiError(400, "22003", f'value "{text}" is out of range for type bigint')
    return int(digits)


def page(
    values: list[bytes], limit_slot: int, offset_slot: int, header: str | None, cap: int | None
) -> tuple[int | None, int]:
    """(limit or None, offset) of the top level.

    values: of the query string; the slots index them, -1 when not given. header: Range of a GET.
    cap: most rows of any answer. Raises ApiError 416 PGRST103.
    """
    limit = _number(values[limit_slot]) if limit_slot >= 0 else None
    lower = max(_number(values[offset_slot]), 0) if offset_slot >= 0 else 0
    if limit == 0:
        return 0, 0
    if limit is not None and limit < 0:
        raise _refuse("Limit should be greater than or equal to zero.")
    upper = None if limit is None else lower + limit - 1
    found = RANGE.fullmatch(header) if header is not None else None
    if found is not None:
        first = _number(found[1].encode())
        last = _number(found[2].encode()) if found[2] else None
        if last is not None and first > last:
            raise _refuse(
                "The lower boundary must be lower than or equal to the upper boundary in the "
                "Range header."
            )
        lower = max(lower, first)
        if last is not None:
            upper = last if upper is None else min(upper, last)
        if upper is not None and upper < lower:
            raise _refuse("Limit should be greater than or equal to zero.")
    if cap is not None:
        upper = lower + cap - 1 if upper is None else min(upper, lower + cap - 1)
    return (None if upper is None else upper - lower + 1), lower


def check_top(method: str, query: Query, header: str | None) -> None:
    """Refuse a range before anything is looked up. Raises ApiError PGRST103 and PGRST114."""
    slots = query.limit_slots.get(())
    if method == "PUT":
        if slots is not None:
            raise ApiError(
                400, "PGRST114", "limit/offset querystring parameters are not allowed for PUT"
            )
        return
    limit, offset = slots or (-1, -1)
    page(
        [value.encode() for value in query.values],
        limit,
        offset,
        header if method == "GET" else None,
        None,
    )
