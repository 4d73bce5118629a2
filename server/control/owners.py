"""Owners: the accounts that projects belong to, and how many each may have."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ichicore.errors import ApiError
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


async def put(control: Connection, name: str, values: dict[str, Any]) -> Owner:
    """Make an owner, or change the given members: email, bound."""
    check_name(name)
    await fetch(
        control,
        """insert into owners as o (name, email, projects) values ($1, $2, $3)
        on conflict (name) do update set changed_at = now(),
          email = case when $4 then excluded.email else o.email end,
          projects = case when $5 then excluded.projects else o.projects end""",
        (name, values.get("email"), values.get("bound"), "email" in values, "bound" in values),
    )
    return await find(control, name)


async def remove(control: Connection, name: str) -> None:
    """409 while projects belong to the owner, deleted ones that are still kept included."""
    if not NAME.fullmatch(name):
        raise unknown(name)
    rows = await fetch(
        control,
        """delete from owners o where name = $1
        and not exists (select from projects p where p.owner_id = o.id) returning 1""",
        (name,),
    )
    if not rows:
        await find(control, name)
        raise ApiError(409, "owner_has_projects", f'Projects belong to the owner "{name}".')


async def reserve(control: Connection, name: str, tier: str, bound: int) -> None:
    """See that the owner exists and may have one more project of the tier; in the transaction
    that makes the project. The row stays locked until then, so that two creations at once count
    each other. Projects of the node's own are not counted."""
    await control.execute("insert into owners (name) values ($1) on conflict do nothing", (name,))
    rows = await fetch(
        control, "select id, suspended, projects from owners where name = $1 for update", (name,)
    )
    owner_id, suspended, own = rows[0]
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
