"""Targets with bytes that have to be encoded, and streams of which nothing may be touched."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.http.lenient import (
    BODY_HEADER,
    ENCODED_HEADER,
    Stream,
    body,
    decoded,
    hand_over,
    keep_bodies,
    opens_socket,
)  # fmt: skip
from tests.oracle import lenient as oracle

GET = b"GET /a?b->>c HTTP/1.1\r\nHost: x\r\n\r\n"
ENCODED = b"GET /a?b-%3E%3Ec HTTP/1.1\r\nHost: x\r\n\r\n"


def post(head: bytes, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\n" + head + b"\r\n\r\n" + body


def test_bytes_that_have_to_be_encoded_are():
    stream = Stream()
    assert stream.feed(GET) == ENCODED
    assert stream.feed(GET) == ENCODED
    raw = 'GET /é?a=in.("x",`y`)&b=<1> HTTP/1.0\r\n\r\n'.encode()
    assert stream.feed(raw) == (b"GET /%C3%A9?a=in.(%22x%22,%60y%60)&b=%3C1%3E HTTP/1.0\r\n\r\n")
    assert Stream().feed(GET + GET) == ENCODED + GET


def test_values_beyond_ascii_are_encoded_and_named():
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nCookie: a=\xc3\xa9; b=%41\r\nX-Rate: 5%\r\n"
    mark = ENCODED_HEADER.encode() + b": Cookie,X-Rate\r\n"
    values = b"Cookie: a=%C3%A9; b=%2541\r\nX-Rate: 5%25\r\n"
    wanted = b"POST /x HTTP/1.1\r\nHost: x\r\n" + values
    for rest in (b"\r\n", b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n0"):
        told, _, sent = rest.rpartition(b"\r\n")
        told += b"\r\n" if told else b""
        expected = wanted + told[:-2] + mark + mark + b"\r\n" + sent
        assert Stream().feed(head + rest) == expected
    assert decoded("a=%C3%A9; b=%2541") == b"a=\xc3\xa9; b=%41"
    plain = head.replace(b"\xc3\xa9", b"e") + b"\r\n"
    assert Stream().feed(plain) == plain


def test_a_buffer_without_room_stays_as_it_is():
    stream = Stream()
    assert stream.feed(GET, len(GET) + 3) == GET
    assert stream.feed(GET, len(GET) + 4) == ENCODED


def test_bodies_are_not_touched():
    stream = Stream()
    head = b"content-LENGTH:  %d " % (2 * len(GET))
    assert stream.feed(post(head, GET)) == post(head, GET)
    assert stream.feed(GET) == GET
    assert stream.feed(GET) == ENCODED


@pytest.mark.parametrize(
    "first",
    [
        GET[:9],
        GET[:-1],
        GET.replace(b"\r\n", b"\n"),
        b"\r\n" + GET,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        GET + b"x",
        post(b"Content-Length: 5", b"123456"),
        post(b"Content-Length: 5\r\nContent-Length: 5", b"12345"),
        post(b"Content-Length: 5, 5", b"12345"),
        post(b"Content-Length : 5", b"12345"),
        post(b"Content-Length: +5", b"12345"),
        post(b"Content-Length:", b""),
        post(b"Content-Length: 9999999999999999999", b""),
        post(b"A: b\r\n Content-Length: 5", b"12345"),
        post(b"Transfer-Encoding: chunked", b"0\r\n\r\n"),
        post(b"Upgrade: websocket", b""),
    ],
)
def test_nothing_is_touched_when_the_next_request_is_not_certain(first):
    stream = Stream()
    stream.feed(first)
    assert stream.feed(GET) == GET


PIECES = st.sampled_from(
    [GET, b"GET ", b"/x?y", b"#", b'"', b">", b"\xc3\xa9", b" HTTP/1.1", b"\r\n", b"\r\n\r\n",
     b"\n",
     b"Host: x\r\n", b"Content-Length: ", b"content-length:3\r\n", b"3", b"12", b"abc",
     b"Transfer-Encoding: chunked\r\n", b"X: y\r\n", b"Cookie: ", b"%", b"\xe9\r\n",
     b" ", b"POST / HTTP/1.1\r\n"]
)  # fmt: skip


@given(
    st.lists(
        st.tuples(st.lists(PIECES, max_size=12).map(b"".join), st.integers(0, 40) | st.just(400))
    )
)
def test_any_bytes_are_treated_as_the_twin_does(received):
    ours, twin = Stream(), oracle.Stream(ENCODED_HEADER.encode())
    for chunk, more in received:
        if chunk:
            room = len(chunk) + more
            assert ours.feed(chunk, room) == twin.feed(chunk, room)


OPENS = (
    b"GET /realtime?token=x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\n\r\n"
)


@pytest.mark.parametrize(
    ("head", "opens"),
    [
        (OPENS, True),
        (OPENS.replace(b"?token=x", b""), True),
        (OPENS.replace(b"Upgrade: websocket", b"uPGRADE:h2c, WebSocket"), True),
        (OPENS.replace(b"websocket", b"h2c"), False),
        (OPENS.replace(b"Upgrade: w", b"Upgraded: w"), False),
        (OPENS.replace(b"/realtime?", b"/realtimes?"), False),
        (OPENS.replace(b"/realtime?", b"/realtime/publish?"), False),
        (OPENS.replace(b"GET", b"POST"), False),
        (OPENS.replace(b"Host: a", b"content-length: 0"), False),
        (OPENS.replace(b"Host: a", b"Transfer-Encoding: chunked"), False),
        (OPENS[:-2], False),
        (OPENS[:-1], False),
        (OPENS + b"\x81", False),
        (OPENS + OPENS, False),
        (OPENS.replace(b"token=x", b"token=" + b"x" * 17_000), False),
        (b"GET /realtime? HTTP/1.1\r\n\r\n", False),
        (b"GET /realtime?\r\n\r\n", False),
        (b"GET /realtime", False),
        (b"GET /realtime?", False),
        (b"", False),
    ],
)
def test_whole_requests_for_sockets_are_told_from_others(head, opens):
    assert opens_socket(head) == opens == oracle.opens_socket(head)


@given(
    st.lists(
        st.sampled_from(
            [b"GET /realtime", b"?", b" ", b"HTTP/1.1", b"\r\n", b"\r\n\r\n", b"\n", b"upgrade",
             b":", b"websocket", b"WebSocket", b"Content-Length", b"transfer-encoding", b"a"]
        ),
        max_size=14,
    )
)  # fmt: skip
def test_any_bytes_are_told_apart_as_the_oracle_does(parts):
    for head in (b"".join(parts), b"GET /realtime? HTTP/1.1\r\n" + b"".join(parts)):
        for whole in (head, head + b"\r\n\r\n"):
            assert opens_socket(whole) == oracle.opens_socket(whole)


def test_an_address_that_is_too_long_is_refused():
    assert not hand_over("/" + "x" * 108)


@pytest.fixture(scope="module")
def kept():
    """The bytes and the number of the body that come of a request to /kept/ of this process."""
    keep_bodies("/kept/")

    def feed(request, room=-1, stream=None):
        seen = (stream or Stream()).feed(request, room)
        _, found, rest = seen.partition(BODY_HEADER.encode() + b": ")
        return seen, rest.partition(b"\r\n")[0].decode() if found else None

    return feed


def to_kept(text, length=None, target=b"/kept/a"):
    head = b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
    return head % (target, len(text) if length is None else length) + text


def test_a_body_that_comes_with_its_head_is_kept_once(kept):
    stream = Stream()
    for text in (b"one", b"\0" * 16384):
        seen, number = kept(to_kept(text), 20000, stream)
        line = f"{BODY_HEADER}: {number}\r\n".encode()
        assert seen == to_kept(text).replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n", 1)
        assert body(number) == text
        assert body(number) is None


def test_a_body_of_a_target_that_is_encoded_is_kept(kept):
    seen, number = kept(to_kept(b"x", target=b"/kept/?a->>b=<c>"), 500)
    assert seen.startswith(b"POST /kept/?a-%3E%3Eb=%3Cc%3E HTTP/1.1\r\n")
    assert seen.endswith(b"\r\n\r\nx")
    assert body(number) == b"x"


@pytest.mark.parametrize(
    "request_",
    [
        to_kept(b""),
        to_kept(b"x" * 16385),
        to_kept(b"ab", length=3),
        to_kept(b"abc", length=2),
        to_kept(b"ab", target=b"/kept"),
        to_kept(b"ab", target=b"/other/kept/"),
        to_kept(b"ab").replace(b"POST", b"GET"),
        to_kept(b"ab").replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        to_kept(b"ab").replace(b"\r\n\r\n", b"\r\n" + b"a: b\r\n" * 70 + b"\r\n", 1),
    ],
)
def test_other_bodies_are_left_alone(kept, request_):
    assert kept(request_, 2 * len(request_)) == (request_, None)


def test_a_buffer_without_room_for_the_header_stays_as_it_is(kept):
    request = to_kept(b"ab")
    assert kept(request, len(request) + 8) == (request, None)


def test_bodies_that_nobody_takes_give_way(kept):
    first = kept(to_kept(b"first"), 500)[1]
    numbers = [kept(to_kept(b"%d" % n), 500)[1] for n in range(256)]
    assert body(first) is None
    assert [body(number) for number in numbers] == [b"%d" % n for n in range(256)]
