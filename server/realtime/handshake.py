"""The HTTP request that opens a socket, read and answered. Proxies and browsers write its headers
in more ways than one: `Connection: keep-alive, Upgrade` is Firefox's."""

from __future__ import annotations

import base64
import binascii
import hashlib
from urllib.parse import unquote_to_bytes

import orjson

from ichicore.errors import ApiError

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MAX_HEADERS = 100
MAX_HEAD = 16_384  # bytes; a Wire hands on one more of a longer request
REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip
SINGLE = {"host", "origin", "sec-websocket-key", "sec-websocket-version"}


def malformed(detail: str) -> ApiError:
    return ApiError(400, "bad_request", detail)


class Upgrade:
    """A request. path: without the query, still encoded. query: raw."""

    __slots__ = ("headers", "method", "path", "query")

    def __init__(self, head: bytes) -> None:
        """head: up to its empty line. ApiError 400."""
        try:
            lines = head.decode("ascii").split("\r\n")
        except UnicodeDecodeError:
            raise malformed("The request is not plain ASCII.") from None
        words = lines[0].split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise malformed("The request line is not HTTP/1.1.")
        self.method = words[0]
        self.path, _, self.query = words[1].partition("?")
        if len(lines) > MAX_HEADERS:
            raise malformed("The request has too many headers.")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise malformed("A header line is malformed.")
            name = name.lower()
            if name in headers:
                if name in SINGLE:
                    raise malformed(f"The header {name} is given more than once.")
                headers[name] += "," + value.strip()
            else:
                headers[name] = value.strip()
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            raise malformed("The request has a body.")
        self.headers = headers

    @property
    def token(self) -> str:
        """The query's token, decoded; ApiError 401 when there is none."""
        for pair in self.query.split("&"):
            name, _, value = pair.partition("=")
            if name == "token" and value:
                found = unquote_to_bytes(value.replace("+", " "))
                return found.decode("ascii", "replace")
        raise ApiError(401, "missing_token", "The query has no token.")

    def accept(self) -> bytes:
        """The answer that opens the socket; ApiError 400 or 426 when this is no request for one."""
        headers = self.headers
        if not _names(headers.get("upgrade"), "websocket") or not _names(
            headers.get("connection"), "upgrade"
        ):
            raise ApiError(
                426, "upgrade_required", "This is a WebSocket endpoint.",
                headers=(("upgrade", "websocket"),),
            )  # fmt: skip
        if headers.get("sec-websocket-version") != "13":
            raise ApiError(
                426, "upgrade_required", "The WebSocket version is 13.",
                headers=(("sec-websocket-version", "13"),),
            )  # fmt: skip
        key = headers.get("sec-websocket-key", "")
        try:
            good = len(base64.b64decode(key, validate=True)) == 16
        except (binascii.Error, ValueError):
            good = False
        if not good:
            raise malformed("The Sec-WebSocket-Key is not one.")
        answer = base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n"
        )


def _names(value: str | None, wanted: str) -> bool:
    """Whether a header's list of words has this one."""
    return value is not None and any(word.strip().lower() == wanted for word in value.split(","))


def answer(status: int, value: object, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A whole answer that ends the connection."""
    body = orjson.dumps(value)
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}"]
    lines += [f"{name}: {text}" for name, text in headers]
    lines += [
        "content-type: application/json", f"content-length: {len(body)}", "connection: close",
        "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1", "replace") + body


def refusal(error: ApiError) -> bytes:
    return answer(error.status, {"code": error.code, "detail": error.message}, error.headers)
