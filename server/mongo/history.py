"""Rules that were in force before, in the control database."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from ichicore.errors import ApiError


class Version(msgspec.Struct):
    """rules: None when the project had none."""

    revision: int
    changed_at: str
    rules: dict[str, Any] | None


_SELECT = """select revision, to_json(changed_at) #>> '{}', coalesce(text, rules::text)
from rules_history where project_id = $1"""


def _version(row: tuple[Any, ...]) -> Version:
    return Version(row[0], row[1], None if row[2] is None else orjson.loads(row[2]))


async def versions(control: Any, project_id: str) -> list[Version]:
    """All that are kept, newest first. control: a connection to the control database."""
    cursor = await control.execute(f"{_SELECT} order by revision desc", (project_id,))
    return [_version(row) for row in await cursor.fetchall()]


async def version(control: Any, project_id: str, revision: int) -> Version:
    """ApiError 404 revision_not_found."""
    cursor = await control.execute(f"{_SELECT} and revision = $2", (project_id, revision))
    row = await cursor.fetchone()
    if row is None:
        raise ApiError(404, "revision_not_found", "The project's rules have no such revision.")
    return _version(row)
