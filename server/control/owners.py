"""Owners: the accounts that projects belong to, and how many each may have."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ichicore.errors import ApiError
from server.control.auditing import audit
from server.control.database import Connection, fetch

LOCAL_OWNER = "local"  # of the node's own projects
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@+-]{0,126}[A-Za-z0-9])?")
LIVE = "('creating', 'active', 'sleeping', 'suspended')"  # states that count against the bound


class Owner(msgspec.Struct, frozen=True):
    """projects: names of the live ones. bound: free projects this owner may have, None takes the
    tier's number. suspended: none of the projects is served."""

    name: str
    email: str | None
    bound: int | None
    suspended: bool
    created_at: str
    projects: list[str]


SELECT = f"""select o.name, o.email, o.projects, o.suspended, o.created_at::text,
  (select coalesce(array_agg(p.slug order by p.slug), '{{}}') from projects p
    where p.owner_id = o.id and p.state in {LIVE})
  from owners o"""  # noqa: S608


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ApiError(
            400, "invalid_owner",
            "An owner's name is 1 to 128 letters, digits and . _ @ + -, and begins and ends with "
            "a letter or digit.",
        )  # fmt: skip


def check_flavor(flavor: str, tier: str, flavors: int) -> None:
    """403 when the tier has one database and the flavor has two."""
    if flavor == "both" and flavors < 2:
        raise ApiError(
            403, "flavor_not_allowed",
            f"A project of the tier {tier} has one database: postgres or mongo.",
        )  # fmt: skip


def unknown(name: str) -> ApiError:
    return ApiError(404, "owner_not_found", f'There is no owner "{name}".')


async def suspended(control: Connection, name: str) -> bool:
    """Whether an owner that is there is; it stays so until the end of the transaction."""
    query = "select suspended from owners where name = $1 for share"
    return bool((await fetch(control, query, (name,)))[0][0])


async def everyone(control: Connection) -> list[Owner]:
    return [Owner(*row) for row in await fetch(control, f"{SELECT} order by o.name")]


async def find(control: Connection, name: str) -> Owner:
    """ApiError 404 owner_not_found."""
    if not NAME.fullmatch(name):
        raise unknown(name)
    rows = await fetch(control, f"{SELECT} where o.name = $1", (name,))
    if not rows:
        raise unknown(name)
    return Owner(*rows[0])


async def put(control: Connection, name: str, values: dict[str, Any], actor: str) -> Owner:
    """Make an owner, or change the given members: email, bound."""
    check_name(name)
    async with control.transaction():
        found = await _locked(control, name, actor)
        before = {"email": found[1], "bound": found[2]}
        changed = {
            key: values[key] for key in before if values.get(key, before[key]) != before[key]
        }
        if changed:
            after = {**before, **changed}
            await control.execute(
                "update owners set email = $2, projects = $3, changed_at = now() where id = $1",
                (found[0], after["email"], after["bound"]),
            )
            detail = {"owner": name, **changed, "from": {key: before[key] for key in changed}}
            await audit(control, actor, "owner.change", None, detail)
    return await find(control, name)


async def _locked(control: Connection, name: str, actor: str) -> tuple[Any, ...]:
    """(id, email, bound, suspended) of an owner, which is made unless it is there. Its row stays
    locked until the end of the transaction."""
    rows = await fetch(
        control,
        """insert into owners as o (name) values ($1)
        on conflict (name) do update set name = o.name
        returning id, email, projects, suspended, xmax = 0  -- which is so of a row that is new""",
        (name,),
    )
    *found, made = rows[0]
    if made:
        await audit(control, actor, "owner.create", None, {"owner": name})
    return tuple(found)


async def remove(control: Connection, name: str, actor: str) -> None:
    """409 while projects belong to the owner, deleted ones that are still kept included."""
    if not NAME.fullmatch(name):
        raise unknown(name)
    async with control.transaction():
        # First: nobody makes a project of the owner's while its row is locked.
        rows = await fetch(control, "select id from owners where name = $1 for update", (name,))
        if not rows:
            raise unknown(name)
        if await fetch(control, "select 1 from projects where owner_id = $1 limit 1", rows[0]):
            raise ApiError(409, "owner_has_projects", f'Projects belong to the owner "{name}".')
        await control.execute("delete from owners where id = $1", rows[0])
        await audit(control, actor, "owner.delete", None, {"owner": name})


async def reserve(control: Connection, name: str, tier: str, bound: int, actor: str) -> None:
    """See that the owner exists and may have one more project of the tier; in the transaction
    that makes the project. The row stays locked until then, so that two creations at once count
    each other. Projects of the node's own are not counted."""
    owner_id, _, own, suspended = await _locked(control, name, actor)
    if suspended:
        raise ApiError(403, "owner_suspended", f'The owner "{name}" is suspended.')
    if name == LOCAL_OWNER:
        return
    counted = f"select count(*) from projects where owner_id = $1 and tier = $2 and state in {LIVE}"  # noqa: S608
    most = bound if own is None else own
    if (await fetch(control, counted, (owner_id, tier)))[0][0] >= most:
        raise ApiError(
            403, "project_limit",
            f'The owner "{name}" has {most} project{"" if most == 1 else "s"} of the tier {tier}, '
            "which is as many as it allows.",
        )  # fmt: skip
