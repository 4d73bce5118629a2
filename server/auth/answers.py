"""Answers of the auth endpoints: never kept by a cache."""

from __future__ import annotations

import orjson

from server.base.http import JSON, Response

NO_STORE = ("cache-control", "no-store")


def json(status: int, value: object) -> Response:
    return Response(status, [JSON, NO_STORE], orjson.dumps(value))


def raw_json(status: int, body: bytes) -> Response:
    """Text that the database has written already."""
    return Response(status, [JSON, NO_STORE], body)


def redirect(url: str, *headers: tuple[str, str]) -> Response:
    return Response(302, [("location", url), NO_STORE, *headers])


def page(status: int, html: str, policy: str = "default-src 'none'") -> Response:
    """An HTML page that nothing may frame."""
    headers = [
        ("content-type", "text/html; charset=utf-8"),
        NO_STORE,
        ("content-security-policy", f"{policy}; frame-ancestors 'none'; base-uri 'none'"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ]
    return Response(status, headers, html.encode())
