"""Where a browser may be sent after a sign-in: the project's allow-list.

An entry is a whole URL and is compared as a whole: scheme, host, port, path and query. `*` may
stand for one label of the host or for the port. Custom schemes of apps (myapp://signed-in) are
entries like others. What browsers read in more than one way (user:password@, backslashes, control
characters, fragments) never matches.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

import msgspec

URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,31})://"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9*_.-]*)"
    r"(?::(?P<port>[0-9]{1,5}|\*))?"
    r"(?P<path>/[^?#]*)?"
    r"(?:\?(?P<query>[^#]*))?",
    re.ASCII,
)
SAFE = re.compile(r"[!-~]{1,2048}", re.ASCII)
DEFAULT_PORTS = {"http": "80", "https": "443"}
FORBIDDEN_SCHEMES = frozenset(
    ("javascript", "data", "vbscript", "file", "about", "blob", "filesystem", "ws", "wss")
)


class RedirectRule(msgspec.Struct, frozen=True):
    """A URL in the parts that are compared. port: "" when there is none, nor a default."""

    scheme: str
    host: str
    port: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str) -> RedirectRule | None:
        """None for anything that is not one plain, unambiguous URL."""
        if not SAFE.fullmatch(url) or "\\" in url or "#" in url or '"' in url or "<" in url:
            return None
        head, separator, tail = url.partition("://")
        cut = len(re.split(r"[/?]", tail, maxsplit=1)[0])
        match = URL.fullmatch(head.lower() + separator + tail[:cut].lower() + tail[cut:])
        if match is None or match["scheme"] in FORBIDDEN_SCHEMES:
            return None
        scheme, host = match["scheme"], match["host"]
        web = scheme in DEFAULT_PORTS
        if web and (not host or ".." in host or host.startswith(".") or host.endswith(".")):
            return None
        path = match["path"] or ("/" if web else "")
        port = match["port"] or DEFAULT_PORTS.get(scheme, "")
        return cls(scheme, host, port, path, match["query"] or "")

    def admits(self, url: RedirectRule) -> bool:
        """Whether `url`, which has no wildcards, is what this rule describes."""
        return (
            self.scheme == url.scheme
            and self.path == url.path
            and self.query == url.query
            and (self.port == url.port or (self.port == "*" and url.port != ""))
            and _host_matches(self.host, url.host)
        )


def _host_matches(rule: str, host: str) -> bool:
    if "*" not in rule:
        return rule == host
    wanted, given = rule.split("."), host.split(".")
    return len(wanted) == len(given) and all(
        w == g or (w == "*" and g != "") for w, g in zip(wanted, given, strict=True)
    )


def check_rule(url: str, error: type[Exception]) -> None:
    """Raises `error` when the entry of an allow-list cannot be used."""
    rule = RedirectRule.parse(url)
    if rule is None:
        raise error(f"redirect_urls: {url!r} is not a plain URL without user, fragment or spaces")
    if any("*" in label and label != "*" for label in rule.host.split(".")):
        raise error(f"redirect_urls: in {url!r} a * must stand for one whole label")
    labels = rule.host.split(".")
    if "*" in labels and (labels[-1] == "*" or (len(labels) < 3 and labels[-1] != "localhost")):
        raise error(f"redirect_urls: {url!r} would admit hosts of anybody")


def allowed(url: str, rules: tuple[str, ...]) -> bool:
    """Whether a browser may be sent to `url`."""
    target = RedirectRule.parse(url)
    if target is None or "*" in target.host or target.port == "*":
        return False
    return any((rule := RedirectRule.parse(text)) and rule.admits(target) for text in rules)


def with_fragment(url: str, values: dict[str, str]) -> str:
    """`url` with values where only the page's own scripts see them."""
    return f"{url}#{urlencode(values)}"


def with_query(url: str, values: dict[str, str]) -> str:
    """`url` with further query parameters."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(values)}"
