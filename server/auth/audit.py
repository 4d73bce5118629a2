"""The record of what happened to accounts, kept for `KEPT_DAYS` even when the user is deleted."""

from __future__ import annotations

from typing import Any

import msgspec

from server.auth.database import statement
from server.auth.room import Call

KEPT_DAYS = 90

WRITE = statement(
    """
    insert into auth.audit_events (event, actor, user_id, session_id, ip, user_agent, detail)
    values ($1, $2, $3::uuid, $4::uuid, $5, $6, $7::jsonb)
    """
)


async def write(
    call: Call,
    event: str,
    actor: str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """actor: "user", "admin", or "unknown" when who did it cannot be told."""
    text = msgspec.json.encode(detail or {}).decode()
    await call.database.rows(
        WRITE, event, actor, user_id, session_id, call.ip, call.user_agent, text
    )
