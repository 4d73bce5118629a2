"""Which project a Host header names.

Accepted are `<slug>.<base domain>`, `<slug>.localhost`, and for the default project the bare base
domain, the host of the public URL, localhost, a name without dots and any IP address; each with
any port, in any case, with or without a trailing dot.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from ichicore.errors import ApiError

MAX_HOST = 260  # a name of 253 bytes, a colon, a port
SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
CDN = "cdn"  # label that no project may have: the host of public files


def malformed() -> ApiError:
    return ApiError(400, "bad_request", "The Host header is not a valid host.")


class UnknownProject(ApiError):
    """404 project_not_found. slug: of a project that is not known here."""

    def __init__(self, slug: str = "") -> None:
        super().__init__(404, "project_not_found", "There is no project at this host.")
        self.slug = slug


def unknown() -> ApiError:
    return UnknownProject()


def split(host: str) -> str:
    """The bare lower-case host of a Host header, without port and trailing dot; IPv6 in its
    shortest form and without brackets. ApiError 400 for anything else."""
    if not host or len(host) > MAX_HOST or not host.isascii():
        raise malformed()
    if host[0] == "[":
        inner, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and (rest[0] != ":" or not _is_port(rest[1:]))):
            raise malformed()
        try:
            return ipaddress.IPv6Address(inner).compressed
        except ValueError:
            raise malformed() from None
    name, colon, port = host.partition(":")
    if colon and not _is_port(port):
        raise malformed()
    name = name.lower()
    if name.endswith("."):
        name = name[:-1]
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise malformed()
    return name


def _is_port(text: str) -> bool:
    return text.isdigit() and text.isascii() and len(text) <= 5 and 0 < int(text) <= 65535


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HostRule:
    """Reads Host headers by one node's settings."""

    def __init__(self, base_domain: str, default_slug: str, public_url: str, cdn_url: str) -> None:
        self.default_slug = default_slug
        self.suffixes = {"." + base_domain.lower().strip("."), ".localhost"}
        self.bare = {base_domain.lower().strip("."), "localhost", self._host_of(public_url)}
        self.cdn = {f"{CDN}{suffix}" for suffix in self.suffixes}
        self.cdn |= {self._host_of(cdn_url)} - self.bare - {""}

    @staticmethod
    def _host_of(url: str) -> str:
        try:
            return urlsplit(url).hostname or ""
        except ValueError:
            return ""

    def slug(self, host: str) -> str | None:
        """The slug of the project, or None for the host of public files. ApiError otherwise."""
        name = split(host)
        if name in self.bare:
            return self.default_slug
        if name in self.cdn and not _is_address(name):
            return None
        for suffix in self.suffixes:
            if name.endswith(suffix):
                label = name[: -len(suffix)]
                if SLUG.fullmatch(label):
                    return label
                raise unknown()
        if "." not in name or _is_address(name):
            return self.default_slug
        raise unknown()
