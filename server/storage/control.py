"""The control calls: what an app's backend asks with the project's secret key."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import quote

import orjson

from ichicore.errors import ApiError
from server.base.http import JSON, Response
from server.storage import paths, uploads
from server.storage.database import DIGEST, ISO, statement, sure
from server.storage.inputs import LARGEST, Body, invalid
from server.storage.reads import missing
from server.storage.room import Room, Tenant
from server.storage.sweep import GRACE
from server.storage.tokens import etag

DAY = 86_400  # seconds; the longest life of a read token
END = "\U0010ffff"  # comes after every character that a path may have
PATH_CHARACTERS = "/-._~!$&'()*+,;=:@"  # that need no escape in a URL's path

REMOVE = statement("select removed, freed from storage.remove($1, $2, $3::boolean, $4::float8)")
# With the size of what is replaced: the statement sees the files as they were before it.
MOVE = statement(
    """select moved.size, (select size from storage.objects where bucket = $1 and path = $3)
    from storage.move($1, $2, $3, $4::float8) moved"""
)
HEAD = statement(
    f"""select size, content_type, {DIGEST}, {ISO.format("updated_at")},
      encode(sha256, 'hex'), id, owner_id
    from storage.objects where bucket = $1 and path = $2"""
)
LIST = statement(
    f"""select path, size, {DIGEST}, {ISO.format("updated_at")},
      content_type
    from storage.objects where bucket = $1 and path >= $2 and path < $3 and path > $4
    order by path limit $5::bigint"""
)


def answer(value: object) -> Response:
    return Response(200, [JSON, ("cache-control", "no-store")], orjson.dumps(value))


async def get_url(room: Room, tenant: Tenant, body: Body) -> Response:
    bucket, recursive = body.bucket(), body.flag("recursive")
    path = body.path(folder=recursive)
    user = body.text("user_id", 255) if body.has("user_id") else None
    seconds = body.whole("ttl_seconds", 1, DAY, tenant.settings.read_seconds)
    token, jti, exp = tenant.signer.read(
        bucket, path, recursive=recursive, user_id=user, seconds=seconds
    )
    cdn = room.context.config.cdn_url
    url = f"{cdn}/{tenant.project.slug}/{bucket}/{quote(path, safe=PATH_CHARACTERS)}"
    if bucket != paths.PUBLIC:
        url = f"{url}?token={token}"
    return answer({"url": url, "jti": jti, "exp": exp})


async def get_put_url(room: Room, tenant: Tenant, body: Body) -> Response:
    bucket, path, content_type = body.bucket(), body.path(), body.content_type()
    size = body.whole("content_length", 1, LARGEST)
    sha256, owner = body.sha256(), body.user_id()
    seconds = tenant.settings.upload_seconds
    id = await uploads.reserve(tenant, bucket, path, size, content_type, sha256, owner)
    token = tenant.signer.upload(id, bucket, path, size, content_type, seconds)
    return answer({"url": f"{tenant.project.url}/storage/put/{token}", "expires_in": seconds})


async def delete(room: Room, tenant: Tenant, body: Body) -> Response:
    bucket, recursive = body.bucket(), body.flag("recursive")
    path = body.path(folder=recursive)
    row = await tenant.database.row(REMOVE, bucket, path, recursive, GRACE, slow=recursive)
    count, freed = int(sure(row[0])), int(sure(row[1]))
    if count:
        room.used(tenant, -freed, -count)
        await room.changed(tenant, bucket, None if recursive else [path])
    told: dict[str, object] = {"deleted": count > 0, "bytes_freed": freed}
    if recursive:
        told["count"] = count
    return answer(told)


async def head(room: Room, tenant: Tenant, body: Body) -> Response:
    rows = await tenant.database.rows(HEAD, body.bucket(), body.path())
    if not rows:
        return answer({"exists": False})
    size, kind, tag, modified, sha256, id, owner = rows[0]
    return answer(
        {
            "exists": True, "size": int(sure(size)), "content_type": sure(kind),
            "etag": etag(sure(tag)), "last_modified": sure(modified),
            "sha256": sha256 and sure(sha256), "id": sure(id), "user_id": owner and sure(owner),
        }
    )  # fmt: skip


async def list_objects(room: Room, tenant: Tenant, body: Body) -> Response:
    bucket, prefix = body.bucket(), body.prefix()
    limit = body.whole("limit", 1, 1000, 100)
    after = _after(body.text("cursor")) if body.has("cursor") else ""
    rows = await tenant.database.rows(LIST, bucket, prefix, prefix + END, after, limit + 1)
    more = len(rows) > limit
    objects = [
        {
            "path": sure(path), "size": int(sure(size)), "etag": etag(sure(tag)),
            "last_modified": sure(modified), "content_type": sure(kind),
        }
        for path, size, tag, modified, kind in rows[:limit]
    ]  # fmt: skip
    cursor = _cursor(str(objects[-1]["path"])) if more else None
    return answer({"objects": objects, "cursor": cursor})


async def move(room: Room, tenant: Tenant, body: Body) -> Response:
    bucket, old, new = body.bucket(), body.path("from"), body.path("to")
    row = await tenant.database.row(MOVE, bucket, old, new, GRACE)
    if row[0] is None:
        raise missing()
    if row[1] is not None and old != new:
        room.used(tenant, -int(sure(row[1])), -1)
    await room.changed(tenant, bucket, [old, new])
    return answer({"moved": True, "size": int(sure(row[0]))})


def _cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")


def _after(cursor: str) -> str:
    try:
        return paths.path(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
    except (binascii.Error, ValueError):
        invalid("body/cursor must be a cursor of an earlier answer")


CALLS = {
    "/get-url": get_url,
    "/get-put-url": get_put_url,
    "/delete": delete,
    "/head": head,
    "/list": list_objects,
    "/move": move,
}


def not_found() -> ApiError:
    return ApiError(404, "not_found", "There is no such storage endpoint.")
