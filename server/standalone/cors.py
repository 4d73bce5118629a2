"""Cross-origin answers of `ichibase rest`: every origin, or those that are listed."""

from __future__ import annotations

from server.base.http import Headers

METHODS = "GET, POST, PATCH, PUT, DELETE, OPTIONS, HEAD"
EXPOSED = (
    "Content-Encoding, Content-Location, Content-Range, Content-Type, Date, Location, Server, "
    "Transfer-Encoding, Range-Unit"
)
ALWAYS_ALLOWED = ("Accept", "Accept-Language", "Content-Language")
MAX_AGE = "86400"


class Cors:
    def __init__(self, origins: tuple[str, ...] | None) -> None:
        self.origins = None if origins is None else frozenset(origins)

    def headers(self, given: dict[str, str]) -> Headers:
        """What an answer carries for the origin that asks."""
        allowed = self._allowed(given)
        if allowed:
            allowed.append(("access-control-expose-headers", EXPOSED))
        return allowed

    def preflight(self, method: str, given: dict[str, str]) -> Headers | None:
        """The headers of a preflight's answer; None when it is none, or not allowed."""
        if method != "OPTIONS" or "access-control-request-method" not in given:
            return None
        allowed = self._allowed(given)
        if not allowed:
            return None
        asked = given.get("access-control-request-headers", "")
        names = ["Authorization", *(name.strip() for name in asked.split(",") if name.strip())]
        names += [name for name in ALWAYS_ALLOWED if name not in names]
        return [
            *allowed,
            ("access-control-allow-methods", METHODS),
            ("access-control-allow-headers", ", ".join(names)),
            ("access-control-max-age", MAX_AGE),
        ]

    def _allowed(self, given: dict[str, str]) -> Headers:
        origin = given.get("origin")
        if origin is None:
            return []
        if self.origins is None:
            return [("access-control-allow-origin", "*")]
        if origin not in self.origins:
            return []
        return [
            ("access-control-allow-origin", origin),
            ("access-control-allow-credentials", "true"),
        ]
