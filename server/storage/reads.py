"""Answers with the content of objects: who may read, which bytes, and under which headers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, quote

from ichicore.errors import ApiError
from server.base.http import Headers, Request, Response
from server.storage import paths
from server.storage.catalog import SMALL, Entry, Hot
from server.storage.conditions import Range, ranges, unmodified
from server.storage.inputs import essence
from server.storage.room import Room, Tenant
from server.storage.stores import Store, StoreError, away

log = logging.getLogger("ichibase.storage")
NOSNIFF = ("x-content-type-options", "nosniff")
ANYONE = ("access-control-allow-origin", "*")
EXPOSED = (
    "access-control-expose-headers",
    "Content-Length, Content-Range, Content-Disposition, ETag, Last-Modified, Accept-Ranges",
)
EMBEDDED = ("cross-origin-resource-policy", "cross-origin")
NO_STORE = ("cache-control", "no-store")
# What a page made of a file may do: show itself. No scripts, no forms, no part in our origin.
HARMLESS = (
    "content-security-policy",
    "default-src 'none'; img-src 'self' data:; media-src 'self' data:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; form-action 'none'; frame-ancestors *; sandbox",
)
# Types that a browser shows without running what is in them; all others are sent as HARMLESS.
PASSIVE = frozenset({
    "application/json", "application/octet-stream", "application/pdf", "application/wasm",
    "application/zip", "text/css", "text/csv", "text/plain",
})  # fmt: skip
PASSIVE_KINDS = ("audio/", "font/", "video/")
PREFLIGHT_SECONDS = "86400"
MEMORY = 1 << 20  # bytes of an answer that may be made in memory


def harmless(content_type: str) -> bool:
    """Whether a file of this type can be opened in a browser without running anything."""
    kind = essence(content_type)
    return (
        kind in PASSIVE
        or kind.startswith(PASSIVE_KINDS)
        or (kind.startswith("image/") and "svg" not in kind and "xml" not in kind)
    )


def preflight() -> Response:
    """What a page of any origin hears before it reads a public file with headers of its own."""
    return Response(
        204,
        [
            ANYONE,
            ("access-control-allow-methods", "GET, HEAD, OPTIONS"),
            ("access-control-allow-headers", "range, if-range, if-none-match, if-modified-since"),
            ("access-control-max-age", PREFLIGHT_SECONDS),
            ("cache-control", f"public, max-age={PREFLIGHT_SECONDS}"),
        ],
    )


def cacheable(tenant: Tenant, entry: Entry) -> int:
    """Seconds for which others may keep a public file."""
    seconds = entry.cache_seconds
    return tenant.settings.cache_seconds if seconds is None else seconds


def public_headers(tenant: Tenant, entry: Entry) -> Headers:
    """The headers of every answer with a public file."""
    if not entry.headers:
        entry.headers = [
            *described(entry), ANYONE, EXPOSED, EMBEDDED,
            ("cache-control", f"public, max-age={cacheable(tenant, entry)}"),
        ]  # fmt: skip
    return entry.headers


def described(entry: Entry) -> Headers:
    """The headers that tell of the file itself."""
    headers = [
        ("content-type", entry.content_type),
        NOSNIFF,
        ("etag", entry.etag),
        ("last-modified", entry.modified_text),
        ("accept-ranges", "bytes"),
    ]
    if not harmless(entry.content_type):
        headers.append(HARMLESS)
    return headers


def disposition(name: str) -> tuple[str, str]:
    """A download under this name, whatever is in it."""
    clean = "".join(c if c.isprintable() and c not in '/\\"' else "_" for c in name)[:200] or "file"
    plain = "".join(c if " " <= c <= "~" and c not in "%;" else "_" for c in clean)
    text = f'attachment; filename="{plain}"'
    if plain != clean:
        text += f"; filename*=UTF-8''{quote(clean, safe='')}"
    return "content-disposition", text


def query_of(request: Request) -> dict[str, str]:
    """The parameters of the query, the last of each; unknown ones mean nothing."""
    if not request.query:
        return {}
    try:
        return dict(parse_qsl(request.query, keep_blank_values=True, max_num_fields=32))
    except ValueError:
        raise ApiError(400, "bad_request", "The query has too many parameters.") from None


async def public(room: Room, tenant: Tenant, request: Request, path: str) -> Response:
    """A read of the public bucket, by anyone."""
    try:
        query = query_of(request)
        entry = await room.find(tenant, paths.PUBLIC, path)
        if entry is None:
            raise missing()
        headers = public_headers(tenant, entry)
        found = await answer(room, tenant, request, entry, path, headers, query.get("download"))
    except ApiError as error:
        error.headers = (*error.headers, ANYONE, EXPOSED, NO_STORE)
        raise
    if entry.size <= SMALL:
        _remember(room, tenant, request, entry)
    return found


def _remember(room: Room, tenant: Tenant, request: Request, entry: Entry) -> None:
    """Lets the gateway answer the next requests for a small file by itself."""
    body = room.catalog.bodies.get(entry.version)
    if body is None or not entry.until:
        return
    path = f"/{tenant.project.slug}{request.path}"
    host = request.headers.get("host", "")
    if room.is_cdn(host):
        room.catalog.note(path, Hot(entry, tenant, body, host))
    else:
        room.catalog.note(f"/cdn{path}", Hot(entry, tenant, body, None))


async def private(room: Room, tenant: Tenant, request: Request, bucket: str, path: str) -> Response:
    """A read with a token: it must be of this project and open this file."""
    query = query_of(request)
    token = query.get("token")
    if not token:
        raise ApiError(401, "missing_token", "Files of this bucket are read with a token.")
    now = time.time()
    grant = tenant.signer.open_read(token, now)
    opened = (
        paths.within(path, grant.path) if grant.recursive else path == grant.path
    ) and bucket == grant.bucket
    if not opened:
        raise ApiError(403, "forbidden", "The token does not open this file.")
    if grant.user_id is not None and room.revoked(tenant, grant.user_id, grant.iat):
        raise ApiError(401, "invalid_token", "The token has been revoked.")
    entry = await room.find(tenant, bucket, path)
    if entry is None:
        raise missing()
    rest = max(0, int(grant.exp - now))
    headers = [*described(entry), ("cache-control", f"private, max-age={rest}")]
    return await answer(room, tenant, request, entry, path, headers, query.get("download"))


async def trusted(room: Room, tenant: Tenant, request: Request, bucket: str, path: str) -> Response:
    """A read with the secret key."""
    query = query_of(request)
    entry = await room.find(tenant, bucket, path)
    if entry is None:
        raise missing()
    headers = [*described(entry), NO_STORE]
    return await answer(room, tenant, request, entry, path, headers, query.get("download"))


def missing() -> ApiError:
    return ApiError(404, "not_found", "There is no such file.")


async def answer(
    room: Room, tenant: Tenant, request: Request, entry: Entry, path: str, headers: Headers,
    download: str | None,
) -> Response:  # fmt: skip
    """The whole file, pieces of it, or the word that the client has it already."""
    given = request.headers
    if "service-worker" in given:
        raise ApiError(403, "forbidden", "A file cannot be a service worker of this origin.")
    if download is not None:
        headers = [*headers, disposition(download or path.rpartition("/")[2])]
    tenant.reads += 1
    if unmodified(given, entry.etag, entry.modified):
        return Response(304, [pair for pair in headers if pair[0] != "content-type"])
    if request.method == "HEAD":
        return Response(200, [*headers, ("content-length", str(entry.size))])
    pieces = ranges(given, entry.size, entry.etag, entry.modified) if "range" in given else None
    if pieces is None:
        tenant.egress += entry.size
        return await _piece(room, tenant, entry, Range(0, entry.size), 200, headers)
    if len(pieces) == 1:
        piece = pieces[0]
        tenant.egress += piece.end - piece.start
        text = f"bytes {piece.start}-{piece.end - 1}/{entry.size}"
        headers = [*headers, ("content-range", text)]
        return await _piece(room, tenant, entry, piece, 206, headers)
    return _several(room, tenant, entry, pieces, headers)


async def _piece(
    room: Room, tenant: Tenant, entry: Entry, piece: Range, status: int, headers: Headers
) -> Response:
    """One piece: out of memory, as the file it is, or streamed from the object store."""
    length = piece.end - piece.start
    project, store = tenant.project.id, room.store
    if entry.size <= SMALL:
        body = await small(room, project, entry)
        return Response(status, headers, body[piece.start : piece.end])
    try:
        path = store.file(project, entry.version)
        if path is not None:
            file = (path, piece.start, length)
            return Response(status, headers, file=file, unsent=room.unsent(tenant))
        if length <= MEMORY:
            data = await store.read(project, entry.version, piece.start, piece.end)
            return Response(status, headers, data)
    except FileNotFoundError:
        raise lost(tenant, entry) from None
    except StoreError as error:
        log.warning("reading a blob of project %s failed: %s", project, error)
        raise away() from None
    headers = [*headers, ("content-length", str(length))]
    stream = Pieces(store, project, entry.version, [(b"", piece)], b"")
    await stream.begin(tenant, entry)
    return Response(status, headers, stream=stream)


async def small(room: Room, project: str, entry: Entry) -> bytes:
    """The content of a small file, kept in memory for those who ask next."""
    bodies = room.catalog.bodies
    body = bodies.get(entry.version)
    if body is None:
        try:
            body = await room.store.read(project, entry.version, 0, entry.size)
        except FileNotFoundError:
            raise _lost(project, entry) from None
        except (StoreError, OSError) as error:
            log.warning("reading a blob of project %s failed: %s", project, error)
            raise away() from None
        bodies.put(entry.version, body)
    return body


def lost(tenant: Tenant, entry: Entry) -> ApiError:
    return _lost(tenant.project.id, entry)


def _lost(project: str, entry: Entry) -> ApiError:
    """Its record is there and its content is not: `ichibase storage reconcile` tells of these."""
    log.error("project %s: the blob %s is missing from the store", project, entry.version)
    return ApiError(404, "content_missing", "The content of this file is missing.")


def _several(
    room: Room, tenant: Tenant, entry: Entry, pieces: list[Range], headers: Headers
) -> Response:
    """Several pieces as multipart/byteranges."""
    mark = secrets.token_hex(16)
    parts: list[tuple[bytes, Range]] = []
    for piece in pieces:
        head = (
            f"\r\n--{mark}\r\ncontent-type: {entry.content_type}\r\n"
            f"content-range: bytes {piece.start}-{piece.end - 1}/{entry.size}\r\n\r\n"
        )
        parts.append((head.encode(), piece))
    stream = Pieces(
        room.store, tenant.project.id, entry.version, parts, f"\r\n--{mark}--\r\n".encode()
    )
    tenant.egress += stream.size
    headers = [pair for pair in headers if pair[0] != "content-type"]
    headers += [
        ("content-type", f"multipart/byteranges; boundary={mark}"),
        ("content-length", str(stream.size)),
    ]
    return Response(206, headers, stream=stream)


class Pieces:
    """A body of known `size`: pieces of one blob, each after a text of its own, then an end."""

    def __init__(
        self, store: Store, project: str, version: str, parts: list[tuple[bytes, Range]], end: bytes
    ) -> None:
        self.store = store
        self.project = project
        self.version = version
        self.parts = parts
        self.end = end
        self.size = len(end) + sum(len(head) + r.end - r.start for head, r in parts)
        self._begun: AsyncIterator[bytes] | None = None
        self._first = b""

    async def begin(self, tenant: Tenant, entry: Entry) -> None:
        """Reads the first chunk, so that a store that fails is told with a status."""
        self._begun = self._all()
        try:
            self._first = await asyncio.wait_for(anext(self._begun), 30)
        except FileNotFoundError:
            raise lost(tenant, entry) from None
        except (StoreError, TimeoutError, StopAsyncIteration) as error:
            log.warning("reading a blob of project %s failed: %s", self.project, error)
            raise away() from None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        begun = self._begun
        if begun is None:
            begun = self._all()
        else:
            yield self._first
        async for chunk in begun:
            yield chunk

    async def _all(self) -> AsyncIterator[bytes]:
        for head, piece in self.parts:
            if head:
                yield head
            async for chunk in self.store.stream(
                self.project, self.version, piece.start, piece.end
            ):
                yield chunk
        if self.end:
            yield self.end
