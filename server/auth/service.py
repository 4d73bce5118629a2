"""The auth service: routes, the key that every request needs, and what an error becomes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson

from ichicore.errors import ApiError
from server.auth import accounts, factors, housekeeping, landing, oauth, sessions, tokens, users
from server.auth import inputs as bodies
from server.auth.answers import json, raw_json
from server.auth.database import refusal
from server.auth.hashsocket import socket_path
from server.auth.passwords import Passwords
from server.auth.providers import Providers
from server.auth.room import Call, Room, log
from server.base.context import WorkerContext
from server.base.http import JSON, Request, Response, answered
from server.base.project import Project

T = TypeVar("T")
Handler = Callable[[Call], Awaitable[Response]]
UserHandler = Callable[[Call, str], Awaitable[Response]]
JWKS_SECONDS = 300


async def refresh(call: Call) -> Response:
    body = await bodies.read(call.request, bodies.RefreshToken)
    return json(200, await sessions.refresh(call, body.refresh_token))


async def logout(call: Call) -> Response:
    refusal = call.request.refusal
    if refusal is None:
        call.caller()
    raw = await call.request.read_body(bodies.MAX_BODY)
    body = bodies.decode(raw or b"{}", bodies.OptionalRefreshToken)
    if refusal is None:
        await sessions.logout(call, body.refresh_token)
    elif body.refresh_token is None or not await sessions.logout_late(call, body.refresh_token):
        raise refusal
    return json(200, {"logged_out": True})


async def logout_all(call: Call) -> Response:
    session_id, user_id = call.caller()
    await sessions.require_alive(call, session_id, user_id)
    count = await sessions.revoke_all(call, user_id, "logout_all")
    return json(200, {"logged_out": True, "sessions": count})


async def list_sessions(call: Call) -> Response:
    return raw_json(200, b'{"sessions":' + await sessions.listed(call) + b"}")


ROUTES: dict[str, dict[str, Handler]] = {
    "/signup": {"POST": accounts.signup},
    "/login": {"POST": accounts.login},
    "/refresh": {"POST": refresh},
    "/me": {"GET": accounts.me, "PATCH": accounts.update_me},
    "/logout": {"POST": logout},
    "/logout-all": {"POST": logout_all},
    "/change-password": {"POST": accounts.change_password},
    "/sessions": {"GET": list_sessions},
    "/password-reset/request": {"POST": accounts.request_reset},
    "/password-reset/confirm": {"POST": accounts.reset_by_token},
    "/password-reset/confirm-otp": {"POST": accounts.reset_by_code},
    "/verify-email": {"POST": accounts.verify_by_token},
    "/verify-email/otp": {"POST": accounts.verify_by_code},
    "/verify-email/resend": {"POST": accounts.resend},
    "/login/passwordless/request": {"POST": factors.request_passwordless},
    "/login/passwordless/verify": {"POST": factors.verify_passwordless},
    "/login/magic": {"POST": factors.verify_magic},
    "/login/2fa/verify": {"POST": factors.verify_twofa},
    "/login/2fa/magic": {"POST": factors.verify_twofa_link},
    "/login/phone/request": {"POST": factors.request_phone},
    "/login/phone/verify": {"POST": factors.verify_phone},
    "/oauth/exchange": {"POST": oauth.exchange},
}

ADMIN_ROUTES: dict[str, dict[str, Handler]] = {
    "/admin/users": {"GET": users.list_users, "POST": users.create_user},
    "/admin/invite": {"POST": users.invite},
    "/admin/generate-link": {"POST": users.generate_link},
    "/admin/audit": {"GET": users.events},
}

USER_ROUTES: dict[str, dict[str, UserHandler]] = {
    "": {"GET": users.get_user, "PATCH": users.update_user, "DELETE": users.delete_user},
    "sessions": {"GET": users.list_sessions},
    "logout": {"POST": users.logout_user},
    "impersonate": {"POST": users.impersonate},
}


class AuthService:
    """Mounted under /auth."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.providers = Providers(room.outbound)

    async def handle(self, request: Request) -> Response:
        return await answered(request, self._route, refusal, log)

    async def _route(self, request: Request) -> Response:
        path = request.path
        if request.refusal is not None and not self._logs_out_late(request):
            raise request.refusal
        handlers = ROUTES.get(path)
        if handlers is None:
            return await self._other(request, path)
        handler = _method(handlers, request.method)
        if request.refusal is None:
            _require_key(request)
        return await handler(await self._call(request))

    def _logs_out_late(self, request: Request) -> bool:
        """A client that logs out when its access token has expired still means it; the key and
        the refresh token say who it is."""
        apikey = request.headers.get("apikey")
        if request.path != "/logout" or request.method != "POST" or apikey is None:
            return False
        assert request.refusal is not None
        if request.refusal.code != "token_expired":
            return False
        return self.room.context.verify(request.project, apikey.strip()).uid is None

    async def _call(self, request: Request) -> Call:
        tenant = self.room.tenants.get(request.project.slug)
        if tenant is None or tenant.project is not request.project:
            tenant = await self.room.tenant(request.project)
        return Call(self.room, tenant, request)

    async def _other(self, request: Request, path: str) -> Response:
        if path == "/.well-known/jwks.json":
            _method({"GET": path}, request.method)
            return _jwks(request.project)
        if path == "/landing":
            _method({"GET": path}, request.method)
            return await landing.show(await self._call(request))
        if path.startswith("/sessions/") and path.endswith("/revoke"):
            _method({"POST": path}, request.method)
            _require_key(request)
            wanted = path.removeprefix("/sessions/").removesuffix("/revoke")
            await sessions.revoke_listed(await self._call(request), bodies.uuid(wanted))
            return json(200, {"revoked": True})
        parts = path.split("/")[1:]
        if parts[0] == "oauth" and len(parts) == 3 and parts[2] in ("authorize", "callback"):
            return await self._oauth(request, parts[1], parts[2])
        if parts[0] == "admin":
            return await self._admin(request, path, parts)
        raise _not_found()

    async def _oauth(self, request: Request, name: str, step: str) -> Response:
        """Opened by a browser on its way, so without a key."""
        if step == "authorize":
            _method({"GET": name}, request.method)
            return await oauth.authorize(await self._call(request), self.providers, name)
        _method({"GET": name, "POST": name}, request.method)
        return await oauth.callback(await self._call(request), self.providers, name)

    async def _admin(self, request: Request, path: str, parts: list[str]) -> Response:
        handlers = ADMIN_ROUTES.get(path)
        if handlers is not None:
            handler = _method(handlers, request.method)
            _require_secret(request)
            return await handler(await self._call(request))
        if parts[1:2] == ["users"] and len(parts) in (3, 4):
            found = USER_ROUTES.get(parts[3] if len(parts) == 4 else "")
            if found is not None:
                one = _method(found, request.method)
                _require_secret(request)
                return await one(await self._call(request), parts[2])
        raise _not_found()


