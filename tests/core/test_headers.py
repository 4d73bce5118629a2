"""Prefer and Accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.http import accept, prefer
from ichicore.http.accept import MediaType
from ichicore.http.prefer import Preferences

ZONES = frozenset({"america/los_angeles"})


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, Preferences()),
        ("count=exact,    tx=commit   ,return=representation , missing=default, handling=strict, x",
         Preferences(count="exact", tx="commit", representation="representation",
                     missing="default", handling="strict", invalid=("x",))),
        ("tx=rollback, tx=commit", Preferences(tx="rollback")),
        ("timezone=America/Los_Angeles, max-affected=10",
         Preferences(timezone="America/Los_Angeles", max_affected=10)),
        ("timezone=Mars, max-affected=few", Preferences(invalid=("timezone=Mars",))),
        ("count=some,", Preferences(invalid=("count=some", ""))),
    ],
)  # fmt: skip
def test_preferences(header: str | None, wanted: Preferences) -> None:
    assert prefer.parse(header, ZONES) == wanted


def test_strict_handling() -> None:
    prefer.parse("anything", ZONES).check()
    with pytest.raises(ApiError) as caught:
        prefer.parse("handling=strict, anything, else", ZONES).check()
    assert caught.value.code == "PGRST122"
    assert caught.value.details == "Invalid preferences: anything, else"


PLAN = 'application/vnd.pgrst.plan+json; for="text/csv"; options=analyze|wal'


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        (None, ["*/*"]),
        ("", []),
        ("text/csv", ["text/csv"]),
        ("text/html,application/xml;q=0.9,*/*;q=0.8", ["text/html", "application/xml", "*/*"]),
        ("text/csv; q=0.1, application/json;q=0.5", ["application/json", "text/csv"]),
        ("*/*, text/csv", ["text/csv", "*/*"]),
        ("ApplicatIon/vnd.PgRsT.object+json", ["application/vnd.pgrst.object+json"]),
        ("application/vnd.pgrst.array+json", ["application/json"]),
        ("application/vnd.pgrst.array;nulls=stripped",
         ["application/vnd.pgrst.array+json;nulls=stripped"]),
        ('application/vnd.pgrst.plan+json ; for="text/csv" ; options=wal|analyze', [PLAN]),
        ("application/vnd.pgrst.plan;",
         ['application/vnd.pgrst.plan+text; for="application/json"']),
        ("application/vnd.twkb", ["application/vnd.twkb"]),
        ("nonsense", ["nonsense"]),
    ],
)  # fmt: skip
def test_accept(header: str | None, texts: list[str]) -> None:
    assert [media.text for media in accept.parse(header)] == texts


def test_plan_parts() -> None:
    (media,) = accept.parse(PLAN)
    assert (media.kind, media.format, media.options) == ("plan", "json", ("analyze", "wal"))
    assert media.inner == MediaType("text/csv")


@given(st.text(max_size=60))
def test_any_text(header: str) -> None:
    assert prefer.parse(header, ZONES) == prefer.parse(header, ZONES)
    assert all(isinstance(media.text, str) for media in accept.parse(header))
