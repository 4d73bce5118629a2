"""Signing up and in with a password, the user's own record, and password changes."""

from __future__ import annotations

import asyncio
import uuid

from ichicore.errors import ApiError
from server.auth import (
    audit,
    codes,
    factors,
    inputs,
    mail,
    messages,
    passwords,
    ratelimit,
    sessions,
)
from server.auth.answers import json, raw_json
from server.auth.codes import Taken
from server.auth.database import ISO, statement, sure, text
from server.auth.ratelimit import Hit
from server.auth.room import Call, ended
from server.auth.sessions import LIVE
from server.auth.tokens import Subject
from server.base.http import Response

# A refused sign-in is answered no sooner: the hash of an imported password may take another time
# than ours, and no hash at all must take as long as one.
REFUSAL_SECONDS = 0.25

PROFILE = f"""json_build_object('id', u.id, 'email', u.email,
      'verified_at', {ISO.format("u.email_verified_at")},
      'email_verified', u.email_verified_at is not null, 'phone', u.phone,
      'created_at', {ISO.format("u.created_at")}, 'metadata', u.metadata)::text"""

SIGNUP = statement(
    """
    with made as (
      insert into auth.users (email, password_hash) values ($1, $2)
      on conflict (email) do nothing returning id
    ), record as (
      insert into auth.audit_events (event, actor, user_id, ip, user_agent)
      select 'signup', 'user', id, $3, $4 from made
    )
    select id from made
    """
)

# The last sign-up of an address that was never confirmed counts; its sessions cannot exist, as
# this is used only where confirming comes first.
SIGNUP_AGAIN = statement(
    """
    update auth.users set password_hash = $2, updated_at = now()
    where email = $1 and email_verified_at is null and last_sign_in_at is null
      and disabled_at is null
    returning id
    """
)

BY_EMAIL = statement(
    """
    select id, email, phone, password_hash, email_verified_at is not null,
      disabled_at is not null
    from auth.users where email = $1
    """
)

ME = statement(
    f"""
    select {PROFILE} from auth.sessions s join auth.users u on u.id = s.user_id where {LIVE}
    """
)

UPDATE_ME = statement(
    f"""
    update auth.users u set metadata = $3::jsonb, updated_at = now()
    from auth.sessions s where {LIVE} and u.id = s.user_id returning {PROFILE}
    """
)

OWN_PASSWORD = statement(
    f"""
    select u.password_hash, u.email from auth.sessions s join auth.users u on u.id = s.user_id
    where {LIVE}
    """
)

CHANGE_PASSWORD = statement(
    """
    update auth.users set password_hash = $3, updated_at = now()
    where id = $1::uuid and password_hash = $2 returning email
    """
)

# Takes the challenge, sets the password, proves the address and ends all sessions, or does nothing.
RESET = statement(
    """
    with taken as (
      delete from auth.codes
      where purpose = any ($1::text[]) and expires_at > now() and user_id is not null
        and case when $3::bytea is null then address = $2 and code_hash = $4::bytea
          else token_hash = $3::bytea end
      returning user_id
    ), the_user as (
      update auth.users u set password_hash = $5, updated_at = now(),
        email_verified_at = coalesce(u.email_verified_at, now())
      from taken where u.id = taken.user_id and u.disabled_at is null
      returning u.id, u.email
    ), gone as (
      update auth.sessions set revoked_at = now(), revoke_reason = 'password_reset'
      where user_id in (select id from the_user) and ends_at > now()
        and (revoked_at is null or revoke_reason = 'password_changed')
      returning id
    ), record as (
      insert into auth.audit_events (event, actor, user_id, ip, user_agent)
      select 'password_reset', 'user', id, $6, $7 from the_user
    )
    select id, email, array_to_string(array(select id from gone), ',') from the_user
    """
)

VERIFIED = statement(
    """
    update auth.users set email_verified_at = coalesce(email_verified_at, now()),
      updated_at = now()
    where id = $1::uuid and email = $2 returning id
    """
)


