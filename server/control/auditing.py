"""Who did what, kept in the control database."""

from __future__ import annotations

from typing import Any

import msgspec

from server.control.database import Connection, fetch

NEWEST = 500  # entries that are shown


async def audit(
    control: Connection,
    actor: str,
    action: str,
    project: str | None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Note what was done, in the transaction that does it. project: None for what concerns an owner
    alone, whose name is in the detail then."""
    text = msgspec.json.encode(detail or {}).decode()
    await control.execute(
        "insert into audit (actor, action, project, detail) values ($1, $2, $3, $4::jsonb)",
        (actor, action, project, text),
    )


class Noted(msgspec.Struct):
    """One entry."""

    at: str
    actor: str
    action: str
    detail: dict[str, Any]


async def of_project(control: Connection, slug: str) -> list[Noted]:
    """The newest entries."""
    return await _read(control, "project = $1", slug)


async def of_owner(control: Connection, name: str) -> list[Noted]:
    """The newest entries of an owner, which may be gone; those of its projects are with them."""
    return await _read(control, "project is null and detail ->> 'owner' = $1", name)


async def _read(control: Connection, which: str, name: str) -> list[Noted]:
    query = f"""select at::text, actor, action, detail from audit where {which}
      order by id desc limit {NEWEST}"""  # noqa: S608
    return [Noted(*row) for row in await fetch(control, query, (name,))]
