"""What passes from a function to its own project."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.functions.origin import BadRequest, Origin, RequestFilter

HOST = "shop.localhost:8000"


def passed(raw, cuts=(), scheme="http"):
    found = RequestFilter(HOST, scheme)
    marks = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return b"".join(found.feed(raw[a:b]) for a, b in itertools.pairwise(marks))


GET = b"GET /a?b HTTP/1.1\r\nhost: project.invalid\r\nX-A: 1\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: SHOP.localhost:8000\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /a HTTP/1.1\r\nhost: project.invalid\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nGET /\r\n3;x=y\r\n\r\n\r\r\n0\r\nx-t: 1\r\n\r\n"
)


@settings(max_examples=100, deadline=None)
@given(
    messages=st.lists(st.sampled_from([GET, POST, CHUNKED]), max_size=4),
    cuts=st.lists(st.integers(0, 500), max_size=20),
)
def test_requests_pass_in_any_pieces_with_the_project_as_host(messages, cuts):
    own = HOST.encode()
    expected = b"".join(messages).replace(b"host: project.invalid", b"host: " + own)
    expected = expected.replace(b"Host: SHOP.localhost:8000", b"host: " + own)
    assert passed(b"".join(messages), cuts) == expected


def test_a_function_cannot_say_where_a_request_comes_from():
    raw = (
        b"GET http://project.invalid/a HTTP/1.1\r\nhost: project.invalid\r\n"
        b"X-Forwarded-For: 1.2.3.4\r\nx-forwarded-proto: https\r\nForwarded: for=1\r\n"
        b"X-Real-IP: 1.2.3.4\r\nkept: 1\r\n\r\n"
    )
    assert passed(raw) == b"GET /a HTTP/1.1\r\nhost: shop.localhost:8000\r\nkept: 1\r\n\r\n"
    assert b"\r\nx-forwarded-proto: https\r\n\r\n" in passed(raw, scheme="https")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nhost: other.localhost:8000\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\nhost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nhost: project.invalid\r\n\r\n",
        b"GET https://project.invalid/ HTTP/1.1\r\nhost: project.invalid\r\n\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: project.invalid\r\n\r\n",
        b"GET /  HTTP/1.1\r\nhost: project.invalid\r\n\r\n",
        b"GET / HTTP/1.0\r\nhost: project.invalid\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\n x: folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\nhost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\nx-forwarded-for: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\ncontent-length: 1\r\n"
        b"transfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\ncontent-length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        CHUNKED.replace(b"5\r\n", b"-5\r\n"),
        CHUNKED.replace(b"5\r\n", b"0x5\r\n"),
        CHUNKED.replace(b"5\r\n", b"0_5\r\n"),
        b"GET / HTTP/1.1\r\nhost: project.invalid\r\nupgrade: websocket\r\n"
        b"content-length: 1\r\n\r\n",
        b"x" * 200_000,
    ],
)
def test_what_could_be_read_in_two_ways_closes_the_connection(raw):
    with pytest.raises(BadRequest):
        passed(raw)


UPGRADE = GET.replace(b"X-A: 1", b"Upgrade: websocket")
OTHER = b"GET /secret HTTP/1.1\r\nhost: other.localhost\r\nx-forwarded-for: 1.2.3.4\r\n\r\n"


@given(cut=st.integers(0, 20))
def test_only_a_server_that_has_switched_is_sent_what_is_no_request(cut):
    """What comes after a request for another protocol waits for the answer to that."""
    asked = b"GET /a?b HTTP/1.1\r\nhost: shop.localhost:8000\r\nUpgrade: websocket\r\n\r\n"

    def ask(answer, more):
        found = RequestFilter(HOST, "http")
        assert found.feed(UPGRADE + more) == asked
        return found, found.answered(answer[:cut]) + found.answered(answer[cut:])

    switched = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    found, passed_on = ask(switched, b"\x81\x80frame")
    assert passed_on + found.feed(b"more") == b"\x81\x80framemore"
    for status in (b"200 OK", b"100 Continue", b"1010 Odd"):
        answer = b"HTTP/1.1 " + status + b"\r\n\r\n"
        with pytest.raises(BadRequest):
            ask(answer, OTHER)
        found, passed_on = ask(answer, GET)
        assert passed_on.startswith(b"GET /a?b HTTP/1.1\r\nhost: shop.localhost:8000\r\n")
        again = found.feed(UPGRADE)  # a later request is one of HTTP alone
        assert b"pgrade" not in again
        with pytest.raises(BadRequest):
            found.feed(OTHER)
    found, _ = ask(b"", b"")
    with pytest.raises(BadRequest):
        found.feed(b"x" * 200_000)


@pytest.mark.parametrize(
    ("url", "host"),
    [("https://a.example.com", "a.example.com"), ("http://127.0.0.1:8000", "127.0.0.1:8000"),
     ("http://[::1]:80", "[::1]"), ("https://a:8443", "a:8443")],
)  # fmt: skip
def test_the_host_of_an_address(url, host):
    assert Origin(url, ("127.0.0.1", 1)).host == host