async def signup(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.Credentials)
    settings = call.settings
    if not settings.signup_enabled and not call.trusted:
        raise ApiError(403, "signup_disabled", "This app does not take sign-ups.")
    email = inputs.email(body.email)
    passwords.check_strength(body.password, email, call.app_name)
    rates = settings.rate_limits
    hits: list[Hit] = [("signup", rates.signup_project)]
    if not call.trusted:
        hits.append((f"signup|{call.ip}", rates.signup_per_ip))
    await ratelimit.take(call.database, *hits)
    confirm = settings.require_verified_email
    hashed = await call.room.passwords.hash(call.project, body.password)
    rows = await call.database.rows(SIGNUP, email, hashed, call.ip, call.user_agent)
    if not rows and not confirm:
        raise ApiError(409, "email_taken", "There is an account with this address already.")
    if rows:
        user_id = sure(rows[0][0])
        if confirm:
            call.room.later(
                messages.challenge(call, "verify_email", email, settings.verification), "signup"
            )
    else:
        # Where the address must be confirmed nobody learns here whether it is registered.
        user_id = str(uuid.uuid4())
        call.room.later(_signup_again(call, email, hashed), "signup")
    return json(201, {"user_id": user_id, "email": email, "needs_verification": confirm})


async def _signup_again(call: Call, email: str, hashed: str) -> None:
    try:
        await ratelimit.take(call.database, *messages.limits(call, email))
    except ApiError:
        return  # the owner of the address has got enough mail
    if await call.database.rows(SIGNUP_AGAIN, email, hashed):
        await messages.challenge(call, "verify_email", email, call.settings.verification)
    else:
        await mail.deliver(call, "already_registered", email, {})


async def login(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.Credentials)
    email = inputs.email(body.email)
    rates = call.settings.rate_limits
    hits: list[Hit] = [(f"login email|{email}", rates.login_per_email)]
    hits.append(("login", rates.login_project))
    if not call.trusted:
        hits.append((f"login|{call.ip}|{email}", rates.login_per_ip_and_email))
        hits.append((f"login ip|{call.ip}", rates.login_per_ip))
    guesses = ratelimit.guess_keys(call.ip, email)
    began = asyncio.get_running_loop().time()
    full, locked, found = await call.database.together(
        (ratelimit.TAKE, ratelimit.taking(*hits)[1]),
        (ratelimit.LOCKED, guesses),
        (BY_EMAIL, (email,)),
    )
    ratelimit.check(full)
    ratelimit.check_lock(locked)
    for _ in range(2):  # once more when the hash was replaced while we checked it
        row = found[0] if found else None
        stored = None if row is None else text(row[3])
        right, stale = await call.room.passwords.verify(call.project, body.password, stored)
        if row is None or not right:
            break
        user = Subject(sure(row[0]), text(row[1]), text(row[2]))
        if row[5] == b"t":
            raise ApiError(403, "user_disabled", "This account is disabled.")
        if call.settings.require_verified_email and row[4] != b"t":
            raise ApiError(403, "email_not_verified", "Confirm your e-mail address first.")
        new_hash = await call.room.passwords.hash(call.project, body.password) if stale else None
        if call.settings.twofa != "off":
            return await factors.begin(call, user, stored)
        result = await sessions.start(
            call, user, "password", expected_hash=stored, new_hash=new_hash
        )
        if result is not None:
            if locked:
                call.room.later(_forgive(call, guesses), "login")
            return json(200, result)
        found = await call.database.rows(BY_EMAIL, email)
    await ratelimit.failed(call.database, guesses, call.settings.lockout)
    await asyncio.sleep(began + REFUSAL_SECONDS - asyncio.get_running_loop().time())
    raise ApiError(401, "invalid_credentials", "The e-mail address or the password is wrong.")


async def _forgive(call: Call, guesses: tuple[bytes, bytes]) -> None:
    await call.database.rows(ratelimit.FORGIVE, *guesses)


async def me(call: Call) -> Response:
    rows = await call.database.rows(ME, *call.caller())
    if not rows:
        raise ended()
    return raw_json(200, rows[0][0] or b"")


async def update_me(call: Call) -> Response:
    session_id, user_id = call.caller()
    body = await inputs.read(call.request, inputs.MetadataPatch)
    metadata = inputs.metadata(body.metadata)
    rows = await call.database.rows(UPDATE_ME, session_id, user_id, metadata)
    if not rows:
        raise ended()
    return raw_json(200, rows[0][0] or b"")


