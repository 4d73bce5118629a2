"""The admin port's routes of the auth service: the outbox of development, and signing keys.

They run in the admin server's process, which has no worker's pools: each opens a connection of its
own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import jwt
import msgspec
import orjson
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor

from ichicore.errors import ApiError
from server.auth import outbox, tokens
from server.base import migrations
from server.base.project import Project
from server.control.api import AdminApi
from server.control.projects import audit
from server.control.routes import AdminRequest, AdminResponse, Router

SPREAD_SECONDS = 2.0  # a worker reads a changed project within this time
TOUCH = "update projects set changed_at = now() where id = $1"  # new keys alone announce nothing


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """algorithm: HS256, ES256, RS256 or EdDSA."""

    algorithm: str = "ES256"


def register(router: Router, api: AdminApi) -> None:
    """Adds the routes below to the admin server."""
    rooms = _Routes(api)
    base = "/admin/v1/projects/{project}"
    router.add("GET", "/outbox", rooms.page, "The outbox as a page", public=True)
    router.add("GET", f"{base}/outbox", rooms.list, "Messages that were not sent, newest first")
    router.add("DELETE", f"{base}/outbox", rooms.clear, "Empty the outbox")
    router.add("GET", f"{base}/keys", rooms.keys, "Signing keys, without their secrets")
    router.add("POST", f"{base}/keys/rotate", rooms.rotate, "Sign with a new key", body=Rotation)
    router.add("DELETE", f"{base}/keys/{{kid}}", rooms.drop, "Forget a retired signing key")


class _Routes:
    def __init__(self, api: AdminApi) -> None:
        self.api = api

    async def page(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(text=PAGE.encode(), content_type="text/html; charset=utf-8")

    async def list(self, request: AdminRequest) -> AdminResponse:
        limit = request.query.get("limit", "100")
        if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit) <= 500:
            raise ApiError(400, "bad_request", "limit is between 1 and 500.")
        connection = await self._database(request)
        async with connection:
            rows = await (
                await connection.execute(outbox.LIST, (request.query.get("to"), int(limit)))
            ).fetchall()
        return AdminResponse(value={"messages": [orjson.loads(row[0]) for row in rows]})

    async def clear(self, request: AdminRequest) -> AdminResponse:
        connection = await self._database(request)
        async with connection:
            done = await connection.execute(outbox.CLEAR)
        return AdminResponse(value={"deleted": done.rowcount})

    async def keys(self, request: AdminRequest) -> AdminResponse:
        _, project = await self.api.record(request)
        return AdminResponse(value={"keys": _shown(project)})

    async def rotate(self, request: AdminRequest) -> AdminResponse:
        """The key before stays to verify what it has signed. All workers learn of the new one
        before any signs with it."""
        wanted = request.decode(Rotation)
        try:
            key = tokens.new_signing_key(wanted.algorithm)
        except ValueError as error:
            raise ApiError(400, "bad_request", f"{error}.") from None
        _, project = await self.api.record(request)
        async with self.api.projects.control() as control:
            async with control.transaction():
                await control.execute(
                    "insert into project_keys (project_id, kid, algorithm, secret, current)"
                    " values ($1, $2, $3, $4, false)",
                    (project.id, key.kid, key.algorithm, key.secret),
                )
                await control.execute(TOUCH, (project.id,))
            await asyncio.sleep(SPREAD_SECONDS)
            async with control.transaction():
                await control.execute(
                    "update project_keys set current = false where project_id = $1 and current",
                    (project.id,),
                )
                await control.execute(
                    "update project_keys set current = true where project_id = $1 and kid = $2",
                    (project.id, key.kid),
                )
                detail = {"kid": key.kid, "algorithm": key.algorithm}
                await audit(control, "admin", "keys.rotate", project.slug, detail)
        _, project = await self.api.record(request)
        return AdminResponse(201, {"keys": _shown(project)})

    async def drop(self, request: AdminRequest) -> AdminResponse:
        _, project = await self.api.record(request)
        kid = request.params["kid"]
        key = next((key for key in project.keys if key.kid == kid), None)
        if key is None:
            raise ApiError(404, "key_not_found", "The project has no such key.")
        if key.current:
            raise ApiError(409, "conflict", "This key signs now; rotate first.")
        if kid in _api_key_ids(project):
            raise ApiError(409, "conflict", "The project's API keys are signed with this key.")
        async with self.api.projects.control() as control, control.transaction():
            await control.execute(
                "delete from project_keys where project_id = $1 and kid = $2 and not current",
                (project.id, kid),
            )
            await audit(control, "admin", "keys.delete", project.slug, {"kid": kid})
        return AdminResponse(value={"deleted": True})

    async def _database(self, request: AdminRequest) -> AsyncConnection[tuple[Any, ...]]:
        """The project's own database under the system login, its schema up to date."""
        _, project = await self.api.record(request)
        if project.system_dsn is None:
            raise ApiError(404, "auth_not_enabled", "The project has no database for its users.")
        try:
            await migrations.apply_async(project.system_dsn, ("server.auth", "auth"))
            return await AsyncConnection.connect(
                project.system_dsn,
                autocommit=True,
                cursor_factory=AsyncRawCursor,
                connect_timeout=10,
            )
        except psycopg.OperationalError:
            raise ApiError(
                503, "unavailable", "The project's database does not answer.",
                headers=(("retry-after", "2"),),
            ) from None  # fmt: skip