def _method(handlers: dict[str, T], method: str) -> T:
    found = handlers.get(method)
    if found is None:
        raise ApiError(
            405, "method_not_allowed", f"This path takes {', '.join(handlers)}.",
            headers=(("allow", ", ".join(handlers)),),
        )  # fmt: skip
    return found


def _require_key(request: Request) -> None:
    if request.identity.key_role is None:
        raise ApiError(401, "missing_api_key", "Send the project's key in the header apikey.")


def _require_secret(request: Request) -> None:
    identity = request.identity
    if not identity.claims:
        _require_key(request)
    if identity.role != "service_role":
        raise ApiError(403, "forbidden", "This endpoint needs the project's secret key.")
    if identity.uid is not None:
        raise ApiError(403, "forbidden", "This endpoint takes no user token.")


def _not_found() -> ApiError:
    return ApiError(404, "not_found", "There is no such auth endpoint.")


def _jwks(project: Project) -> Response:
    cached = ("cache-control", f"public, max-age={JWKS_SECONDS}")
    return Response(200, [JSON, cached], orjson.dumps(tokens.jwks(project)))


async def create(context: WorkerContext) -> AuthService:
    """The service of one worker."""
    room = Room(context, Passwords(socket_path(context.config.data_dir)))
    context.directory.on_change(room.changed)
    keeper = housekeeping.Keeper(room)
    context.on_start.append(keeper.start)
    context.on_stop.append(keeper.stop)
    context.on_stop.append(room.close)
    return AuthService(room)
