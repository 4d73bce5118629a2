"""Names of buckets and paths of objects: which are accepted, and in which one form they are kept.

A path never becomes a file name: blobs have random names. What is refused here is refused so that
one object has one path, and that a path means the same to every client that may see it.
"""

from __future__ import annotations

import re
import unicodedata

BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
PUBLIC = "public"  # the bucket that is read without a token
MAX_PATH = 1024  # bytes of UTF-8

# Control characters, what steers the direction of text, separators of lines, noncharacters (one
# of which ends a listing's range), lone surrogates and the backslash, which some clients take for
# a slash.
_REFUSED = re.compile(
    "[\x00-\x1f\x7f-\x9f\\\\\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffd"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


class PathError(ValueError):
    """Why a name is refused; reads on after the member's name."""


def bucket(name: str) -> str:
    if not BUCKET.fullmatch(name):
        raise PathError('must match pattern "^[a-z0-9][a-z0-9-]{1,62}$"')
    return name


def path(text: str, *, folder: bool = False) -> str:
    """The form in which a path is kept: without one leading slash, in Unicode's form NFC.
    folder: one slash at the end is taken off too. PathError when it is refused."""
    if text.startswith("/"):
        text = text[1:]
    if folder and text.endswith("/"):
        text = text[:-1]
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    _check(text)
    for segment in text.split("/"):
        if not segment:
            raise PathError("must not have empty segments")
        if segment in (".", ".."):
            raise PathError('must not have segments "." or ".."')
    return text


def prefix(text: str) -> str:
    """The beginning of paths to list, any number of characters."""
    if text.startswith("/"):
        text = text[1:]
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if text:
        _check(text)
    return text


def _check(text: str) -> None:
    if _REFUSED.search(text):
        raise PathError("must not have control characters or a backslash")
    if not text:
        raise PathError("must not be empty")
    if len(text.encode()) > MAX_PATH:
        raise PathError(f"must not be longer than {MAX_PATH} bytes")


def within(path: str, folder: str) -> bool:
    """Whether a path is the folder itself or below it: `a` does not hold `ab`."""
    return path == folder or path.startswith(f"{folder}/")
