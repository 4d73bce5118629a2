"""One-time codes and links.

A row of auth.codes is bound to a purpose and an address; asking again replaces it. What is stored
of a code is an HMAC over purpose, address and code under a secret that the project's database does
not hold, so the six digits cannot be found by trying from a copy of it. Links carry 256 random
bits. Five wrong codes spend the row; a right one deletes it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Any

import msgspec

from ichicore.errors import ApiError
from server.auth import inputs
from server.auth.database import Database, Rows, statement, sure, text
from server.auth.room import Call
from server.base.project import Project

TRIES = 5

ASK = statement(
    """
    with who as (
      select id, disabled_at is null and ($1 <> 'verify_email' or email_verified_at is null) as fit
      from auth.users where case when $1 = 'phone' then phone = $2 else email = $2 end
    ), put as (
      insert into auth.codes as c (purpose, address, user_id, code_hash, token_hash, expires_at,
        payload)
      values ($1, $2, (select id from who where fit), $3::bytea, $4::bytea,
        now() + make_interval(secs => $5::float8), $6::jsonb)
      on conflict (purpose, address) do update set user_id = excluded.user_id,
        code_hash = excluded.code_hash, token_hash = excluded.token_hash, tries = 0,
        created_at = now(), expires_at = excluded.expires_at, payload = excluded.payload
    )
    select (select id from who where fit), exists (select from who)
    """
)

# Waiting for the row's lock evaluates the conditions again, so that a crowd of simultaneous
# guesses has five tries together, and of two right answers one wins.
REDEEM_CODE = statement(
    f"""
    with taken as (
      delete from auth.codes
      where purpose = $1 and address = $2 and code_hash = $3::bytea and tries < {TRIES}
        and expires_at > now()
      returning user_id, payload::text
    ), counted as (
      update auth.codes set tries = tries + 1
      where purpose = $1 and address = $2 and code_hash is distinct from $3::bytea
        and tries < {TRIES} and expires_at > now()
      returning 1
    )
    select 'taken', $2, user_id, payload from taken
    union all select 'wrong', null, null, null from counted
    union all select 'spent', null, null, null from auth.codes
      where purpose = $1 and address = $2 and tries >= {TRIES} and expires_at > now()
    """
)

# The same without taking it: what follows is costly and takes the code itself (passwords.py).
TRY_CODE = statement(
    f"""
    with counted as (
      update auth.codes set tries = tries + 1
      where purpose = $1 and address = $2 and code_hash is distinct from $3::bytea
        and tries < {TRIES} and expires_at > now()
      returning 1
    )
    select 'taken', $2, user_id, payload::text from auth.codes
      where purpose = $1 and address = $2 and code_hash = $3::bytea and tries < {TRIES}
        and expires_at > now()
    union all select 'wrong', null, null, null from counted
    union all select 'spent', null, null, null from auth.codes
      where purpose = $1 and address = $2 and tries >= {TRIES} and expires_at > now()
    """
)

REDEEM_TOKEN = statement(
    """
    delete from auth.codes
    where token_hash = $2::bytea and purpose = any ($1::text[]) and expires_at > now()
    returning 'taken', address, user_id, payload::text
    """
)

TRY_TOKEN = statement(
    """
    select 'taken', address, user_id, payload::text from auth.codes
    where token_hash = $2::bytea and purpose = any ($1::text[]) and expires_at > now()
    """
)


class Issued(msgspec.Struct, frozen=True):
    """A fresh challenge. user_id: who has the address and may use it, or None. known: somebody
    has the address."""

    code: str | None
    token: str | None
    user_id: str | None
    known: bool


class Taken(msgspec.Struct, frozen=True):
    """A challenge that was answered rightly."""

    address: str
    user_id: str | None
    payload: dict[str, Any]


def new_code() -> str:
    return f"{secrets.randbelow(1_000_000):06d}"


def new_token() -> str:
    """256 random bits, URL-safe."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def code_hash(project: Project, purpose: str, address: str, code: str) -> bytes:
    pepper = hmac.digest(project.storage_secret.encode(), b"auth codes", "sha256")
    return hmac.digest(pepper, f"{purpose}\0{address}\0{code}".encode(), "sha256")


async def ask(
    database: Database,
    project: Project,
    purpose: str,
    address: str,
    delivery: str,
    seconds: int,
    payload: dict[str, Any] | None = None,
) -> Issued:
    """Makes a challenge and ends the one before. delivery: "otp", "link", "magic" or "both"."""
    code = new_code() if delivery in ("otp", "both") else None
    token = new_token() if delivery in ("link", "magic", "both") else None
    rows = await database.rows(
        ASK, purpose, address,
        None if code is None else code_hash(project, purpose, address, code),
        None if token is None else token_hash(token),
        seconds, msgspec.json.encode(payload or {}).decode(),
    )  # fmt: skip
    return Issued(code, token, text(rows[0][0]), rows[0][1] == b"t")


async def redeem_code(
    call: Call, purpose: str, address: str, code: str, *, keep: bool = False
) -> Taken:
    """Takes a code (keep: only checks it, wrong ones count all the same). ApiError 400
    invalid_code, 429 too_many_attempts."""
    digits = code.strip()
    if not inputs.is_code(digits):
        raise invalid_code()
    rows = await call.database.rows(
        TRY_CODE if keep else REDEEM_CODE, purpose, address,
        code_hash(call.project, purpose, address, digits),
    )  # fmt: skip
    return _taken(rows)


async def redeem_token(call: Call, token: str, *purposes: str, keep: bool = False) -> Taken:
    """Takes the token of a link (keep: only checks it). ApiError 400 expired_token."""
    if not inputs.is_token(token):
        raise expired_token()
    rows = await call.database.rows(
        TRY_TOKEN if keep else REDEEM_TOKEN, list(purposes), token_hash(token)
    )
    if not rows:
        raise expired_token()
    return _taken(rows)


def _taken(rows: Rows) -> Taken:
    outcome = {row[0] for row in rows}
    if b"taken" in outcome:
        _, address, user_id, payload = rows[0]
        return Taken(sure(address), text(user_id), msgspec.json.decode(sure(payload)))
    if b"spent" in outcome:
        raise ApiError(
            429, "too_many_attempts", "Too many wrong codes; ask for a new one.",
            headers=(("retry-after", "60"),),
        )  # fmt: skip
    raise invalid_code()


def invalid_code() -> ApiError:
    return ApiError(400, "invalid_code", "The code is wrong or has expired.")


def expired_token() -> ApiError:
    return ApiError(400, "expired_token", "The link is not valid any more; ask for a new one.")
