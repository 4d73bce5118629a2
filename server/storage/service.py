"""The storage service: control calls and uploads under /storage, reads under /cdn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ichicore.errors import ApiError
from server.base.context import WorkerContext
from server.base.http import Request, Response, answered, error_response
from server.storage import control, inputs, paths, reads, uploads
from server.storage.database import refusal
from server.storage.inputs import Body
from server.storage.room import Room, log, room_of

PUT = "/put/"
OBJECT = "/object/"


async def _answered(request: Request, work: Callable[[Request], Awaitable[Response]]) -> Response:
    return await answered(request, work, refusal, log, _refused)


def _refused(error: ApiError) -> Response:
    if error.code == inputs.VALIDATION:
        return inputs.validation_response(error)
    return error_response(error)


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise ApiError(
            405, "method_not_allowed", f"This path takes {allowed}.", headers=(("allow", allowed),)
        )


def _require_secret(request: Request) -> None:
    """Only the project's secret key may control files: a client would mint for others."""
    identity = request.identity
    if not identity.claims:
        raise ApiError(
            401, "missing_api_key", "This endpoint needs the project's secret key.",
            headers=(("www-authenticate", "Bearer"),),
        )  # fmt: skip
    if identity.role != "service_role" or identity.uid is not None:
        raise ApiError(403, "service_key_required", "This endpoint needs the project's secret key.")


class StorageService:
    """Mounted under /storage."""

    def __init__(self, room: Room) -> None:
        self.room = room

    async def handle(self, request: Request) -> Response:
        return await _answered(request, self._route)

    async def _route(self, request: Request) -> Response:
        path = request.path
        if path.startswith(PUT):
            _only(request, "PUT")
            tenant = await self.room.tenant(request.project)
            return await uploads.put_signed(self.room, tenant, request, path[len(PUT) :])
        call = control.CALLS.get(path)
        if call is not None:
            _only(request, "POST")
            _require_secret(request)
            body = await Body.read(request)
            return await call(self.room, await self.room.tenant(request.project), body)
        if path.startswith(OBJECT):
            _only(request, "GET", "HEAD", "PUT")
            _require_secret(request)
            bucket, _, rest = path[len(OBJECT) :].partition("/")
            tenant = await self.room.tenant(request.project)
            if request.method == "PUT":
                return await uploads.put_direct(self.room, tenant, request, bucket, rest)
            bucket, rest = _place(bucket, rest)
            return await reads.trusted(self.room, tenant, request, bucket, rest)
        raise control.not_found()


class CdnService:
    """Mounted under /cdn and at the host of public files; the path is /<bucket>/<path>."""

    def __init__(self, room: Room) -> None:
        self.room = room

    async def handle(self, request: Request) -> Response:
        return await _answered(request, self._route)

    async def _route(self, request: Request) -> Response:
        bucket, _, path = request.path[1:].partition("/")
        if request.method == "OPTIONS" and "origin" in request.headers:
            return reads.preflight() if bucket == paths.PUBLIC else Response(204)
        _only(request, "GET", "HEAD")
        bucket, path = _place(bucket, path)
        tenant = await self.room.tenant(request.project)
        if bucket == paths.PUBLIC:
            return await reads.public(self.room, tenant, request, path)
        return await reads.private(self.room, tenant, request, bucket, path)


def _place(bucket: str, path: str) -> tuple[str, str]:
    """Bucket and path of a URL, in the form in which they are kept."""
    try:
        return paths.bucket(bucket), paths.path(path)
    except (paths.PathError, UnicodeEncodeError) as error:
        raise ApiError(400, "invalid_path", f"The bucket or the path {error}.") from None


async def create(context: WorkerContext) -> StorageService:
    """The control calls and uploads of one worker."""
    return StorageService(room_of(context))


async def create_cdn(context: WorkerContext) -> CdnService:
    """The reads of one worker."""
    return CdnService(room_of(context))
