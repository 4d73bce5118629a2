"""The Prefer header: preferences of RFC 7240 that the Postgres REST engine honours."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ichicore.errors import ApiError

WORDS = {
    "resolution=merge-duplicates": ("resolution", "merge-duplicates"),
    "resolution=ignore-duplicates": ("resolution", "ignore-duplicates"),
    "return=representation": ("representation", "representation"),
    "return=minimal": ("representation", "minimal"),
    "return=headers-only": ("representation", "headers-only"),
    "count=exact": ("count", "exact"),
    "count=planned": ("count", "planned"),
    "count=estimated": ("count", "estimated"),
    "tx=commit": ("tx", "commit"),
    "tx=rollback": ("tx", "rollback"),
    "missing=default": ("missing", "default"),
    "missing=null": ("missing", "null"),
    "handling=strict": ("handling", "strict"),
    "handling=lenient": ("handling", "lenient"),
}
NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a request prefers; None where it says nothing.

    invalid: preferences that mean nothing here, as written; an error only with handling=strict.
    """

    resolution: str | None = None
    representation: str | None = None
    count: str | None = None
    tx: str | None = None
    missing: str | None = None
    handling: str | None = None
    timezone: str | None = None
    max_affected: int | None = None
    invalid: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ApiError 400 PGRST122 for unknown preferences under handling=strict."""
        if self.invalid and self.handling == "strict":
            raise ApiError(
                400,
                "PGRST122",
                "Invalid preferences given with handling=strict",
                "Invalid preferences: " + ", ".join(self.invalid),
            )


NOTHING = Preferences()


def parse(header: str | None, timezones: Collection[str]) -> Preferences:
    """The preferences of a header; repeated headers are joined by commas. The first of a kind wins.

    timezones: lower-case names that the database knows.
    """
    if not header:
        return NOTHING
    found: dict[str, str] = {}
    invalid = []
    zone: str | None = None
    affected: str | None = None
    for part in header.split(","):
        item = part.strip()
        known = WORDS.get(item)
        if known is not None:
            found.setdefault(known[0], known[1])
        elif item.startswith("timezone="):
            # Only the first names the time zone; it decides for all whether they are valid.
            if zone is None:
                zone = item[9:]
            if zone.lower() not in timezones:
                invalid.append(item)
        elif item.startswith("max-affected="):
            if affected is None:
                affected = item[13:]
        else:
            invalid.append(item)
    return Preferences(
        **found,
        timezone=zone if zone is not None and zone.lower() in timezones else None,
        max_affected=int(affected) if affected and NUMBER.fullmatch(affected) else None,
        invalid=tuple(invalid),
    )
