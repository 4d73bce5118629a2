"""How much a client may send: URL, headers, body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ichicore.errors import ApiError
from ichicore.http import lenient
from server.gateway.traffic import Traffic

MAX_URL = 32_768  # characters of path and query
MAX_HEADER_BYTES = 65_536
# What a client may still send of a request that has its answer, before the connection is closed.
PASSED = 256 << 20  # bytes
PASS_SECONDS = 30.0
SILENT_SECONDS = 3.0
MOST_PASSING = 256  # requests of one worker
# Headers that decide who is asking and what for: a value that is not plain ASCII, or a second
# one, is refused instead of being dropped or joined.
SINGLE = frozenset({"host", "authorization", "apikey", "content-length", "content-type", "origin"})
MEANINGFUL = SINGLE | {
    "accept", "accept-profile", "content-profile", "prefer", "range", "range-unit",
    "transfer-encoding", "x-request-id", "if-match", "if-none-match", "content-encoding",
    "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "upgrade",
}  # fmt: skip


def too_large(limit: int) -> ApiError:
    return ApiError(413, "payload_too_large", f"The body is larger than {limit} bytes.")


def cut_short() -> ApiError:
    return ApiError(400, "bad_request", "The body ended before its declared length.")


def broken_off() -> ApiError:
    return ApiError(
        400, "bad_request", "The chunked body broke off, or has trailers, which are not taken."
    )


def url_too_long() -> ApiError:
    return ApiError(414, "uri_too_long", f"The URL is longer than {MAX_URL} characters.")


def collect(raw: Any) -> dict[str, str]:
    """A server's header object as lower-case name > value; repeated headers joined with ", "
    (cookie with "; "). ApiError 400 for a second value or bytes that are not ASCII in a header
    that must have one plain value."""
    items = raw.items()
    headers = dict(items)
    if len(headers) != len(items):
        headers = {}
        for name, value in items:
            before = headers.get(name)
            if before is None:
                headers[name] = value
            elif name in SINGLE:
                raise ApiError(400, "bad_request", f"The header {name} is given more than once.")
            else:
                headers[name] = f"{before}{'; ' if name == 'cookie' else ', '}{value}"
    names = raw.keys()
    if len(names) != len(headers):
        for name in names:
            if name not in headers and name in MEANINGFUL:
                raise not_ascii(name)
    return headers


def not_ascii(name: str) -> ApiError:
    return ApiError(400, "bad_request", f"The header {name} is not plain ASCII.")


def beyond_ascii(headers: dict[str, str]) -> dict[str, bytes]:
    """Takes out the values with other bytes, of a request that came with ENCODED_HEADER, and puts
    right what was encoded besides. ApiError 400 where one decides what the request is for."""
    found = {}
    for name in set(headers.pop(lenient.ENCODED_HEADER).lower().replace(" ", "").split(",")):
        if name not in headers:
            continue
        value = lenient.decoded(headers[name])
        if value.isascii():
            headers[name] = value.decode()
        elif name in MEANINGFUL:
            raise not_ascii(name)
        else:
            found[name] = value
            del headers[name]
    return found


def check_headers(headers: dict[str, str]) -> None:
    """ApiError 431 when all headers together are too large."""
    total = sum(map(len, headers.values())) + sum(map(len, headers))
    if total > MAX_HEADER_BYTES:
        raise ApiError(431, "headers_too_large", "The request's headers are too large.")


def declared(headers: dict[str, str]) -> int | None:
    """The Content-Length, or None when there is none."""
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ApiError(400, "bad_request", "The Content-Length is not a number.")
    return int(text)


_passing = 0


async def let_pass(protocol: Any, headers: dict[str, str], traffic: Traffic | None) -> None:
    """Reads what comes of the body of a request that has its answer. The server closes a connection
    whose request was not read to its end; many clients, which send all before they read, would see
    that instead of the answer, or find it when they send the next request."""
    global _passing
    if _passing >= MOST_PASSING:
        return
    try:
        aiter(protocol)
    except RuntimeError:
        pass  # somebody has begun with it
    else:
        if "expect" in headers:
            return  # the client has waited for the answer
    _passing += 1
    try:
        loop = asyncio.get_running_loop()
        end, size = loop.time() + PASS_SECONDS, 0
        async with asyncio.timeout(SILENT_SECONDS) as silence:
            while size < PASSED:
                piece = await protocol.__anext__()
                size += len(piece)
                if traffic is not None:
                    await traffic.wait(len(piece))
                silence.reschedule(min(end, loop.time() + SILENT_SECONDS))
    except (StopAsyncIteration, TimeoutError, RuntimeError):
        pass  # that was all, or took too long
    finally:
        _passing -= 1


async def read_body(protocol: Any, headers: dict[str, str], limit: int) -> bytes:
    """The whole body, at most `limit` bytes."""
    length = declared(headers)
    if length is not None:
        if length > limit:
            raise too_large(limit)
        if length == 0:
            return b""
        try:
            body: bytes = await protocol()
        except RuntimeError:  # the client left, or sent what is no body
            raise cut_short() from None
        if len(body) != length:
            raise cut_short()
        return body
    return b"".join([chunk async for chunk in read_stream(protocol, headers, limit)])


async def read_stream(protocol: Any, headers: dict[str, str], limit: int) -> AsyncIterator[bytes]:
    """The body in chunks, at most `limit` bytes. A body that ends early raises at its end."""
    length = declared(headers)
    if length is not None and length > limit:
        raise too_large(limit)
    size = empty = 0
    async for chunk in protocol:
        if not chunk:
            empty += 1
            continue
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        yield chunk
    if length is not None:
        if size != length:
            raise cut_short()
    elif empty > 1 and "transfer-encoding" in headers:
        # The server ends a body that broke off like a whole one, but for a second empty chunk,
        # which trailers bring too: they are refused with it.
        raise broken_off()
