"""Paths, ranges, media types and names, for any input."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.storage import inputs, paths
from server.storage.conditions import MAX_RANGES, ranges, unmodified
from server.storage.reads import disposition, harmless
from server.storage.tokens import Signer
from tests.server.auth.harness import make_project

TAG, MODIFIED = '"abc"', 1_700_000_000
TEXT = st.text(max_size=60) | st.text("./\\ab\0é\u0301．%", max_size=20)


@given(TEXT)
def test_an_accepted_path_is_plain_and_stays_as_it_is(text):
    try:
        found = paths.path(text)
    except (paths.PathError, UnicodeEncodeError):
        return
    assert paths.path(found) == found
    assert found == unicodedata.normalize("NFC", found)
    assert 0 < len(found.encode()) <= paths.MAX_PATH
    assert not {"", ".", ".."} & set(found.split("/"))
    assert not any(ord(c) < 32 or c == "\\" for c in found)
    assert found < "\U0010ffff"


@given(TEXT, TEXT)
def test_below_a_folder_means_below_it(path, folder):
    inside = paths.within(path, folder)
    assert inside == (path.split("/")[: folder.count("/") + 1] == folder.split("/"))


NUMBERS = st.integers(0, 30).map(str) | st.just("") | st.sampled_from(["x", "-1", "9" * 30, "٣"])
RANGES = st.lists(st.tuples(NUMBERS, NUMBERS).map("-".join) | TEXT, max_size=20).map(
    lambda parts: "bytes=" + ",".join(parts)
)


def wanted(text, size):
    """The bytes that a set of ranges names, one by one; None when it is no such set."""
    found = set()
    for part in text.removeprefix("bytes=").split(","):
        part = part.strip(" \t")
        if not part:
            continue
        first, dash, last = part.partition("-")
        for number in (first, last):
            if number and not (number.isascii() and number.isdigit() and len(number) <= 18):
                return None
        if not dash or not (first or last):
            return None
        if not first:
            found |= set(range(size)[-int(last) :] if int(last) else ())
        elif last and int(last) < int(first):
            return None
        else:
            found |= set(range(int(first), min(size, int(last) + 1 if last else size)))
    return found


@given(RANGES, st.integers(0, 25))
def test_ranges_name_the_bytes_that_were_asked_for(text, size):
    expected = wanted(text, size)
    try:
        found = ranges({"range": text}, size, TAG, MODIFIED)
    except ApiError as error:
        assert error.status == 416
        assert error.code == "too_many_ranges" or expected == set()
        assert ("content-range", f"bytes */{size}") in error.headers
        return
    if expected is None:
        assert found is None
        return
    assert found
    assert len(found) <= MAX_RANGES
    named = [n for piece in found for n in range(piece.start, piece.end)]
    assert set(named) == expected
    assert len(named) == len(set(named))  # nothing is sent twice


@given(st.dictionaries(
    st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]),
    TEXT | st.sampled_from([TAG, f"W/{TAG}", "*", "Tue, 14 Nov 2023 22:13:20 GMT"]),
))  # fmt: skip
def test_conditions_never_fail_otherwise(headers):
    try:
        assert unmodified(headers, TAG, MODIFIED) in (True, False)
    except ApiError as error:
        assert error.status == 412


@given(st.text(max_size=300))
def test_names_of_downloads_are_one_header_value(name):
    _, value = disposition(name)
    assert value.isascii()
    assert value.isprintable()
    assert value.count('"') == 2
    assert "/" not in value.split('"')[1]


@given(st.text(max_size=80) | st.from_regex(r"[a-zA-Z]+/[a-z+.-]+( ?; ?[a-z]+=[a-z\"]*)?"))
def test_media_types_are_one_header_value(text):
    found = inputs.content_type(text)
    if found is not None:
        assert found.isascii()
        assert found.isprintable()
        assert inputs.content_type(found) == found
        assert inputs.essence(found) == inputs.essence(text)


def test_only_known_types_are_taken_for_harmless():
    for kind in ("image/png", "video/mp4", "audio/ogg", "font/woff2", "text/plain; charset=utf-8"):
        assert harmless(kind)
    for kind in ("text/html", "image/svg+xml", "IMAGE/SVG+XML", "application/xml", "x/y", "image"):
        assert not harmless(kind)


@given(st.text(max_size=200))
def test_tokens_that_are_none(text):
    signer = Signer(make_project("postgresql://nowhere"))
    for opened in (signer.open_read, signer.open_upload):
        with pytest.raises(ApiError) as caught:
            opened(text, 0.0)
        assert caught.value.status == 401
