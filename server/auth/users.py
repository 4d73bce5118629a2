"""What the holder of the secret key does with users."""

from __future__ import annotations

import secrets
import uuid
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec

from ichicore.errors import ApiError
from server.auth import audit, codes, hooks, inputs, mail, messages, passwords, sessions, tokens
from server.auth.answers import json, raw_json
from server.auth.database import ISO, statement, sure, text
from server.auth.room import Call
from server.auth.tokens import Subject
from server.base.http import Response

MAX_PAGE = 1_000
IMPERSONATION_SECONDS = 900
INVITE_SECONDS = 3 * 86_400

RECORD = f"""json_build_object('id', u.id, 'email', u.email,
      'email_verified', u.email_verified_at is not null,
      'verified_at', {ISO.format("u.email_verified_at")},
      'phone', u.phone, 'phone_verified', u.phone_verified_at is not null,
      'has_password', u.password_hash is not null, 'disabled', u.disabled_at is not null,
      'metadata', u.metadata, 'app_metadata', u.app_metadata,
      'created_at', {ISO.format("u.created_at")}, 'updated_at', {ISO.format("u.updated_at")},
      'last_sign_in_at', {ISO.format("u.last_sign_in_at")},
      'identities', (select coalesce(json_agg(json_build_object('provider', i.provider,
        'subject', i.subject, 'email', i.email, 'created_at', {ISO.format("i.created_at")})
        order by i.created_at), '[]') from auth.identities i where i.user_id = u.id))"""

LIST = statement(
    f"""
    with hits as (
      select * from auth.users
      where $1::text is null or email = $1 or phone = $1 or id::text = $1
        or (length($1) > 2 and position($1 in email) > 0)
    )
    select json_build_object('total', (select count(*) from hits), 'users',
      (select coalesce(json_agg({RECORD} order by u.created_at desc, u.id), '[]') from (
        select * from hits order by created_at desc, id limit $2::int offset $3::int) u))::text
    """
)

ONE = statement(f"select {RECORD}::text from auth.users u where id = $1::uuid")

CREATE = statement(
    f"""
    with u as (
      insert into auth.users (email, email_verified_at, phone, phone_verified_at, password_hash,
        metadata, app_metadata)
      values ($1, case when $2::boolean then now() end, $3,
        case when $4::boolean then now() end, $5, $6::jsonb, $7::jsonb)
      on conflict do nothing returning *
    )
    select {RECORD}::text, u.id from u
    """
)

UPDATE = statement(
    f"""
    update auth.users u set
      email = coalesce($2, email),
      email_verified_at = case when $3::boolean is null
          then case when $2 is null or $2 = email then email_verified_at end
        when $3::boolean then coalesce(email_verified_at, now()) end,
      phone = coalesce($4, phone),
      phone_verified_at = case when $5::boolean is null
          then case when $4 is null or $4 = phone then phone_verified_at end
        when $5::boolean then coalesce(phone_verified_at, now()) end,
      password_hash = coalesce($6, password_hash),
      metadata = coalesce($7::jsonb, metadata),
      app_metadata = coalesce($8::jsonb, app_metadata),
      disabled_at = case when $9::boolean is null then disabled_at
        when $9::boolean then coalesce(disabled_at, now()) end,
      updated_at = now()
    where id = $1::uuid and not exists (
      select from auth.users o where o.id <> $1::uuid and (o.email = $2 or o.phone = $4))
    returning {RECORD}::text
    """
)

EXISTS = statement("select 1 from auth.users where id = $1::uuid")
DELETE = statement("delete from auth.users where id = $1::uuid returning id")

SESSIONS = statement(
    f"""
    select coalesce(json_agg(json_build_object('id', id, 'user_agent', user_agent, 'ip', ip,
      'methods', methods, 'issued_at', {ISO.format("created_at")},
      'last_used_at', {ISO.format("last_used_at")}, 'expires_at', {ISO.format("expires_at")},
      'impersonated_by', impersonated_by) order by last_used_at desc), '[]')::text
    from auth.sessions
    where user_id = $1::uuid and revoked_at is null and expires_at > now() and ends_at > now()
    """
)

SUBJECT = statement(
    "select id, email, phone from auth.users where id = $1::uuid and disabled_at is null"
)

IMPERSONATE = statement(
    """
    with the_user as (
      select id, email, phone from auth.users where id = $1::uuid and disabled_at is null
    ), session as (
      insert into auth.sessions (id, user_id, token_hash, family_key, expires_at, ends_at, methods,
        impersonated_by, user_agent, ip)
      select $2::uuid, id, $3::bytea, $3::bytea, now() + make_interval(secs => $4::float8),
        now() + make_interval(secs => $4::float8), array['impersonation'], $5, $6, $7 from the_user
    ), record as (
      insert into auth.audit_events (event, actor, user_id, session_id, ip, user_agent, detail)
      select 'impersonation', 'admin', id, $2::uuid, $7, $6, jsonb_build_object('seconds',
        $4::float8, 'reason', $8::text) from the_user
    )
    select id, email, phone from the_user
    """
)

