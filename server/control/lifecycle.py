"""States of projects that exist: asleep, suspended, read-only, deleted for a while; and tiers.

A change of state is one transaction of the control database, noted in the audit with it. What it
asks of the cluster (logins closed, sessions ended, limits set) is put down as a duty in the same
transaction and done after it; a duty that a crash has left is done at the next start or by the
maintenance. Workers are told by the row's trigger.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import psycopg

from ichicore.errors import ApiError
from server.base import limits
from server.base.apart import Apart
from server.base.limits import LimitsError
from server.control import owners, records
from server.control.database import fetch
from server.control.projects import SLUG, Busy, Projects, audit, away, unknown
from server.control.projects import owe as owe
from server.control.records import Record

KEEP_DAYS = 7.0  # a deleted project can be brought back for so long
CHANGED = ("project_not_found", "wrong_state")  # somebody else was quicker
# Action to the states it starts from and the one it leads to.
STEPS = {
    "suspend": (("active", "sleeping"), "suspended"),
    "resume": (("suspended",), "active"),
    "sleep": (("active",), "sleeping"),
    "wake": (("sleeping",), "active"),
    "delete": (("active", "sleeping", "suspended"), "deleting"),
    "undelete": (("deleting",), "active"),  # or suspended, if it was when it was deleted
}
# Projects that are suspended ($2) or resumed with their owner. Those that were suspended before are
# told from them by the reason.
WITH_OWNER = """select id, slug from projects where owner_id = $1 and case when $2
  then state in ('active', 'sleeping') else state = 'suspended' and reason = 'owner' end
  order by id for update"""
TRIES, PAUSE = 20, 0.1  # seconds between them


class Lifecycle:
    """Changes of state over the control database; each may be called by any process."""

    def __init__(self, projects: Projects) -> None:
        self.projects = projects

    async def step(
        self, slug: str, action: str, actor: str, *, reason: str | None = None,
        keep_days: float = KEEP_DAYS,
    ) -> Record:  # fmt: skip
        """One of STEPS. Repeating one that is done changes nothing. 404 project_not_found; 409
        wrong_state when it does not start from the project's state."""
        before, after = STEPS[action]
        if not SLUG.fullmatch(slug):
            raise unknown(slug)
        async with self.projects.control() as control:
            async with control.transaction():
                found = await fetch(
                    control,
                    """select p.id, p.state, p.tier, p.limits, o.name, p.reason, p.was_suspended
                    from projects p join owners o on o.id = p.owner_id where p.slug = $1
                    and p.state not in ('creating', 'removing') for update of p""",
                    (slug,),
                )
                if not found:
                    raise unknown(slug)
                project_id, state, tier, own, owner, why, was_suspended = found[0]
                if action == "undelete" and was_suspended and why != "owner":
                    after = "suspended"  # with its owner it was for as long as that one was
                if state != after:
                    if state not in before:
                        raise wrong_state(slug, state, action)
                    if action == "undelete":
                        granted = limits.of(self.projects.config.tiers, tier, own)
                        await owners.reserve(control, owner, tier, granted.projects, actor)
                    elif action == "resume" and await owners.suspended(control, owner):
                        raise ApiError(409, "owner_suspended", f'The owner "{owner}" is suspended.')
                    was_suspended = {"delete": state, "undelete": after}.get(action) == "suspended"
                    why = reason if action == "suspend" else why if was_suspended else None
                    await control.execute(
                        """update projects set state = $2, reason = $3, state_at = now(),
                          was_suspended = $5, delete_at = case when $2 = 'deleting'
                            then now() + $4 * interval '1 day' end
                        where id = $1""",
                        (project_id, after, why, keep_days, was_suspended),
                    )
                    detail = {"reason": reason} if reason else {}
                    if action == "undelete":
                        detail["state"] = after
                    await audit(control, actor, f"project.{action}", slug, detail)
                    await owe(control, project_id)
            await self.projects.follow(control, project_id)
        return await self.projects.find(slug, deleted=True)

    async def read_only(self, project_id: str, on: bool, detail: dict[str, Any]) -> bool:
        """Refuse what would grow the project's databases, or stop to. True when that is new."""
        async with self.projects.control() as control:
            async with control.transaction():
                found = await fetch(
                    control,
                    "update projects set read_only = $2 where id = $1 and read_only <> $2 "
                    "returning slug",
                    (project_id, on),
                )
                if found:
                    action = "project.read_only" if on else "project.writable"
                    await audit(control, "node", action, found[0][0], detail)
                    await owe(control, project_id)
            await self.projects.follow(control, project_id)
        return bool(found)

    async def change(self, slug: str, wanted: dict[str, Any], actor: str) -> Record:
        """Replace a project's tier, limits (overrides, whole) or owner. Applies at once; no data
        is touched."""
        if not SLUG.fullmatch(slug):
            raise unknown(slug)
        async with self.projects.control() as control:
            async with control.transaction():
                found = await fetch(
                    control,
                    """select p.id, p.tier, p.flavor, p.limits, o.name from projects p
                    join owners o on o.id = p.owner_id where p.slug = $1
                    and p.state in ('active', 'sleeping', 'suspended') for update of p""",
                    (slug,),
                )
                if not found:
                    raise unknown(slug)
                project_id, tier, flavor, overrides, owner = found[0]
                new_tier = wanted.get("tier", tier)
                new_owner = wanted.get("owner", owner)
                new_limits = wanted.get("limits", overrides)
                tiers = self.projects.config.tiers
                if new_tier not in tiers:
                    raise ApiError(400, "invalid_tier", f"The tier is one of {', '.join(tiers)}.")
                try:
                    granted = limits.changed(tiers[new_tier], new_limits)
                except LimitsError as error:
                    raise ApiError(400, "invalid_limits", str(error)) from None
                owners.check_name(new_owner)
                owners.check_flavor(flavor, new_tier, granted.flavors)
                if (new_tier, new_owner) != (tier, owner):
                    await owners.reserve(control, new_owner, new_tier, granted.projects, actor)
                await control.execute(
                    """update projects set tier = $2, limits = $3::jsonb,
                    owner_id = (select id from owners where name = $4) where id = $1""",
                    (project_id, new_tier, msgspec.json.encode(new_limits).decode(), new_owner),
                )
                changes = {k: v for k, v in wanted.items() if k in ("tier", "limits", "owner")}
                await audit(control, actor, "project.change", slug, {**changes, "from": tier})
                await owe(control, project_id)
            await self.projects.follow(control, project_id)
        return await self.projects.find(slug)

    async def owner_suspended(self, name: str, on: bool, actor: str) -> None:
        """Suspend an owner with all projects, or resume those that were suspended with it. One
        transaction; repeating one that is done changes nothing."""
        for attempt in range(TRIES):
            try:
                await self._owner_suspended(name, on, actor)
                return
            except psycopg.errors.LockNotAvailable:  # a project has come meanwhile
                if attempt + 1 == TRIES:
                    raise away() from None
                await asyncio.sleep(PAUSE)

    async def _owner_suspended(self, name: str, on: bool, actor: str) -> None:
        async with self.projects.control() as control:
            async with control.transaction():
                rows = await fetch(control, "select id from owners where name = $1", (name,))
                if not rows:
                    raise owners.unknown(name)
                owner_id = rows[0][0]
                # Projects before their owner, as in every change of a project; then those that were
                # made until the owner's row was locked.
                await fetch(control, WITH_OWNER, (owner_id, on))
                changed = await fetch(
                    control,
                    "update owners set suspended = $2, changed_at = now() where id = $1 "
                    "and suspended <> $2 returning 1",
                    (owner_id, on),
                )
                action = "suspend" if on else "resume"
                if changed:
                    await audit(control, actor, f"owner.{action}", None, {"owner": name})
                found = await fetch(control, f"{WITH_OWNER} nowait", (owner_id, on))
                for project_id, slug in found:
                    await control.execute(
                        "update projects set state = $2, reason = $3, state_at = now() "
                        "where id = $1",
                        (project_id, STEPS[action][1], "owner" if on else None),
                    )
                    await audit(control, actor, f"project.{action}", slug, {"reason": "owner"})
                    await owe(control, project_id)
            apart = Apart()
            for project_id, _ in found:
                with apart:
                    await self.projects.follow(control, project_id)
            apart.end()

    async def purge(self) -> list[str]:
        """Remove the deleted projects whose time is over; their names."""
        async with self.projects.control() as control:
            rows = await fetch(
                control,
                "select slug from projects where state = 'deleting' and delete_at <= now()",
            )
        removed, apart = [], Apart()
        for (slug,) in rows:
            with apart:
                try:
                    await self.projects.delete(slug, actor="maintenance", due=True)
                except ApiError as error:
                    if error.code not in CHANGED:
                        raise
                except Busy:
                    continue  # `recover` goes on with it
                else:
                    removed.append(slug)
        apart.end()
        return removed


def wrong_state(slug: str, state: str, action: str) -> ApiError:
    shown = "deleted" if state == "deleting" else state
    return ApiError(
        409, "wrong_state", f'The project "{slug}" is {shown}: {action} does not apply.'
    )


def shown_state(record: Record) -> str:
    """The state as people see it."""
    served = records.served_state(record)
    return "read-only" if served == "active" and record.read_only else served
