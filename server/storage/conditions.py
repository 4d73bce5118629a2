"""Preconditions and ranges of a read, by RFC 9110: what is to be sent of a file."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from ichicore.errors import ApiError

MAX_RANGES = 16
MAX_HEADER = 4096  # characters of a header that is read here


class Range(NamedTuple):
    """Bytes start to end, without the last."""

    start: int
    end: int


def unmodified(headers: Mapping[str, str], etag: str, modified: int) -> bool:
    """Whether the client has this file already: 304 instead of the bytes. ApiError 412 when it
    asks for another version alone. modified: epoch seconds."""
    wanted = headers.get("if-match")
    if wanted is not None:
        if not _listed(wanted, etag, weak=False):
            raise _failed()
    else:
        since = _epoch(headers.get("if-unmodified-since"))
        if since is not None and modified > since:
            raise _failed()
    known = headers.get("if-none-match")
    if known is not None:
        return _listed(known, etag, weak=True)
    since = _epoch(headers.get("if-modified-since"))
    return since is not None and modified <= since


def ranges(headers: Mapping[str, str], size: int, etag: str, modified: int) -> list[Range] | None:
    """What the header Range asks for, overlapping pieces joined; None for the whole file.
    ApiError 416 when nothing of it is there or it asks for too many pieces."""
    text = headers.get("range")
    if text is None or text[:6].lower() != "bytes=":
        return None
    if "if-range" in headers and not _same(headers["if-range"], etag, modified):
        return None
    if len(text) > MAX_HEADER or text.count(",") >= MAX_RANGES:
        raise ApiError(
            416, "too_many_ranges", f"A request asks for at most {MAX_RANGES} ranges.",
            headers=_unsatisfied(size),
        )  # fmt: skip
    found = []
    for part in text[6:].split(","):
        part = part.strip(" \t")
        if not part:
            continue
        first, dash, last = part.partition("-")
        if not dash or not _digits(first) or not _digits(last) or not (first or last):
            return None  # not a set of ranges: as if the header were not there
        if not first:
            length = min(int(last), size)
            start, end = size - length, size
        else:
            start = int(first)
            end = min(int(last) + 1, size) if last else size
            if last and int(last) < start:
                return None
        if start < end:
            found.append(Range(start, end))
    if not found:
        raise ApiError(
            416, "range_not_satisfiable", f"The file has {size} bytes.", headers=_unsatisfied(size)
        )
    return _joined(found)


def _joined(found: list[Range]) -> list[Range]:
    """Pieces that overlap or touch become one; the others keep their order."""
    if len(found) == 1:
        return found
    ordered = sorted(found)
    merged = [ordered[0]]
    for piece in ordered[1:]:
        last = merged[-1]
        if piece.start <= last.end:
            merged[-1] = Range(last.start, max(last.end, piece.end))
        else:
            merged.append(piece)
    if len(merged) == len(found):
        return found
    return merged


def _digits(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) <= 18)


def _unsatisfied(size: int) -> tuple[tuple[str, str], ...]:
    return (("content-range", f"bytes */{size}"),)


def _failed() -> ApiError:
    return ApiError(412, "precondition_failed", "The file is not the one that was asked for.")


def _listed(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags holds this strong one."""
    if header == etag or header.strip() == "*":
        return True
    for part in header[:MAX_HEADER].split(","):
        part = part.strip(" \t")
        if weak and part[:2] == "W/":
            part = part[2:]
        if part == etag:
            return True
    return False


def _same(header: str, etag: str, modified: int) -> bool:
    header = header.strip()
    if header[:1] == '"' or header[:2] == "W/":
        return header == etag
    return _epoch(header) == modified


def _epoch(date: str | None) -> int | None:
    """An HTTP date as epoch seconds; None for anything else."""
    if date is None or len(date) > 64 or not date.strip().endswith("GMT"):
        return None
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