async def change_password(call: Call) -> Response:
    session_id, user_id = call.caller()
    body = await inputs.read(call.request, inputs.PasswordChange)
    limit = call.settings.rate_limits.password_per_user
    full, found = await call.database.together(
        (ratelimit.TAKE, ratelimit.taking((f"password|{user_id}", limit))[1]),
        (OWN_PASSWORD, (session_id, user_id)),
    )
    if not found:
        raise ended()
    ratelimit.check(full)
    stored, email = text(found[0][0]), text(found[0][1])
    passwords.check_strength(body.new_password, email, call.app_name)
    right, _ = await call.room.passwords.verify(call.project, body.current_password, stored)
    if not right or stored is None:
        raise ApiError(401, "invalid_credentials", "The current password is wrong.")
    hashed = await call.room.passwords.hash(call.project, body.new_password)
    if not await call.database.rows(CHANGE_PASSWORD, user_id, stored, hashed):
        raise ApiError(409, "conflict", "The password was changed at the same moment.")
    await sessions.revoke_all(call, user_id, "password_changed", keep=session_id, tell=False)
    await audit.write(call, "password_changed", "user", user_id=user_id, session_id=session_id)
    if email is not None:
        call.room.later(mail.deliver(call, "password_changed", email, {}), "message")
    return json(
        200,
        {
            "changed": True,
            "hint": "Other sessions cannot be refreshed any more; access tokens that are out "
            "go on working until they expire.",
        },
    )


async def request_reset(call: Call) -> Response:
    email = inputs.email((await inputs.read(call.request, inputs.Address)).email)
    await messages.request(call, "password_reset", email, call.settings.password_reset)
    return json(202, {"sent": True})


async def reset_by_token(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.ResetByToken)
    passwords.check_strength(body.new_password, call.app_name)
    await factors.limit_tries(call, None)
    await codes.redeem_token(call, body.token, "password_reset", "invite", keep=True)
    hashed = await call.room.passwords.hash(call.project, body.new_password)
    done = await _reset(call, ["password_reset", "invite"], None, body.token, None, hashed)
    if not done:
        raise codes.expired_token()
    return json(200, {"reset": True})


async def reset_by_code(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.ResetByCode)
    email = inputs.email(body.email)
    passwords.check_strength(body.new_password, email, call.app_name)
    await factors.limit_tries(call, email)
    await codes.redeem_code(call, "password_reset", email, body.code, keep=True)
    hashed = await call.room.passwords.hash(call.project, body.new_password)
    digest = codes.code_hash(call.project, "password_reset", email, body.code.strip())
    if not await _reset(call, ["password_reset"], email, None, digest, hashed):
        raise codes.invalid_code()
    return json(200, {"reset": True})


async def _reset(
    call: Call,
    purposes: list[str],
    email: str | None,
    token: str | None,
    digest: bytes | None,
    hashed: str,
) -> bool:
    rows = await call.database.rows(
        RESET, purposes, email, None if token is None else codes.token_hash(token), digest, hashed,
        call.ip, call.user_agent,
    )  # fmt: skip
    if not rows:
        return False
    _, address, gone = rows[0]
    await sessions.announce(call, [one for one in sure(gone).split(",") if one])
    call.room.later(mail.deliver(call, "password_changed", sure(address), {}), "message")
    return True


async def verify_by_token(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.Token)
    await factors.limit_tries(call, None)
    await _verified(call, await codes.redeem_token(call, body.token, "verify_email"))
    return json(200, {"verified": True})


async def verify_by_code(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.AddressCode)
    email = inputs.email(body.email)
    await factors.limit_tries(call, email)
    await _verified(call, await codes.redeem_code(call, "verify_email", email, body.code))
    return json(200, {"verified": True})


async def _verified(call: Call, taken: Taken) -> None:
    if taken.user_id is None or not await call.database.rows(
        VERIFIED, taken.user_id, taken.address
    ):
        raise codes.expired_token()
    await audit.write(call, "email_verified", "user", user_id=taken.user_id)


async def resend(call: Call) -> Response:
    email = inputs.email((await inputs.read(call.request, inputs.Address)).email)
    await messages.request(call, "verify_email", email, call.settings.verification)
    return json(202, {"sent": True})
