"""The list of origins: what each line allows and what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.base.cors import CorsPolicy

LINES = [
    "https://app.example.com",
    "https://*.vercel.app",
    "http://localhost:*",
    "https://Mixed.Example:443",
    "http://plain.example",
    "http://[::1]:5173",
]
POLICY = CorsPolicy(LINES)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com", "https://app.example.com:443", "HTTPS://APP.example.com",
        "https://x.vercel.app", "https://x-1.vercel.app", "http://localhost:3000",
        "http://localhost", "http://localhost:80", "https://mixed.example",
        "http://plain.example:80", "http://[::1]:5173",
    ],
)  # fmt: skip
def test_listed(origin):
    headers = dict(POLICY.headers(origin))
    assert headers["access-control-allow-origin"] == origin
    assert headers["vary"] == "Origin"
    assert "Content-Range" in headers["access-control-expose-headers"]
    answer = dict(POLICY.preflight(origin, "x-one, authorization"))
    assert answer["access-control-max-age"] == "86400"
    assert answer["access-control-allow-headers"] == "x-one, authorization"


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com", "https://app.example.com:8443", "https://a.b.vercel.app",
        "https://vercel.app", "https://.vercel.app", "https://evilvercel.app", "null", "",
        "https://localhost:3000", "http://localhost.evil.com", "https://app.example.com.evil.com",
        "https://app.example.com/", "https://app.example.com/x", "https://*.vercel.app", "*",
        "http://localhost:*", "https://app.example.com\r\nx: y", "http://[::1]:5174",
        "https://user@app.example.com", "https://x.vercel.app:8443", "x" * 2000,
    ],
)  # fmt: skip
def test_not_listed(origin):
    assert POLICY.headers(origin) == (("vary", "Origin"),)
    assert POLICY.preflight(origin, None) == (("vary", "Origin"),)


def test_nothing_listed_says_nothing():
    policy = CorsPolicy([])
    assert policy.headers("https://a.example") == ()
    assert policy.preflight("https://a.example", None) == ()


def test_a_star_allows_all():
    policy = CorsPolicy(["*"])
    for origin in ("https://a.example", "http://x.localhost:1", "null"):
        assert dict(policy.headers(origin))["access-control-allow-origin"] == origin
    assert policy.headers("no origin") == (("vary", "Origin"),)


def test_the_requested_headers_are_echoed_only_when_they_are_names():
    asked = dict(POLICY.preflight("https://app.example.com", "x\r\ny: z"))
    assert "authorization" in asked["access-control-allow-headers"]


@given(st.text(max_size=60))
def test_no_origin_breaks_it(text):
    for name, value in POLICY.headers(text):
        assert name != "access-control-allow-origin" or value == text
