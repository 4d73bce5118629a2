"""Sessions and the rotation of their refresh tokens.

A refresh token is 60 octets: session id (16), secret (32), tag (12). Stored are a hash of the
secret and the family's key that makes tags. A refresh replaces the secret by one derived from the
presented token and a random salt kept in the row. Within the grace period the replaced token is
answered with the same successor, derived again; so a lost answer or two clients that share a
session cost nothing. Any other token with a right tag was issued by us and used before: somebody
has copied it, and the session ends. A token with a wrong tag was never ours and changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import uuid
from typing import Any

import msgspec

from ichicore.errors import ApiError
from server.auth import audit, hooks, tokens
from server.auth.database import ISO, octets, statement, sure, text
from server.auth.ratelimit import too_often
from server.auth.room import Call, ended
from server.auth.tokens import Subject

SECRET_SIZE = 32
TAG_SIZE = 12
TOKEN_SIZE = 16 + SECRET_SIZE + TAG_SIZE
LISTED = 100

START = statement(
    """
    with the_user as (
      update auth.users set last_sign_in_at = now(), password_hash = coalesce($3, password_hash)
      where id = $1::uuid and disabled_at is null and ($2::text is null or password_hash = $2)
      returning id, email, phone
    ), session as (
      insert into auth.sessions (id, user_id, token_hash, family_key, expires_at, ends_at, methods,
        user_agent, ip)
      select $4::uuid, id, $5::bytea, $6::bytea, now() + make_interval(secs => $7::float8),
        now() + make_interval(secs => $8::float8), array[$9::text], $10, $11 from the_user
    ), record as (
      insert into auth.audit_events (event, actor, user_id, session_id, ip, user_agent, detail)
      select 'login', 'user', id, $4::uuid, $11, $10, jsonb_build_object('method', $9::text)
      from the_user
    )
    select id, email, phone from the_user
    """
)

# One row when the token is the current one (rotated) or the one before within its grace. The
# expressions are evaluated on the newest version of the row, so of two simultaneous refreshes the
# second one sees what the first one wrote.
REFRESH = statement(
    """
    update auth.sessions s set
      previous_hash = case when s.token_hash = $2::bytea then $2::bytea else s.previous_hash end,
      salt = case when s.token_hash = $2::bytea then $4::bytea else s.salt end,
      rotated_at = case when s.token_hash = $2::bytea then now() else s.rotated_at end,
      expires_at = least(s.ends_at, now() + make_interval(secs => $5::float8)),
      last_used_at = now(),
      window_count = case when s.window_at > now() - make_interval(secs => $8::float8)
        then s.window_count + 1 else 1 end,
      window_at = case when s.window_at > now() - make_interval(secs => $8::float8)
        then s.window_at else now() end,
      token_hash = case when s.token_hash = $2::bytea then $3::bytea else s.token_hash end
    from auth.users u
    where s.id = $1::uuid and u.id = s.user_id and u.disabled_at is null
      and (s.token_hash = $2::bytea or (s.previous_hash = $2::bytea
        and s.rotated_at > now() - make_interval(secs => $6::float8)))
      and s.revoked_at is null and s.expires_at > now() and s.ends_at > now()
      and s.impersonated_by is null
      and not (s.window_count >= $7::int
        and s.window_at > now() - make_interval(secs => $8::float8))
    returning s.salt, s.family_key, u.id, u.email, u.phone
    """
)

WHY_NOT = statement(
    """
    select s.family_key, s.user_id, s.revoked_at is not null or s.impersonated_by is not null,
      s.expires_at <= now() or s.ends_at <= now(), u.disabled_at is not null,
      s.token_hash = $2::bytea or (s.previous_hash = $2::bytea
        and s.rotated_at > now() - make_interval(secs => $3::float8)),
      greatest(extract(epoch from
        s.window_at + make_interval(secs => $4::float8) - now()), 1)::float8
    from auth.sessions s join auth.users u on u.id = s.user_id where s.id = $1::uuid
    """
)

PEEK = statement(
    """
    select u.id, u.email, u.phone from auth.sessions s join auth.users u on u.id = s.user_id
    where s.id = $1::uuid and (s.token_hash = $2::bytea or s.previous_hash = $2::bytea)
      and s.revoked_at is null and u.disabled_at is null
    """
)

REVOKE_ONE = statement(
    """
    update auth.sessions set revoked_at = now(), revoke_reason = $3
    where id = $1::uuid and user_id = $2::uuid and revoked_at is null returning id
    """
)

# Access tokens that a password change let live end with everything else.
REVOKE_ALL = statement(
    """
    update auth.sessions set revoked_at = now(), revoke_reason = $2
    where user_id = $1::uuid and (revoked_at is null or revoke_reason = 'password_changed')
      and ends_at > now() and id is distinct from $3::uuid
    returning id
    """
)

# A password change ends the refresh tokens of other sessions but lets their access tokens run out.
LIVE = """s.id = $1::uuid and s.user_id = $2::uuid and u.disabled_at is null
      and (s.revoked_at is null or s.revoke_reason = 'password_changed') and s.ends_at > now()"""

ALIVE = statement(
    f"select 1 from auth.sessions s join auth.users u on u.id = s.user_id where {LIVE}"
)

LIST = statement(
    f"""
    select coalesce(json_agg(x), '[]')::text from (
      select o.id, o.user_agent, o.ip, {ISO.format("o.created_at")} as issued_at,
        {ISO.format("o.last_used_at")} as last_used_at, {ISO.format("o.expires_at")} as expires_at
      from auth.sessions o
      where o.user_id = $2::uuid and o.revoked_at is null and o.expires_at > now()
        and o.ends_at > now() and o.impersonated_by is null
      order by o.last_used_at desc, o.id limit {LISTED}
    ) x
    where exists (select from auth.sessions s join auth.users u on u.id = s.user_id where {LIVE})
    """
)

OWNED = statement("select 1 from auth.sessions where id = $1::uuid and user_id = $2::uuid")


class Parsed(msgspec.Struct, frozen=True):
    """A refresh token taken apart."""

    session_id: str
    body: bytes
    tag: bytes

    @property
    def hash(self) -> bytes:
        return hashlib.sha256(self.body).digest()


def parse(token: str) -> Parsed | None:
    """None for what cannot be one of our tokens."""
    if len(token) != TOKEN_SIZE * 4 // 3 or not token.isascii():
        return None
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    return Parsed(str(uuid.UUID(bytes=raw[:16])), raw[:-TAG_SIZE], raw[-TAG_SIZE:])


def _tag(body: bytes, family_key: bytes) -> bytes:
    return hmac.digest(family_key, body, "sha256")[:TAG_SIZE]


def _token(body: bytes, family_key: bytes) -> str:
    return base64.urlsafe_b64encode(body + _tag(body, family_key)).decode()


def _successor(body: bytes, salt: bytes) -> bytes:
    """Session id and secret of the token that follows; needs the token and the salt."""
    return body[:16] + hmac.digest(salt, b"successor" + body, "sha256")


async def start(
    call: Call,
    user: Subject,
    method: str,
    *,
    expected_hash: str | None = None,
    new_hash: str | None = None,
) -> dict[str, Any] | None:
    """Opens a session; gives the LoginResult, or None when the user was disabled, deleted or
    (with expected_hash) given another password meanwhile. new_hash replaces the stored one."""
    extra = await hooks.claims(call, user, method)
    session = uuid.uuid4()
    body = session.bytes + secrets.token_bytes(SECRET_SIZE)
    family_key = secrets.token_bytes(32)
    settings = call.settings
    total = settings.session_total_seconds
    rows = await call.database.rows(
        START, user.id, expected_hash, new_hash, str(session), hashlib.sha256(body).digest(),
        family_key, float(min(settings.session_idle_seconds, total)), float(total), method,
        call.user_agent, call.ip, durable=True,
    )  # fmt: skip
    if not rows:
        return None
    subject = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
    seconds = settings.access_token_seconds
    shown = {"id": subject.id, "email": subject.email}
    if subject.phone is not None:
        shown["phone"] = subject.phone
    return {
        "access_token": tokens.issue(call.project, subject, str(session), seconds, extra),
        "refresh_token": _token(body, family_key),
        "expires_in": seconds,
        "user": shown,
    }


async def refresh(call: Call, token: str) -> dict[str, Any]:
    """The next pair; ApiError 401 invalid_refresh_token, 403 user_disabled, 429."""
    given = parse(token)
    if given is None:
        raise _invalid()
    settings = call.settings
    extra = None
    if settings.claims_hook is not None:
        # Before the rotation: a hook that fails for longer than the grace must not cost sessions.
        rows = await call.database.rows(PEEK, given.session_id, given.hash)
        if rows:
            known = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
            extra = await hooks.claims(call, known, "refresh")
    salt = secrets.token_bytes(16)
    limit = settings.rate_limits.refresh_per_session
    rows = await call.database.rows(
        REFRESH, given.session_id, given.hash,
        hashlib.sha256(_successor(given.body, salt)).digest(), salt,
        settings.session_idle_seconds, settings.refresh_grace_seconds, limit.count, limit.seconds,
    )  # fmt: skip
    if not rows:
        raise await _refused(call, given)
    stored_salt, family_key, user_id, email, phone = rows[0]
    subject = Subject(sure(user_id), text(email), text(phone))
    successor = _successor(given.body, octets(stored_salt))
    seconds = settings.access_token_seconds
    return {
        "access_token": tokens.issue(call.project, subject, given.session_id, seconds, extra),
        "refresh_token": _token(successor, octets(family_key)),
        "expires_in": seconds,
    }


async def _refused(call: Call, given: Parsed) -> ApiError:
    """Why a refresh was not made; a copied token ends its session."""
    limit = call.settings.rate_limits.refresh_per_session
    grace = call.settings.refresh_grace_seconds
    rows = await call.database.rows(WHY_NOT, given.session_id, given.hash, grace, limit.seconds)
    if not rows:
        return _invalid()
    family_key, user_id, revoked, expired, disabled, matches, wait = rows[0]
    if not hmac.compare_digest(_tag(given.body, octets(family_key)), given.tag):
        return _invalid()
    if revoked == b"t" or expired == b"t":
        return _invalid()
    if disabled == b"t":
        return ApiError(403, "user_disabled", "This account is disabled.")
    if matches == b"t":
        return too_often("rate_limited", "This session is refreshed too often.", [(wait,)])
    await revoke(call, sure(user_id), given.session_id, "refresh_reuse")
    await audit.write(
        call, "refresh_reuse", "unknown", user_id=sure(user_id), session_id=given.session_id
    )
    return _invalid()


def _invalid() -> ApiError:
    return ApiError(401, "invalid_refresh_token", "The refresh token is not valid any more.")


async def revoke(call: Call, user_id: str, session_id: str, reason: str) -> bool:
    """Ends one session everywhere; True when it was alive."""
    rows = await call.database.rows(REVOKE_ONE, session_id, user_id, reason)
    await announce(call, [sure(row[0]) for row in rows])
    return bool(rows)


async def revoke_all(
    call: Call, user_id: str, reason: str, *, keep: str | None = None, tell: bool = True
) -> int:
    """Ends the user's sessions but `keep`. tell: their access tokens end at once too."""
    rows = await call.database.rows(REVOKE_ALL, user_id, reason, keep)
    if tell:
        await announce(call, [sure(row[0]) for row in rows])
    return len(rows)


