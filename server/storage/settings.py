"""The section `storage` of a project's settings."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """file_size_limit: bytes of one file; None leaves it to the quota and to the bucket.
    read_seconds: how long a read token lasts that asks for nothing else. upload_seconds: how long
    an upload URL may be used. cache_seconds: how long others may keep public files without asking
    again, unless their bucket says so."""

    file_size_limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    read_seconds: Seconds = 60
    upload_seconds: Seconds = 300
    cache_seconds: Annotated[int, msgspec.Meta(ge=0, le=31_536_000)] = 60


def parse(section: dict[str, Any]) -> StorageSettings:
    """Plain JSON object to settings; msgspec.ValidationError says what is wrong."""
    return msgspec.convert(section, StorageSettings)
