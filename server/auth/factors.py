"""The second step after a password, and sign-ins that need no password.

A second step is a fresh proof that the user holds the e-mail address. Only a right password makes
its challenge, so an answer without one meets no row. Further kinds of proof (one-time generators,
passkeys) would be further purposes here; a session records the way it was opened in `methods`.
"""

from __future__ import annotations

from ichicore.errors import ApiError
from server.auth import audit, codes, inputs, mail, messages, ratelimit, sessions
from server.auth.answers import json
from server.auth.codes import Taken
from server.auth.database import Rows, statement, sure, text
from server.auth.room import Call
from server.auth.settings import Limit
from server.auth.tokens import Subject
from server.base.http import Response

TWOFA_MESSAGES = Limit(5, 600)  # a right password was typed: more than for strangers

# Proving an address for the first time by other means than its sign-up mail removes what somebody
# who did not hold it may have set before: the password, other identities, open sessions.
ENTER_BY_EMAIL = statement(
    """
    with before as (
      select id, email_verified_at is null as unproven from auth.users where email = $1
    ), the_user as (
      insert into auth.users as u (email, email_verified_at)
      select $1, now() where $2::boolean or exists (select from before)
      on conflict (email) do update set
        email_verified_at = coalesce(u.email_verified_at, now()),
        password_hash = case when u.email_verified_at is null then null
          else u.password_hash end,
        updated_at = now()
      where u.disabled_at is null
      returning u.id, u.email, u.phone
    ), gone as (
      update auth.sessions set revoked_at = now(), revoke_reason = 'address_proven'
      where user_id in (select id from before where unproven) and revoked_at is null
        and ends_at > now()
      returning id
    ), dropped as (
      delete from auth.identities where user_id in (select id from before where unproven)
    ), record as (
      insert into auth.audit_events (event, actor, user_id, ip, user_agent)
      select 'signup', 'user', id, $3, $4 from the_user where not exists (select from before)
    )
    select id, email, phone, array_to_string(array(select id from gone), ','),
      exists (select from before where unproven) from the_user
    """
)
# Nothing can have been set under a number before it was proven.
ENTER_BY_PHONE = statement(
    """
    with the_user as (
      insert into auth.users as u (phone, phone_verified_at)
      select $1, now() where $2::boolean or exists (select from auth.users where phone = $1)
      on conflict (phone) do update set
        phone_verified_at = coalesce(u.phone_verified_at, now()), updated_at = now()
      where u.disabled_at is null
      returning u.id, u.email, u.phone, u.xmax = 0 as made
    ), record as (
      insert into auth.audit_events (event, actor, user_id, ip, user_agent)
      select 'signup', 'user', id, $3, $4 from the_user where made
    )
    select id, email, phone, '', false from the_user
    """
)

USER = statement(
    """
    select id, email, phone from auth.users
    where id = $1::uuid and disabled_at is null
    """
)


def methods(delivery: str) -> list[str]:
    """What the client is told was sent."""
    return ["otp", "magic"] if delivery == "both" else [delivery]


async def begin(call: Call, user: Subject, stored: str | None) -> Response:
    """After a right password: sends the second factor and answers the challenge."""
    if user.email is None or not mail.can_send(call):
        raise ApiError(
            503, "unavailable", "The second step needs a mail server in the project's settings."
        )
    await ratelimit.take(call.database, (f"twofa|{user.email}", TWOFA_MESSAGES))
    delivery = call.settings.twofa
    # Bound to the password that was typed: when it changes meanwhile, the step does not count.
    proof = {"password": _password_mark(call, user.id, stored)}
    issued = await messages.make(call, "twofa", user.email, delivery, proof)
    values = messages.values(call, "twofa", issued)
    call.room.later(mail.deliver(call, "twofa", user.email, values), "message twofa")
    return json(200, {"twofa_required": True, "methods": methods(delivery)})


PASSWORD_OF = statement("select password_hash from auth.users where id = $1::uuid")


def _password_mark(call: Call, user_id: str, stored: str | None) -> str:
    """Changes when the stored hash does, and tells nothing about it."""
    return codes.code_hash(call.project, "twofa password", user_id, stored or "").hex()