INVITED = statement(
    """
    with made as (
      insert into auth.users (email, metadata) values ($1, $2::jsonb)
      on conflict (email) do nothing returning id
    )
    select id, true from made
    union all select id, false from auth.users where email = $1 and last_sign_in_at is null
      and email_verified_at is null and disabled_at is null
    """
)

EVENTS = statement(
    f"""
    select coalesce(json_agg(x), '[]')::text from (
      select id, {ISO.format("at")} as at, event, actor, user_id, session_id, ip, user_agent, detail
      from auth.audit_events
      where ($1::uuid is null or user_id = $1::uuid) and ($2::bigint is null or id < $2::bigint)
      order by id desc limit $3::int
    ) x
    """
)


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    email: str | None = None
    phone: str | None = None
    password: str | None = None
    password_hash: str | None = None
    email_verified: bool = False
    phone_verified: bool = False
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    app_metadata: msgspec.Raw = msgspec.Raw(b"{}")


class UserPatch(msgspec.Struct, forbid_unknown_fields=True):
    email: str | None = None
    phone: str | None = None
    password: str | None = None
    email_verified: bool | None = None
    phone_verified: bool | None = None
    disabled: bool | None = None
    metadata: msgspec.Raw | None = None
    app_metadata: msgspec.Raw | None = None


class Impersonation(msgspec.Struct, forbid_unknown_fields=True):
    seconds: int = IMPERSONATION_SECONDS
    reason: str = ""


