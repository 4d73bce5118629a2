"""Uploads: from the first byte to the moment the object is there, or nothing is left.

The blob's name is noted in the database before its first byte is written. The bytes go to the
store in batches, hashed on the way, and become the object's content in one transaction at the end;
whatever happens before leaves a note by which the sweep removes what was written.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import time
import uuid
from typing import Any, NamedTuple

import orjson

from ichicore.errors import ApiError
from server.base.http import JSON, Request, Response
from server.storage import inputs, paths
from server.storage.database import statement, sure
from server.storage.receive import ETAG, receive
from server.storage.room import UPLOADS, UPLOADS_OF_PROJECT, Room, Tenant, log
from server.storage.stores import Sink, StoreError, away, full
from server.storage.sweep import GRACE
from server.storage.tokens import etag, new_version

# An upload under way says so every BEAT seconds; without a word for LEASE seconds its process is
# taken for dead, and what it reserved and wrote is given back.
BEAT = 45.0
LEASE = 150.0
PENDING = 10_000  # upload URLs of one project that may be open at once

RESERVE = statement(
    """select outcome, most from storage.reserve($1::uuid, $2, $3, $4::bigint, $5, $6::bytea,
      $7::uuid, $8, $9::float8, $10::float8, $11::bigint, $12::bigint, $13::bigint)"""
)
RENEW = statement(
    """update storage.uploads set expires_at = now() + make_interval(secs => $3::float8)
    where id = $1::uuid and version = $2"""
)
BEGIN = statement(
    """select outcome, encode(wanted, 'hex')
    from storage.begin_upload($1::uuid, $2, $3::float8)"""
)
ABANDON = statement("select storage.abandon_upload($1::uuid, $2, $3::boolean)")
FINISH = statement(
    """select outcome, object_id, delta, created
    from storage.finish_upload($1::uuid, $2, $3::bytea, $4, $5::bigint, $6::float8)"""
)


class Upload(NamedTuple):
    """One attempt. id: of the reservation. sha256: what the content must have, or None.
    again: whether its URL may be used again after a failure."""

    id: str
    version: str
    bucket: str
    path: str
    size: int
    sha256: bytes | None
    again: bool


async def reserve(
    tenant: Tenant, bucket: str, path: str, size: int, content_type: str, sha256: bytes | None,
    owner: str | None, *, version: str | None = None,
) -> str:  # fmt: skip
    """Room for one upload under the quota and the bucket's rules; its id. version: of an upload
    that begins at once."""
    id = str(uuid.uuid4())
    seconds = tenant.settings.upload_seconds if version is None else LEASE
    tenant.dirty = True
    row = await tenant.database.row(
        RESERVE, id, bucket, path, size, content_type, sha256, owner, version,
        float(tenant.settings.upload_seconds), float(seconds), tenant.quota, PENDING,
        min(tenant.settings.file_size_limit or inputs.LARGEST, inputs.LARGEST),
    )  # fmt: skip
    outcome = sure(row[0])
    if outcome == "ok":
        return id
    if outcome == "too_large":
        raise ApiError(
            413, "file_too_large", f"Files of this bucket have at most {sure(row[1])} bytes."
        )
    if outcome == "type_refused":
        raise ApiError(415, "content_type_refused", "The bucket does not take files of this type.")
    if outcome == "too_many":
        raise ApiError(
            429, "too_many_uploads", "Too many uploads are open.", headers=(("retry-after", "60"),)
        )
    raise over_quota(sure(row[1]))


def over_quota(left: str | None = None) -> ApiError:
    rest = "" if left is None else f" A file of at most {left} bytes fits at this path."
    return ApiError(413, "storage_quota_exceeded", f"The project's storage is full.{rest}")


def declared(request: Request) -> int:
    """The length of the body, which every upload must declare."""
    text = request.headers.get("content-length")
    if text is None:
        raise ApiError(411, "length_required", "An upload declares its Content-Length.")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ApiError(400, "bad_request", "The Content-Length is not a number.")
    return int(text)


def digests(request: Request) -> list[tuple[str, bytes]]:
    """The checksums that the request's headers state: (algorithm, digest) each."""
    found = []
    for part in request.headers.get("content-digest", "").split(","):
        name, equals, value = part.strip().partition("=")
        if name.lower() == "sha-256" and equals:
            found.append(("sha256", _decoded(value.strip(": "), 32)))
    text = request.headers.get("content-md5")
    if text is not None:
        found.append(("md5", _decoded(text.strip(), 16)))
    return found


def _decoded(text: str, length: int) -> bytes:
    with contextlib.suppress(binascii.Error, ValueError):
        digest = base64.b64decode(text, validate=True)
        if len(digest) == length:
            return digest
    raise ApiError(400, "bad_request", "A checksum in the headers is not valid.")


async def put_signed(room: Room, tenant: Tenant, request: Request, token: str) -> Response:
    """PUT of an upload URL. What can be refused is refused before the body is read."""
    grant = tenant.signer.open_upload(token, time.time())
    _check_encoding(request)
    if declared(request) != grant.size:
        raise ApiError(
            400, "content_length_mismatch", f"This URL takes exactly {grant.size} bytes."
        )
    given = request.headers.get("content-type", "")
    if inputs.essence(given) != inputs.essence(grant.content_type):
        raise ApiError(
            415, "content_type_mismatch", f"This URL takes a file of type {grant.content_type}."
        )
    stated = digests(request)
    with _place(room, tenant):
        version = new_version()
        row = await tenant.database.row(BEGIN, grant.id, version, LEASE)
        outcome = sure(row[0])
        if outcome == "expired":
            raise ApiError(401, "token_expired", "The token has expired.")
        if outcome == "gone":
            raise ApiError(409, "upload_used", "This upload URL has been used.")
        if outcome == "busy":
            raise ApiError(409, "upload_in_progress", "An upload to this URL is under way.")
        wanted = bytes.fromhex(sure(row[1])) if row[1] is not None else None
        upload = Upload(grant.id, version, grant.bucket, grant.path, grant.size, wanted, again=True)
        return await _take(room, tenant, request, upload, stated)