async def announce(call: Call, sessions: list[str]) -> None:
    """Makes all workers refuse the access tokens of these sessions."""
    seconds = call.settings.access_token_seconds + tokens.LEEWAY
    await call.room.revoke(call.project, sessions, seconds)


async def logout(call: Call, token: str | None) -> None:
    """Ends the session of the refresh token if it is the caller's, or the bearer's own without
    one. The caller's access token must be alive."""
    session_id, user_id = call.caller()
    await require_alive(call, session_id, user_id)
    target = session_id
    if token is not None:
        given = parse(token)
        if given is None:
            return
        target = given.session_id
    if await revoke(call, user_id, target, "logout"):
        await audit.write(call, "logout", "user", user_id=user_id, session_id=target)


async def logout_late(call: Call, token: str) -> bool:
    """Ends the session whose refresh token this is, now or before its last use, for a client whose
    access token has expired. False when it is the token of no session that is alive."""
    given = parse(token)
    if given is None:
        return False
    rows = await call.database.rows(PEEK, given.session_id, given.hash)
    if not rows:
        return False
    user_id = sure(rows[0][0])
    if await revoke(call, user_id, given.session_id, "logout"):
        await audit.write(call, "logout", "user", user_id=user_id, session_id=given.session_id)
    return True


async def require_alive(call: Call, session_id: str, user_id: str) -> None:
    """ApiError 401 when the bearer's session has ended."""
    if not await call.database.rows(ALIVE, session_id, user_id):
        raise ended()


async def listed(call: Call) -> bytes:
    """The JSON array of the caller's sessions."""
    session_id, user_id = call.caller()
    rows = await call.database.rows(LIST, session_id, user_id)
    found = rows[0][0] or b"[]"
    if found == b"[]":  # no session at all means not even the caller's
        await require_alive(call, session_id, user_id)
    return found


async def revoke_listed(call: Call, wanted: str | None) -> None:
    """Ends one of the caller's sessions; ApiError 404 session_not_found."""
    session_id, user_id = call.caller()
    await require_alive(call, session_id, user_id)
    if wanted is None or not await call.database.rows(OWNED, wanted, user_id):
        raise ApiError(404, "session_not_found", "You have no such session.")
    if await revoke(call, user_id, wanted, "revoked_by_user"):
        await audit.write(call, "session_revoked", "user", user_id=user_id, session_id=wanted)
