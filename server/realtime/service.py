"""The realtime service of a worker: messages of the server, and sockets of the public port."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson

from ichicore.errors import ApiError
from server.base.context import WorkerContext
from server.base.http import Request, Response, json_response
from server.realtime import relay
from server.realtime.intake import Intake
from server.realtime.pace import Paces
from server.realtime.rules import CHANNEL, USER

MAX_BODY = 256 << 10
MAX_PAYLOAD = 128 << 10
MAX_USERS = 1_000
MAX_EVENT = 128


class Publish(msgspec.Struct):
    """Exactly one of user_id, user_ids and channel."""

    payload: msgspec.Raw
    event: str | None = None
    channel: str | None = None
    user_id: str | None = None
    user_ids: list[str] | None = None


class RealtimeService:
    """Mounted under /realtime."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.path = relay.socket_for_workers(context.config.data_dir)
        self.paces = Paces()
        self.intake = Intake()

    async def handle(self, request: Request) -> Response:
        if request.path == "/publish":
            if request.method != "POST":
                raise _method("POST")
            return await self._publish(request)
        if request.path in ("/", ""):
            raise ApiError(
                426, "upgrade_required", "This is a WebSocket endpoint.",
                headers=(("upgrade", "websocket"),),
            )  # fmt: skip
        raise ApiError(404, "not_found", "There is no such realtime endpoint.")

    async def websocket(self, request: Request, protocol: Any) -> None:
        """One socket, to its end."""
        if request.path not in ("/", ""):
            protocol.close(404)
            return
        delay = self.paces.opening(request.project.id, request.project.limits)
        if delay is None:
            protocol.close(429)
            return
        await asyncio.sleep(delay)
        await relay.relay(self.path, request, protocol, self.paces, self.intake)

    async def _publish(self, request: Request) -> Response:
        identity = request.identity
        if not identity.known:
            raise ApiError(401, "missing_api_key", "Send the project's secret key.")
        if identity.role != "service_role":
            raise ApiError(403, "forbidden", "Only the project's secret key may publish.")
        body = await request.read_body(MAX_BODY)
        message = _decode(body)
        delivered = await self.context.changes.publish(
            request.project.id, _channels(message), message.event, bytes(message.payload)
        )
        return json_response(202, {"delivered": delivered})


def _decode(body: bytes) -> Publish:
    try:
        orjson.loads(body)  # strict, where the typed decoder passes the payload unread
        message = msgspec.json.decode(body, type=Publish)
    except msgspec.ValidationError as error:
        raise ApiError(400, "bad_request", f"{error}.") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise ApiError(400, "bad_request", "The body is not valid JSON.") from None
    if len(bytes(message.payload)) > MAX_PAYLOAD:
        raise ApiError(413, "payload_too_large", f"A payload has at most {MAX_PAYLOAD} bytes.")
    if message.event is not None and len(message.event) > MAX_EVENT:
        raise ApiError(400, "bad_request", f"An event has at most {MAX_EVENT} characters.")
    return message


def _channels(message: Publish) -> list[str]:
    given = [message.channel, message.user_id, message.user_ids]
    if sum(value is not None for value in given) != 1:
        raise ApiError(400, "bad_request", "Give one of user_id, user_ids and channel.")
    if message.channel is not None:
        names = [message.channel]
    else:
        users = [message.user_id] if message.user_id is not None else message.user_ids or []
        if len(users) > MAX_USERS:
            raise ApiError(400, "bad_request", f"At most {MAX_USERS} users at a time.")
        names = list(dict.fromkeys(USER + user for user in users if user is not None))
    for name in names:
        if not CHANNEL.fullmatch(name):
            raise ApiError(
                400, "bad_request", "A channel has 1 to 128 letters, digits, _ : . and -."
            )
    return names


def _method(allowed: str) -> ApiError:
    return ApiError(
        405, "method_not_allowed", f"This path takes {allowed}.", headers=(("allow", allowed),)
    )


async def create(context: WorkerContext) -> RealtimeService:
    """The service of one worker."""
    return RealtimeService(context)