async def put_direct(
    room: Room, tenant: Tenant, request: Request, bucket: str, path: str
) -> Response:
    """PUT with the secret key, without a URL minted before."""
    try:
        bucket, path = paths.bucket(bucket), paths.path(path)
    except (paths.PathError, UnicodeEncodeError) as error:
        raise ApiError(400, "invalid_path", f"The bucket or the path {error}.") from None
    _check_encoding(request)
    size = declared(request)
    given = request.headers.get("content-type") or "application/octet-stream"
    content_type = inputs.content_type(given)
    if content_type is None:
        raise ApiError(400, "bad_request", "The Content-Type is not a media type.")
    stated = digests(request)
    with _place(room, tenant):
        version = new_version()
        id = await reserve(tenant, bucket, path, size, content_type, None, None, version=version)
        upload = Upload(id, version, bucket, path, size, None, again=False)
        return await _take(room, tenant, request, upload, stated)


def _check_encoding(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content_encoding_refused", "Send the file as it is, not encoded.")
    if "content-range" in request.headers:
        raise ApiError(400, "bad_request", "A file is uploaded whole, not in ranges.")


@contextlib.contextmanager
def _place(room: Room, tenant: Tenant) -> Any:
    """One of the uploads that a worker and a project may have under way."""
    if room.uploads >= UPLOADS or tenant.uploads >= UPLOADS_OF_PROJECT:
        raise ApiError(
            503, "unavailable", "Too many uploads are under way.", headers=(("retry-after", "5"),)
        )
    room.uploads += 1
    tenant.uploads += 1
    try:
        yield
    finally:
        room.uploads -= 1
        tenant.uploads -= 1


async def _take(
    room: Room, tenant: Tenant, request: Request, upload: Upload, stated: list[tuple[str, bytes]]
) -> Response:
    """Receives, stores and publishes; or leaves nothing."""
    project = tenant.project.id
    sink = room.store.sink(project, upload.version, upload.size)
    asked = False  # whether the database may have made the blob an object
    committing: asyncio.Task[None] | None = None
    beating = asyncio.get_running_loop().create_task(_beat(tenant, upload))
    try:
        if upload.sha256 is not None:
            stated = [*stated, ("sha256", upload.sha256)]
        algorithms = [ETAG, *{name for name, _ in stated}]
        body = request.read_batches()
        digests = await receive(room.turns, room.store, body, upload.size, sink, algorithms)
        if any(digests[name] != expected for name, expected in stated):
            raise ApiError(
                400, "checksum_mismatch", "The content does not have the stated checksum."
            )
        sha256, tag = digests.get("sha256"), digests[ETAG].hex()
        committing = room.spawn(sink.commit())
        await asyncio.shield(committing)
        asked = True
        row = await tenant.database.row(
            FINISH, upload.id, upload.version, sha256, tag, tenant.quota, GRACE
        )
    except BaseException as error:
        # Its client may be gone and this task cancelled: the cleaning is a task of its own.
        cleaning = room.spawn(_give_up(tenant, upload, None if asked else sink, committing))
        if isinstance(error, asyncio.CancelledError):
            raise
        await asyncio.shield(cleaning)
        if isinstance(error, OSError):
            log.warning("an upload of project %s failed: %s", project, error)
            raise (full() if error.errno in (errno.ENOSPC, errno.EDQUOT) else away()) from None
        if isinstance(error, StoreError):
            log.warning("an upload of project %s failed: %s", project, error)
            raise away() from None
        raise
    finally:
        beating.cancel()
    tenant.dirty = True
    outcome = sure(row[0])
    if outcome == "over_quota":
        raise over_quota()
    if outcome == "gone":
        raise ApiError(408, "upload_timeout", "The upload took too long.")
    room.used(tenant, int(sure(row[2])), 1 if row[3] == b"t" else 0)
    await room.changed(tenant, upload.bucket, [upload.path])
    tag = etag(tag)
    told = {
        "id": sure(row[1]), "bucket": upload.bucket, "path": upload.path, "size": upload.size,
        "etag": tag, "sha256": sha256 and sha256.hex(),
    }  # fmt: skip
    return Response(200, [JSON, ("etag", tag), ("cache-control", "no-store")], orjson.dumps(told))


async def _beat(tenant: Tenant, upload: Upload) -> None:
    while True:
        await asyncio.sleep(BEAT)
        try:
            await tenant.database.rows(RENEW, upload.id, upload.version, LEASE)
        except Exception as error:
            log.warning("an upload could not say that it is under way: %s", error)


async def _give_up(
    tenant: Tenant, upload: Upload, sink: Sink | None, committing: asyncio.Task[None] | None
) -> None:
    """Leaves nothing of an upload. sink: None once the database was asked to publish the blob,
    for then only the database knows whether it is an object's content. committing: what must end
    first."""
    tenant.dirty = True
    if committing is not None:
        await asyncio.wait([committing])
    if sink is not None:
        try:
            await sink.abort()
        except (OSError, StoreError) as error:
            log.warning("what is left of an upload waits for the sweep: %s", error)
    try:
        await tenant.database.rows(ABANDON, upload.id, upload.version, upload.again)
    except Exception as error:
        log.warning("a reservation waits until it runs out: %s", error)