async def _finish_twofa(call: Call, taken: Taken) -> Response:
    if taken.user_id is None:
        raise codes.invalid_code()
    rows = await call.database.rows(PASSWORD_OF, taken.user_id)
    stored = text(rows[0][0]) if rows else None
    if taken.payload.get("password") != _password_mark(call, taken.user_id, stored):
        raise codes.invalid_code()
    return await _enter(call, taken.user_id, "password+email")


async def verify_twofa(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.AddressCode)
    email = inputs.email(body.email)
    await limit_tries(call, email)
    return await _finish_twofa(call, await codes.redeem_code(call, "twofa", email, body.code))


async def verify_twofa_link(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.Token)
    await limit_tries(call, None)
    return await _finish_twofa(call, await codes.redeem_token(call, body.token, "twofa"))


async def request_passwordless(call: Call) -> Response:
    email = inputs.email((await inputs.read(call.request, inputs.Address)).email)
    delivery = call.settings.passwordless
    if delivery == "off":
        raise _off()
    messages.require_mail(call, "passwordless_disabled", "Sign-in without a password")
    await messages.request(call, "passwordless", email, delivery)
    return json(202, {"sent": True})


async def verify_passwordless(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.AddressCode)
    email = inputs.email(body.email)
    if call.settings.passwordless == "off":
        raise _off()
    await limit_tries(call, email)
    await codes.redeem_code(call, "passwordless", email, body.code)
    rows = await call.database.rows(
        ENTER_BY_EMAIL, email, call.settings.signup_enabled, call.ip, call.user_agent
    )
    return await _entered(call, rows, "otp")


async def verify_magic(call: Call) -> Response:
    """The link of a passwordless sign-in, or one that an administrator has made."""
    body = await inputs.read(call.request, inputs.Token)
    await limit_tries(call, None)
    taken = await codes.redeem_token(call, body.token, "passwordless")
    if call.settings.passwordless == "off" and not taken.payload.get("by_admin"):
        raise _off()
    rows = await call.database.rows(
        ENTER_BY_EMAIL, taken.address, call.settings.signup_enabled, call.ip, call.user_agent
    )
    return await _entered(call, rows, "magic")


async def request_phone(call: Call) -> Response:
    phone = inputs.phone((await inputs.read(call.request, inputs.PhoneNumber)).phone)
    _require_phone(call)
    await messages.request_sms(call, phone)
    return json(202, {"sent": True})


async def verify_phone(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.PhoneCode)
    phone = inputs.phone(body.phone)
    _require_phone(call)
    await limit_tries(call, phone)
    await codes.redeem_code(call, "phone", phone, body.code)
    rows = await call.database.rows(
        ENTER_BY_PHONE, phone, call.settings.signup_enabled, call.ip, call.user_agent
    )
    return await _entered(call, rows, "phone")


async def _entered(call: Call, rows: Rows, method: str) -> Response:
    """A session for the account that a proven address leads to."""
    if not rows:
        raise ApiError(403, "user_disabled", "This account cannot sign in.")
    user_id, _, _, gone, unproven = rows[0]
    await sessions.announce(call, [one for one in sure(gone).split(",") if one])
    if unproven == b"t":
        await audit.write(call, "address_proven", "user", user_id=sure(user_id))
    return await _enter(call, sure(user_id), method)


async def _enter(call: Call, user_id: str, method: str) -> Response:
    rows = await call.database.rows(USER, user_id)
    if rows:
        user = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
        result = await sessions.start(call, user, method)
        if result is not None:
            return json(200, result)
    raise ApiError(403, "user_disabled", "This account cannot sign in.")


def _off() -> ApiError:
    return ApiError(403, "passwordless_disabled", "This app has no sign-in without a password.")


def _require_phone(call: Call) -> None:
    own = call.settings.phone
    if not own.enabled or (own.webhook_url is None and not call.room.development):
        raise ApiError(403, "phone_disabled", "This app has no sign-in by phone.")


async def limit_tries(call: Call, address: str | None) -> None:
    """Counts an attempt to answer a challenge."""
    rates = call.settings.rate_limits
    hits = []
    if not call.trusted:
        hits.append((f"verify|{call.ip}", rates.verify_per_ip))
    if address is not None:
        hits.append((f"verify|{call.ip}|{address}", rates.verify_per_ip_and_address))
        hits.append((f"verify hour|{address}", rates.verify_per_address_hour))
    if hits:
        await ratelimit.take(call.database, *hits)
