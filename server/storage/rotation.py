"""Another secret for the tokens of a project's storage URLs, while those out there still work."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import msgspec

from server.base.project import AcceptedSecret

SPREAD = 2.0  # seconds within which a worker reads a changed project
PENDING = 60.0  # seconds that the next secret is accepted when the rotation does not come to an end
SELECT = "select storage_secret, storage_accepted::text from projects where id = $1 for update"
ACCEPT = "update projects set storage_accepted = $2::jsonb where id = $1"
SIGN = "update projects set storage_secret = $2, storage_accepted = $3::jsonb where id = $1"


async def rotate(control: Any, project: str, overlap: int) -> int:
    """Signs with a new secret from now on; what was signed before is accepted for `overlap` seconds
    more. Gives the moment at which that ends, in epoch seconds. All workers accept the new secret
    before any signs with it. control: the control database, in autocommit mode."""
    new = secrets.token_urlsafe(24)
    async with control.transaction():
        now = time.time()
        _, accepted = await _read(control, project, now)
        await _write(control, ACCEPT, project, accepted=[*accepted, (new, now + PENDING)])
    await asyncio.sleep(SPREAD)
    async with control.transaction():
        now = time.time()
        current, accepted = await _read(control, project, now)
        until = int(now + overlap)
        before = [(secret, min(end, until)) for secret, end in accepted if secret != new]
        kept = [(current, until), *before] if overlap else []
        await _write(control, SIGN, project, new, accepted=kept)
    if overlap < SPREAD:
        await asyncio.sleep(SPREAD)  # all workers have heard of it when this ends
    return until


async def _read(control: Any, project: str, now: float) -> tuple[str, list[tuple[str, float]]]:
    """(the secret that signs, the others that are accepted and until when)."""
    row = await (await control.execute(SELECT, (project,))).fetchone()
    found = msgspec.json.decode(row[1], type=list[AcceptedSecret])
    return row[0], [(one.secret, one.until) for one in found if one.until > now]


async def _write(
    control: Any, statement: str, project: str, *more: str, accepted: list[tuple[str, float]]
) -> None:
    text = msgspec.json.encode([AcceptedSecret(secret, until) for secret, until in accepted])
    await control.execute(statement, (project, *more, text.decode()))