def _api_key_ids(project: Project) -> set[str | None]:
    found = set()
    for key in (project.anon_key, project.service_key):
        token = key.removeprefix("ich_pub_").removeprefix("ich_admin_")
        found.add(jwt.get_unverified_header(token).get("kid"))
    return found


def _shown(project: Project) -> list[dict[str, Any]]:
    used = _api_key_ids(project)
    return [
        {
            "kid": key.kid, "algorithm": key.algorithm, "current": key.current,
            "signs_api_keys": key.kid in used, "public": tokens.public_jwk(key),
        }
        for key in project.keys
    ]  # fmt: skip


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="content-security-policy"
 content="default-src 'none'; connect-src 'self'; style-src 'unsafe-inline';
 script-src 'unsafe-inline'">
<title>Outbox</title><style>
body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
article{border:1px solid #ccc;border-radius:6px;padding:.5rem 1rem;margin:1rem 0}
pre{white-space:pre-wrap}small{color:#666}input{font:inherit}
</style></head><body><h1>Outbox</h1>
<p>Messages that this node would have sent if the project had a mail server or an SMS webhook.</p>
<form><input name="project" placeholder="project" value="default" required>
<input name="token" type="password" placeholder="admin token" required>
<button>Show</button></form><main></main><script>
const form = document.querySelector("form"), list = document.querySelector("main");
form.elements.token.value = sessionStorage.getItem("token") ?? "";
async function show() {
  const { project, token } = form.elements;
  const path = `/admin/v1/projects/${encodeURIComponent(project.value)}/outbox`;
  const answer = await fetch(path, { headers: { authorization: `Bearer ${token.value}` } });
  const found = await answer.json();
  list.replaceChildren();
  if (!answer.ok) { list.textContent = found.detail; return; }
  sessionStorage.setItem("token", token.value);
  if (!found.messages.length) list.textContent = "Nothing yet.";
  for (const one of found.messages) {
    const entry = document.createElement("article");
    const head = entry.appendChild(document.createElement("small"));
    head.textContent = `${one.at} ${one.channel} to ${one.to}`;
    if (one.subject) entry.appendChild(document.createElement("h3")).textContent = one.subject;
    const body = entry.appendChild(document.createElement("pre"));
    body.textContent = one.text;
    list.append(entry);
  }
}
form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
</script></body></html>
"""