class Invitation(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    metadata: msgspec.Raw = msgspec.Raw(b"{}")


class LinkOrder(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    type: Literal["verify_email", "password_reset", "magic"]


def _query(call: Call) -> dict[str, str]:
    try:
        pairs = parse_qsl(call.request.query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise inputs.bad_request("There are too many parameters.") from None
    return dict(pairs)


def _number(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    value = query.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdecimal() or len(value) > 18:
        raise inputs.bad_request(f"{name} must be a whole number.")
    if not low <= int(value) <= high:
        raise inputs.bad_request(f"{name} must be between {low} and {high}.")
    return int(value)


def _id(value: str) -> str:
    """The user id of a path; ApiError 404."""
    found = inputs.uuid(value)
    if found is None:
        raise missing()
    return found


def missing() -> ApiError:
    return ApiError(404, "user_not_found", "There is no such user.")


def _taken() -> ApiError:
    return ApiError(409, "email_taken", "Another account has this e-mail address or number.")


async def list_users(call: Call) -> Response:
    query = _query(call)
    size = _number(query, "per_page", 50, 1, MAX_PAGE)
    page = _number(query, "page", 1, 1, 1_000_000)
    wanted = query.get("query") or None
    if wanted is not None and (len(wanted) > 254 or "\0" in wanted):
        raise inputs.bad_request("query is too long.")
    rows = await call.database.rows(
        LIST, wanted.lower() if wanted else None, size, (page - 1) * size
    )
    return raw_json(200, rows[0][0] or b"")


async def get_user(call: Call, user: str) -> Response:
    rows = await call.database.rows(ONE, _id(user))
    if not rows:
        raise missing()
    return raw_json(200, rows[0][0] or b"")


async def create_user(call: Call) -> Response:
    body = await inputs.read(call.request, NewUser)
    email = None if body.email is None else inputs.email(body.email)
    phone = None if body.phone is None else inputs.phone(body.phone)
    if email is None and phone is None:
        raise inputs.bad_request("A user needs an email or a phone.")
    hashed = body.password_hash
    if hashed is not None and (body.password is not None or not passwords.is_known_hash(hashed)):
        raise inputs.bad_request("password_hash must be an argon2 or bcrypt hash, alone.")
    if body.password is not None:
        passwords.check_strength(body.password, email, call.app_name)
        hashed = await call.room.passwords.hash(call.project, body.password)
    rows = await call.database.rows(
        CREATE, email, body.email_verified and email is not None, phone,
        body.phone_verified and phone is not None, hashed,
        inputs.metadata(body.metadata), inputs.metadata(body.app_metadata),
    )  # fmt: skip
    if not rows:
        raise _taken()
    await audit.write(call, "user_created", "admin", user_id=sure(rows[0][1]))
    return raw_json(201, rows[0][0] or b"")


async def update_user(call: Call, user: str) -> Response:
    user_id = _id(user)
    body = await inputs.read(call.request, UserPatch)
    email = None if body.email is None else inputs.email(body.email)
    phone = None if body.phone is None else inputs.phone(body.phone)
    hashed = None
    if body.password is not None:
        passwords.check_strength(body.password, email, call.app_name)
        hashed = await call.room.passwords.hash(call.project, body.password)
    rows = await call.database.rows(
        UPDATE, user_id, email, body.email_verified, phone, body.phone_verified, hashed,
        None if body.metadata is None else inputs.metadata(body.metadata),
        None if body.app_metadata is None else inputs.metadata(body.app_metadata),
        body.disabled,
    )  # fmt: skip
    if not rows:
        raise _taken() if await call.database.rows(EXISTS, user_id) else missing()
    changed = [n for n in body.__struct_fields__ if getattr(body, n) is not None]
    await audit.write(call, "user_updated", "admin", user_id=user_id, detail={"members": changed})
    if body.disabled or hashed is not None:
        await sessions.revoke_all(call, user_id, "disabled" if body.disabled else "password_reset")
    return raw_json(200, rows[0][0] or b"")


async def delete_user(call: Call, user: str) -> Response:
    user_id = _id(user)
    if not await call.database.rows(DELETE, user_id):
        raise missing()
    # The sessions are gone with the user, so all workers are told of the user.
    await call.room.revoke_user(call.project, user_id)
    await audit.write(call, "user_deleted", "admin", user_id=user_id)
    return json(200, {"deleted": True})


async def list_sessions(call: Call, user: str) -> Response:
    rows = await call.database.rows(SESSIONS, _id(user))
    return raw_json(200, b'{"sessions":' + (rows[0][0] or b"[]") + b"}")


async def logout_user(call: Call, user: str) -> Response:
    user_id = _id(user)
    if not await call.database.rows(EXISTS, user_id):
        raise missing()
    count = await sessions.revoke_all(call, user_id, "revoked_by_admin")
    await audit.write(call, "sessions_revoked", "admin", user_id=user_id, detail={"count": count})
    return json(200, {"revoked": count})


async def impersonate(call: Call, user: str) -> Response:
    """An access token without a refresh token; its `act` claim says that it is not the user."""
    user_id = _id(user)
    raw = await call.request.read_body(inputs.MAX_BODY)
    body = inputs.decode(raw or b"{}", Impersonation)
    if not 60 <= body.seconds <= 3600:
        raise inputs.bad_request("seconds must be between 60 and 3600.")
    if len(body.reason) > 500 or "\0" in body.reason:
        raise inputs.bad_request("reason is too long.")
    extra = None
    if call.settings.claims_hook is not None:
        rows = await call.database.rows(SUBJECT, user_id)
        if not rows:
            raise missing()
        known = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
        extra = await hooks.claims(call, known, "impersonation")
    session_id = str(uuid.uuid4())
    rows = await call.database.rows(
        IMPERSONATE, user_id, session_id, secrets.token_bytes(32), body.seconds, "service_role",
        call.user_agent, call.ip, body.reason,
    )  # fmt: skip
    if not rows:
        raise missing()
    subject = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
    token = tokens.issue(
        call.project, subject, session_id, body.seconds, extra, actor="service_role"
    )
    answer: dict[str, Any] = {"access_token": token, "expires_in": body.seconds}
    answer["user"] = {"id": subject.id, "email": subject.email}
    return json(200, answer)


async def invite(call: Call) -> Response:
    body = await inputs.read(call.request, Invitation)
    email = inputs.email(body.email)
    messages.require_mail(call, "forbidden", "An invitation")
    rows = await call.database.rows(INVITED, email, inputs.metadata(body.metadata))
    if not rows:
        raise _taken()
    issued = await codes.ask(call.database, call.project, "invite", email, "link", INVITE_SECONDS)
    values = {
        "link": messages.link(call, "invite", issued.token or ""),
        "minutes": str(INVITE_SECONDS // 60),
    }
    call.room.later(mail.deliver(call, "invite", email, values), "message invite")
    user_id = sure(rows[0][0])
    await audit.write(call, "invited", "admin", user_id=user_id)
    return json(202, {"user_id": user_id, "email": email, "sent": True})


async def generate_link(call: Call) -> Response:
    """A link as a mail would hold it, for the app to deliver by itself."""
    body = await inputs.read(call.request, LinkOrder)
    email = inputs.email(body.email)
    purpose = "passwordless" if body.type == "magic" else body.type
    issued = await messages.make(call, purpose, email, "link", {"by_admin": True})
    if issued.user_id is None:
        raise missing()
    await audit.write(
        call, "link_generated", "admin", user_id=issued.user_id, detail={"type": body.type}
    )
    return json(
        200,
        {
            "link": messages.link(call, purpose, issued.token or ""),
            "token": issued.token,
            "expires_in": messages.lifetime(call, "link"),
        },
    )


async def events(call: Call) -> Response:
    query = _query(call)
    user = None
    if "user_id" in query:
        user = inputs.uuid(query["user_id"])
        if user is None:
            raise inputs.bad_request("user_id must be a UUID.")
    before = _number(query, "before", 0, 0, 10**17) or None
    rows = await call.database.rows(EVENTS, user, before, _number(query, "limit", 100, 1, 1000))
    return raw_json(200, b'{"events":' + (rows[0][0] or b"[]") + b"}")
