"""The admin port's routes of edge functions; the functions process does the work."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ichicore.errors import ApiError
from server.base.functions import Link, socket_path, told_project
from server.control.api import AdminApi
from server.control.projects import audit
from server.control.routes import AdminRequest, AdminResponse, Router

MAX_LINES = 1_000
LONGEST = 180.0  # seconds of an answer: a build waits for its turn


class Base64(msgspec.Struct, forbid_unknown_fields=True):
    base64: str


class Deploy(msgspec.Struct, forbid_unknown_fields=True):
    """files: path to text, or to {"base64": ...}. auth: key, user or none. outbound: hosts that
    the function may reach, null for all public ones. update: newest dependencies that the imports
    allow, in place of those of the version before. schedule: when it runs by itself, cron's five
    fields in UTC or such as "every 10 minutes"."""

    files: dict[str, str | Base64]
    entrypoint: str | None = None
    auth: str = "key"
    outbound: list[str] | None = None
    update: bool = False
    schedule: str | list[str] | None = None


class Rollback(msgspec.Struct, forbid_unknown_fields=True):
    """version: a kept one; null is the one before."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2_147_483_647)] | None = None


class Secrets(msgspec.Struct, forbid_unknown_fields=True):
    """values: name to value."""

    values: dict[str, str]


class Deployed(msgspec.Struct):
    name: str
    version: int
    auth: str
    outbound: list[str] | None
    bytes: int
    entrypoint: str
    schedule: list[str] | None


class SecretName(msgspec.Struct):
    name: str
    changed_at: str


class SecretNames(msgspec.Struct):
    """Values are never shown."""

    secrets: list[SecretName]


class Lines(msgspec.Struct):
    """last: ask with ?after= this number for what follows."""

    lines: list[dict[str, Any]]
    last: int


def register(router: Router, api: AdminApi) -> None:
    """Adds the routes below to the admin server."""
    routes = _Routes(api)
    base = "/admin/v1/projects/{project}/functions"
    one, secrets = base + "/{name}", "/admin/v1/projects/{project}/secrets"
    add = router.add
    add("GET", base, routes.list, "Deployed functions")
    add("PUT", one, routes.deploy, "Deploy a function", body=Deploy, result=Deployed)
    add("DELETE", one, routes.delete, "Delete a function with its versions")
    add("GET", one + "/versions", routes.versions, "Versions that are kept, newest first")
    add("POST", one + "/rollback", routes.rollback, "Serve a kept version again", body=Rollback)
    add("GET", "/admin/v1/projects/{project}/function-logs", routes.logs,
        "Log lines, the newest or those after a number; ?function=, ?invocation=, ?after=, "
        "?limit=, ?wait= seconds",
        result=Lines)  # fmt: skip
    add("GET", secrets, routes.secrets, "Names of the secrets", result=SecretNames)
    add("PUT", secrets, routes.set_secrets, "Set secrets", body=Secrets, result=SecretNames)
    add("DELETE", secrets + "/{name}", routes.unset_secret, "Delete a secret")
    add("GET", "/admin/v1/functions", routes.state, "Isolation in force, running processes")


class _Routes:
    def __init__(self, api: AdminApi) -> None:
        self.api = api
        self._link = Link(socket_path(api.projects.config.data_dir))

    async def _call(self, op: str, request: AdminRequest, **fields: Any) -> dict[str, Any]:
        _, project = await self.api.record(request)
        found = await self._link.call(op, LONGEST, project=project.id, **fields)
        found.pop("id", None)
        return found

    async def _audit(self, request: AdminRequest, action: str, detail: dict[str, Any]) -> None:
        async with self.api.projects.control() as control:
            await audit(control, "admin", action, request.params["project"], detail)

    async def list(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=await self._call("list", request))

    async def deploy(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Deploy)
        _, project = await self.api.record(request)
        told = told_project(project)
        found = await self._call(
            "deploy", request, name=request.params["name"], told=told,
            files=msgspec.to_builtins(wanted.files), entrypoint=wanted.entrypoint,
            auth=wanted.auth, outbound=wanted.outbound, update=wanted.update,
            bundle=told["bundle"], functions=told["functions"], schedule=wanted.schedule,
            schedules=project.limits.schedules, schedule_seconds=project.limits.schedule_seconds,
        )  # fmt: skip
        detail = {"name": found["name"], "version": found["version"]}
        await self._audit(request, "function.deploy", detail)
        return AdminResponse(201, found)

    async def delete(self, request: AdminRequest) -> AdminResponse:
        found = await self._call("delete", request, name=request.params["name"])
        await self._audit(request, "function.delete", {"name": request.params["name"]})
        return AdminResponse(value=found)

    async def versions(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(
            value=await self._call("versions", request, name=request.params["name"])
        )

    async def rollback(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Rollback)
        found = await self._call(
            "rollback", request, name=request.params["name"], version=wanted.version
        )
        await self._audit(request, "function.rollback", found)
        return AdminResponse(value=found)

    async def secrets(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=await self._call("secrets", request))

    async def set_secrets(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(Secrets)
        if not wanted.values:
            raise ApiError(400, "bad_request", "Name at least one secret.")
        found = await self._call("set_secrets", request, values=wanted.values)
        await self._audit(request, "secrets.set", {"names": sorted(wanted.values)})
        return AdminResponse(value=found)

    async def unset_secret(self, request: AdminRequest) -> AdminResponse:
        name = request.params["name"]
        found = await self._call("unset_secrets", request, names=[name])
        if not found["deleted"]:
            raise ApiError(404, "secret_not_found", f"There is no secret {name[:128]}.")
        await self._audit(request, "secrets.unset", {"names": [name]})
        return AdminResponse(value={"deleted": True})

    async def logs(self, request: AdminRequest) -> AdminResponse:
        query = request.query
        after = _number(query, "after", 0, 2**53) if "after" in query else None
        found = await self._call(
            "logs", request, name=query.get("function"), invocation=query.get("invocation"),
            after=after, limit=_number(query, "limit", 100, MAX_LINES),
            wait=_number(query, "wait", 0, 25),
        )  # fmt: skip
        return AdminResponse(value=found)

    async def state(self, request: AdminRequest) -> AdminResponse:
        found = await self._link.call("state")
        found.pop("id", None)
        return AdminResponse(value=found)


def _number(query: dict[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 16 or int(text) > most:
        raise ApiError(400, "bad_request", f"{name} is a number from 0 to {most}.")
    return int(text)
