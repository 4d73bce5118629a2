"""One HTTP request and its answer, as every service sees them; the HTTP server stays hidden."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import msgspec
import orjson

from ichicore.errors import ApiError
from server.base.batches import Batches, StreamBatches

if TYPE_CHECKING:
    from server.base.project import Identity, Project

Headers = list[tuple[str, str]]


class Request:
    """A request routed to a service.

    method: upper case. path: decoded, from the service's prefix on ("/todos" for
    /postgres/todos). query: raw, still percent-encoded, without "?". headers: lower-case name to
    value; a repeated header is joined with ", ". base_url: scheme and host the client used, no
    trailing slash. peer: client address. id: request id. read_body(limit) reads it whole, at most
    `limit` bytes (ApiError 413 beyond); read_stream(limit) yields chunks and may be used once, as
    may read_batches(), for bodies of declared length that are large.
    beyond_ascii: the headers with other bytes than ASCII, which `headers` has not.
    refusal: on routes that may be open to all (/functions), why the credentials presented are not
    valid; the identity is then NOBODY.
    """

    __slots__ = (
        "base_url",
        "beyond_ascii",
        "gone",
        "headers",
        "id",
        "identity",
        "method",
        "path",
        "peer",
        "project",
        "query",
        "read_body",
        "read_stream",
        "refusal",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        *,
        project: Project,
        identity: Identity,
        base_url: str,
        peer: str,
        id: str,
        read_body: Callable[[int], Awaitable[bytes]],
        read_stream: Callable[[int], AsyncIterator[bytes]],
        gone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.project = project
        self.identity = identity
        self.base_url = base_url
        self.peer = peer
        self.id = id
        self.read_body = read_body
        self.read_stream = read_stream
        self.gone = gone
        self.refusal: ApiError | None = None
        self.beyond_ascii: dict[str, bytes] | None = None

    def read_batches(self) -> Batches:
        return StreamBatches(self.read_stream(int(self.headers["content-length"])))


class Response:
    """What a service answers. Exactly one of body, stream and file is used.

    headers: lower-case names, any number of each. stream: an asynchronous iterable of bytes,
    written with back-pressure and closed; one with `path` and `size` is sent as the file it is,
    one with `size` alone has that many bytes, and the headers tell it.
    file: (path, offset, length) of a file on this machine. unsent: is told the bytes that a client
    of a large one did not get because it left.
    """

    __slots__ = ("body", "file", "headers", "status", "stream", "unsent")

    def __init__(
        self,
        status: int,
        headers: Headers | None = None,
        body: bytes = b"",
        *,
        stream: AsyncIterable[bytes] | None = None,
        file: tuple[str, int, int] | None = None,
        unsent: Callable[[int], None] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers if headers is not None else []
        self.body = body
        self.stream = stream
        self.file = file
        self.unsent = unsent


class Service(Protocol):
    """What is mounted under a route prefix."""

    async def handle(self, request: Request) -> Response: ...


JSON = ("content-type", "application/json")


def json_response(status: int, value: object, headers: Headers | None = None) -> Response:
    """A JSON answer of plain values or msgspec structs."""
    body = orjson.dumps(value, default=msgspec.to_builtins)
    return Response(status, [JSON, *(headers or [])], body)


def error_response(error: ApiError) -> Response:
    """The {"code","detail"} body of the project's own services (not of /postgres)."""
    return json_response(
        error.status, {"code": error.code, "detail": error.message}, list(error.headers)
    )


async def answered(
    request: Request,
    work: Callable[[Request], Awaitable[Response]],
    refusal: Callable[[Exception], ApiError | None],
    log: logging.Logger,
    refused: Callable[[ApiError], Response] = error_response,
) -> Response:
    """The answer, also to what cannot be served. refusal: what an exception means to the client;
    None for what must not happen, which is raised. refused: makes the answer of an ApiError."""
    try:
        return await work(request)
    except ApiError as error:
        return refused(error)
    except Exception as error:
        known = refusal(error)
        if known is None:
            raise
        if known.status >= 500:
            log.warning("project %s: %s", request.project.slug, error)
        return error_response(known)
