"""The section `functions` of a project's settings."""

from __future__ import annotations

import msgspec


class FunctionsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """enabled: False answers 404 to every call."""

    enabled: bool = True
