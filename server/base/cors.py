"""Which web origins may read a project's answers.

The list holds one origin a line, `scheme://host[:port]`. A `*` stands for exactly one DNS label or
for any port; a line of only `*` allows every origin. Nothing is allowed that is not listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ichicore.token.cache import GenerationCache

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
ALLOWED = (
    "authorization, apikey, content-type, accept, prefer, range, range-unit, accept-profile, "
    "content-profile, x-client-info, x-request-id"
)
EXPOSED = (
    "Content-Range, Content-Location, Location, Preference-Applied, Range-Unit, Retry-After, "
    "ETag, X-Request-Id"
)
MAX_AGE = "86400"
VARY = ("vary", "Origin")
MAX_ORIGIN = 512
Pairs = tuple[tuple[str, str], ...]
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|(?:\*|[a-z0-9_-]+)(?:\.(?:\*|[a-z0-9_-]+))*)"
    r"(?::(\*|[0-9]{1,5}))?"
)
_HEADER_LIST = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]*")


def normal(text: str) -> tuple[str, str, str] | None:
    """(scheme, host, port) of an origin or of a line of the list, lower case, the scheme's default
    port filled in; None when it is neither."""
    if len(text) > MAX_ORIGIN:
        return None
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, host, port = found.groups()
    return scheme, host, port or _DEFAULT_PORTS.get(scheme, "")


class CorsPolicy:
    """One project's list, compiled. `any_listed` is false when no origin can ever match."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.everyone = False
        self.exact: set[tuple[str, str, str]] = set()
        self.patterns: list[tuple[str, tuple[str, ...], str]] = []
        for line in lines:
            text = line.strip()
            if text == "*":
                self.everyone = True
                continue
            parts = normal(text)
            if parts is None:
                continue  # the settings refuse such a line; an old one allows nothing
            if "*" in text:
                self.patterns.append((parts[0], tuple(parts[1].split(".")), parts[2]))
            else:
                self.exact.add(parts)
        self.any_listed = bool(self.everyone or self.exact or self.patterns)
        self.silent: Pairs = (VARY,) if self.any_listed else ()
        self._known: GenerationCache[Pairs] = GenerationCache(512)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may read answers."""
        parts = normal(origin)
        if parts is None or "*" in origin:
            return self.everyone and origin == "null"
        if self.everyone or parts in self.exact:
            return True
        scheme, host, port = parts
        labels = host.split(".")
        for want_scheme, want_labels, want_port in self.patterns:
            if (
                scheme == want_scheme
                and want_port in ("*", port)
                and len(labels) == len(want_labels)
                and all(
                    want in ("*", label) for want, label in zip(want_labels, labels, strict=True)
                )
            ):
                return True
        return False

    def headers(self, origin: str | None) -> Pairs:
        """What an ordinary answer carries for a request with this Origin header."""
        if origin is None or not self.any_listed:
            return self.silent
        found = self._known.get(origin)
        if found is None:
            if self.allows(origin):
                found = (
                    ("access-control-allow-origin", origin),
                    VARY,
                    ("access-control-expose-headers", EXPOSED),
                )
            else:
                found = (VARY,)
            self._known.put(origin, found)
        return found

    def preflight(self, origin: str, requested: str | None) -> Pairs:
        """The headers of the answer (204) to a preflight; none for an origin not listed."""
        if not self.any_listed or not self.allows(origin):
            return self.silent
        asked = requested if requested and _HEADER_LIST.fullmatch(requested) else None
        return (
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", METHODS),
            ("access-control-allow-headers", asked or ALLOWED),
            ("access-control-max-age", MAX_AGE),
            ("vary", "Origin, Access-Control-Request-Headers"),
        )


def origins(section: dict[str, Any]) -> list[str]:
    """The lines of the section `cors`: its member `origins`, a list or lines of text."""
    found = section.get("origins", [])
    lines = found.splitlines() if isinstance(found, str) else found
    return [line for line in lines if isinstance(line, str)]
