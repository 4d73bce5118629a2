"""Admin routes of owners, tiers, states of projects, and what they use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ichicore.errors import ApiError
from server.base.limits import Limits
from server.control import auditing, owners, records, upgrades, usage
from server.control.auditing import Noted
from server.control.lifecycle import STEPS
from server.control.owners import Owner
from server.control.routes import AdminRequest, AdminResponse, Router
from server.control.usage import Report

if TYPE_CHECKING:
    from server.control.api import AdminApi

PROJECT = "/admin/v1/projects/{project}"
OWNER = "/admin/v1/owners/{owner}"


class ChangeProject(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Only what is given is changed. limits: numbers that replace the tier's, as a whole."""

    tier: str | msgspec.UnsetType = msgspec.UNSET
    owner: str | msgspec.UnsetType = msgspec.UNSET
    limits: dict[str, int | float] | msgspec.UnsetType = msgspec.UNSET


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    reason: str | None = None


class PutOwner(msgspec.Struct, forbid_unknown_fields=True):
    """bound: free projects the owner may have, null for the tier's number."""

    email: str | msgspec.UnsetType | None = msgspec.UNSET
    bound: int | msgspec.UnsetType | None = msgspec.UNSET
    suspended: bool | msgspec.UnsetType = msgspec.UNSET


class Done(msgspec.Struct):
    deleted: bool


class Tenancy:
    def __init__(self, api: AdminApi) -> None:
        self.api = api
        self.projects = api.projects

    def _shown(self, record: records.Record) -> AdminResponse:
        from server.control.api import shown

        project = records.to_project(record, self.projects.config)
        return AdminResponse(value=shown(record, project))

    async def change(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(ChangeProject)
        given = {
            name: value
            for name, value in msgspec.structs.asdict(wanted).items()
            if value is not msgspec.UNSET
        }
        if not given:
            raise ApiError(400, "invalid_body", "Say what to change: tier, owner or limits.")
        name = request.params["project"]
        return self._shown(await self.api.lifecycle.change(name, given, "admin"))

    async def step(self, request: AdminRequest) -> AdminResponse:
        name, action = request.params["project"], request.path.rpartition("/")[2]
        reason = request.decode(Reason).reason if request.body else None
        if reason is not None and not (reason.isprintable() and len(reason) <= 500):
            raise ApiError(400, "invalid_body", "A reason is one line of at most 500 characters.")
        return self._shown(await self.api.lifecycle.step(name, action, "admin", reason=reason))

    async def upgrade(self, request: AdminRequest) -> AdminResponse:
        record = await self.projects.find(request.params["project"])
        if fault := await upgrades.upgrade(self.projects, record.id):
            raise upgrades.failed(fault)
        return self._shown(await self.projects.find(record.slug))

    async def usage(self, request: AdminRequest) -> AdminResponse:
        record = await self.projects.find(request.params["project"], deleted=True)
        async with self.projects.control() as control:
            return AdminResponse(
                value=await usage.report(
                    control,
                    record,
                    self.projects.limits(record),
                    self.projects.config.metrics_dir,
                )
            )

    async def audit(self, request: AdminRequest) -> AdminResponse:
        async with self.projects.control() as control:
            record = await self.projects.find(request.params["project"], deleted=True)
            return AdminResponse(value=await auditing.of_project(control, record.slug))

    async def tiers(self, request: AdminRequest) -> AdminResponse:
        return AdminResponse(value=self.projects.config.tiers)

    async def owners(self, request: AdminRequest) -> AdminResponse:
        async with self.projects.control() as control:
            return AdminResponse(value=await owners.everyone(control))

    async def owner(self, request: AdminRequest) -> AdminResponse:
        async with self.projects.control() as control:
            return AdminResponse(value=await owners.find(control, request.params["owner"]))

    async def put_owner(self, request: AdminRequest) -> AdminResponse:
        wanted = request.decode(PutOwner)
        name = request.params["owner"]
        given = {
            name: value
            for name, value in msgspec.structs.asdict(wanted).items()
            if value is not msgspec.UNSET
        }
        suspended = given.pop("suspended", None)
        bound, email = given.get("bound"), given.get("email")
        if bound is not None and not 0 <= bound <= 1_000_000:
            raise ApiError(400, "invalid_body", "bound is 0 to 1000000.")
        if email is not None and not (email.isprintable() and len(email) <= 320):
            raise ApiError(400, "invalid_body", "email is not an address.")
        async with self.projects.control() as control:
            await owners.put(control, name, given, "admin")
        if suspended is not None:
            await self.api.lifecycle.owner_suspended(name, suspended, "admin")
        return await self.owner(request)

    async def delete_owner(self, request: AdminRequest) -> AdminResponse:
        async with self.projects.control() as control:
            await owners.remove(control, request.params["owner"], "admin")
        return AdminResponse(value=Done(True))

    async def owner_audit(self, request: AdminRequest) -> AdminResponse:
        name = request.params["owner"]
        async with self.projects.control() as control:
            found = await auditing.of_owner(control, name) if owners.NAME.fullmatch(name) else []
            if not found:
                await owners.find(control, name)
        return AdminResponse(value=found)


def register(router: Router, api: AdminApi) -> None:
    from server.control.api import ShownProject

    tenancy = Tenancy(api)
    router.add("PATCH", PROJECT, tenancy.change, "Change a project's tier, owner or limits",
               body=ChangeProject, result=ShownProject)  # fmt: skip
    for action in STEPS:
        if action != "delete":
            router.add("POST", f"{PROJECT}/{action}", tenancy.step, f"{action.title()} a project",
                       body=Reason, result=ShownProject)  # fmt: skip
    router.add("POST", f"{PROJECT}/upgrade", tenancy.upgrade,
               "Bring a project up to date with this version", result=ShownProject)  # fmt: skip
    router.add("GET", f"{PROJECT}/usage", tenancy.usage, "What a project uses of its quotas",
               result=Report)  # fmt: skip
    router.add("GET", f"{PROJECT}/audit", tenancy.audit, "What was done to a project, newest first",
               result=list[Noted])  # fmt: skip
    router.add("GET", "/admin/v1/tiers", tenancy.tiers, "The tiers and their limits",
               result=dict[str, Limits])  # fmt: skip
    router.add("GET", "/admin/v1/owners", tenancy.owners, "All owners", result=list[Owner])
    router.add("GET", OWNER, tenancy.owner, "One owner with the names of its projects",
               result=Owner)  # fmt: skip
    router.add("PUT", OWNER, tenancy.put_owner, "Make or change an owner",
               body=PutOwner, result=Owner)  # fmt: skip
    router.add("DELETE", OWNER, tenancy.delete_owner, "Delete an owner without projects",
               result=Done)  # fmt: skip
    router.add("GET", f"{OWNER}/audit", tenancy.owner_audit,
               "What was done to an owner, newest first", result=list[Noted])  # fmt: skip
