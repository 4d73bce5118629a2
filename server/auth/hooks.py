"""The claims hook: a function of the project's database that adds claims to access tokens.

It takes and gives jsonb: {"user_id","email","phone","method"} in, an object of further claims out
(null for none). It runs in the role service_role with the rights of no owner of ours. An exception,
a late answer or an answer of another shape denies the token.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ichicore.errors import ApiError
from ichicore.pg.errors import PgError, PgUnavailable, PoolTimeout, StatementTimeout
from ichicore.pg.executor import NONE, VALUES, Group, Statement
from server.auth.room import Call, log
from server.auth.tokens import Subject

TIMEOUT = 2.0  # seconds
MAX_CLAIMS = 4_096  # bytes of JSON
ROLE = "service_role"

SWITCH = Statement("select set_config('role', 'service_role', true)", result=NONE, per_role=False)


async def claims(call: Call, user: Subject, method: str) -> dict[str, Any] | None:
    """What the hook adds; None without one. method: how the user signed in, "refresh"
    or "impersonation". ApiError 403 sign_in_denied."""
    name = call.settings.claims_hook
    if name is None:
        return None
    if call.project.authenticator_dsn is None:
        raise _denied()
    quoted = ".".join(f'"{part}"' for part in name.split("."))
    event = {"user_id": user.id, "email": user.email, "phone": user.phone, "method": method}
    group = Group(ROLE)
    group.add(SWITCH, ())
    group.add(
        Statement(f"select {quoted}($1::jsonb)::text", result=VALUES),
        (msgspec.json.encode(event),),
    )
    pool = call.room.context.pools.data(call.project)
    try:
        results = await pool.run(group, slow=True, timeout=TIMEOUT)
    except (PgError, PgUnavailable, PoolTimeout, StatementTimeout) as error:
        log.warning("the claims hook of project %s failed: %s", call.project.slug, error)
        raise _denied() from None
    answer = results[1].values[0][0] if results[1].values else None
    if answer is None or answer == b"null":
        return None
    try:
        found = msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.MsgspecError:
        found = None
    if found is None or len(answer) > MAX_CLAIMS:
        log.warning("the claims hook of project %s gave no small object", call.project.slug)
        raise _denied()
    return found


def _denied() -> ApiError:
    return ApiError(403, "sign_in_denied", "The app does not let this account sign in.")
