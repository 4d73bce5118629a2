"""Sign-in at a provider: the way out, the way back, and the session for the app.

The way out stores a row under a hash of `state`: provider, nonce, PKCE verifier, redirect. A cookie
ties it to the browser that set out, so that a way back prepared by somebody else signs nobody in.
The row is taken once. The app gets its session in the URL fragment, or, when it came with a PKCE
challenge of its own, a code to redeem once within a minute.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from urllib.parse import parse_qsl

import msgspec

from ichicore.errors import ApiError
from server.auth import audit, codes, inputs, ratelimit, redirects, sessions
from server.auth.answers import json, redirect
from server.auth.database import statement, sure, text
from server.auth.outbound import OutboundError
from server.auth.providers import Person, ProviderError, Providers, challenge
from server.auth.room import Call, log
from server.auth.settings import Limit, Provider
from server.auth.tokens import Subject
from server.base.http import Response

FLOW_SECONDS = 600
EXCHANGE_SECONDS = 60
CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}", re.ASCII)
EXCHANGES = Limit(60, 60)

BEGIN = statement(
    """
    insert into auth.oauth_flows (state_hash, provider, browser_hash, nonce, verifier, callback,
      redirect, challenge, expires_at)
    values ($1::bytea, $2, $3::bytea, $4, $5, $6, $7, $8, now() + make_interval(secs => $9::float8))
    """
)

TAKE = statement(
    """
    delete from auth.oauth_flows where state_hash = $1::bytea and expires_at > now()
    returning provider, browser_hash, nonce, verifier, callback, redirect, challenge
    """
)

FIND = statement(
    """
    with known as (
      update auth.identities i set last_used_at = now(), email = $3, data = $4::jsonb
      where provider = $1 and subject = $2 returning user_id
    )
    select u.id, u.email, u.phone, u.disabled_at is not null
    from known join auth.users u on u.id = known.user_id
    """
)

# An account is joined only when both sides have verified the address.
JOIN = statement(
    """
    with the_user as (
      select id, email, phone from auth.users
      where email = $3 and email_verified_at is not null and disabled_at is null
      for update
    ), made as (
      insert into auth.identities (user_id, provider, subject, email, data)
      select id, $1, $2, $3, $4::jsonb from the_user on conflict do nothing returning user_id
    )
    select u.id, u.email, u.phone from the_user u join made on made.user_id = u.id
    """
)

HOLDER = statement(
    "select email_verified_at is not null, disabled_at is not null from auth.users where email = $1"
)

CREATE = statement(
    """
    with the_user as (
      insert into auth.users (email, email_verified_at, metadata)
      values ($3, case when $3::text is not null then now() end, $5::jsonb)
      on conflict (email) do nothing returning id, email
    ), made as (
      insert into auth.identities (user_id, provider, subject, email, data)
      select id, $1, $2, $6, $4::jsonb from the_user returning user_id
    ), record as (
      insert into auth.audit_events (event, actor, user_id, ip, user_agent, detail)
      select 'signup', 'user', id, $7, $8, jsonb_build_object('provider', $1::text) from the_user
    )
    select u.id, u.email from the_user u join made on made.user_id = u.id
    """
)

KEEP = statement(
    """
    insert into auth.codes (purpose, address, user_id, token_hash, payload, expires_at)
    values ('oauth_exchange', $1, $2::uuid, $3::bytea, $4::jsonb,
      now() + make_interval(secs => $5::float8))
    """
)


class Flow(msgspec.Struct, frozen=True):
    """One sign-in under way. callback: our address as the provider knows it. challenge: the
    app's own, None when the session goes into the fragment."""

    provider: str
    browser_hash: bytes
    nonce: str
    verifier: str
    callback: str
    redirect: str
    challenge: str | None


class Refused(Exception):
    """The sign-in failed in a way that the app is told."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


def chosen(call: Call, name: str) -> Provider:
    """The provider of a path; ApiError 404 unknown_provider, 403 provider_disabled."""
    found = call.settings.providers.get(name)
    if found is None:
        raise ApiError(404, "unknown_provider", "This app has no such provider.")
    if not found.enabled:
        raise ApiError(403, "provider_disabled", "This provider is switched off.")
    return found


def parameters(raw: str) -> dict[str, str]:
    """Query or form; one that is repeated is refused, as nobody could tell which one counts."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise inputs.bad_request("There are too many parameters.") from None
    for name, value in pairs:
        if name in found:
            raise inputs.bad_request("A parameter is given twice.")
        found[name] = value
    return found


def _hash(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "replace")).digest()


def _cookie(state: str) -> str:
    """Several sign-ins may be under way in one browser."""
    return f"ichi_oauth_{hashlib.sha256(state.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _set_cookie(call: Call, state: str, value: str, form_post: bool, seconds: int) -> str:
    secure = call.project.url.startswith("https:")
    # A provider that posts its answer needs a cookie that other sites' forms carry along.
    same_site = "None" if form_post and secure else "Lax"
    text_ = f"{_cookie(state)}={value}; Path=/auth/oauth; Max-Age={seconds}; HttpOnly"
    return f"{text_}; SameSite={same_site}" + ("; Secure" if secure else "")


async def authorize(call: Call, providers: Providers, name: str) -> Response:
    provider = chosen(call, name)
    query = parameters(call.request.query)
    target = query.get("redirect", "")
    if not redirects.allowed(target, call.settings.redirect_urls):
        raise ApiError(
            400, "invalid_redirect", "The redirect is not in the project's list of redirect URLs."
        )
    own = query.get("code_challenge")
    if own is not None:
        if query.get("code_challenge_method", "S256") != "S256" or not CHALLENGE.fullmatch(own):
            raise inputs.bad_request("code_challenge must be the S256 form of a verifier.")
    await ratelimit.take(
        call.database, (f"oauth|{call.ip}", call.settings.rate_limits.oauth_per_ip)
    )
    state, browser = codes.new_token(), codes.new_token()
    nonce, verifier = codes.new_token(), secrets.token_urlsafe(64)
    callback = f"{call.project.url}/auth/oauth/{name}/callback"
    try:
        url = await providers.authorize_url(name, provider, callback, state, nonce, verifier)
    except (ProviderError, OutboundError) as error:
        log.warning("provider %s of project %s: %s", name, call.project.slug, error)
        raise ApiError(
            503, "unavailable", "The provider cannot be reached.", headers=(("retry-after", "5"),)
        ) from None
    await call.database.rows(
        BEGIN, _hash(state), name, _hash(browser), nonce, verifier, callback, target, own,
        FLOW_SECONDS,
    )  # fmt: skip
    form_post = (provider.kind or name) == "apple"
    cookie = _set_cookie(call, state, browser, form_post, FLOW_SECONDS)
    return redirect(url, ("set-cookie", cookie))


async def callback(call: Call, providers: Providers, name: str) -> Response:
    if call.request.method == "POST":
        raw = await call.request.read_body(inputs.MAX_BODY)
        answer = parameters(raw.decode("utf-8", "replace"))
    else:
        answer = parameters(call.request.query)
    state = answer.get("state", "")
    rows = await call.database.rows(TAKE, _hash(state))
    if not rows:
        raise _broken()
    row = rows[0]
    flow = Flow(
        sure(row[0]), bytes.fromhex(sure(row[1])[2:]), sure(row[2]), sure(row[3]), sure(row[4]),
        sure(row[5]), text(row[6]),
    )  # fmt: skip
    given = _read_cookie(call.request.headers.get("cookie", ""), _cookie(state))
    if flow.provider != name or not hmac.compare_digest(_hash(given), flow.browser_hash):
        raise _broken()
    clear = ("set-cookie", _set_cookie(call, state, "", False, 0))
    # The list may have changed since the browser set out.
    if not redirects.allowed(flow.redirect, call.settings.redirect_urls):
        raise ApiError(400, "invalid_redirect", "The redirect is not allowed any more.")
    try:
        values = await _finish(call, providers, flow, answer)
    except Refused as refusal:
        values = {"error": refusal.code, "error_description": refusal.description}
    except ApiError as error:
        values = {"error": error.code, "error_description": error.message}
    put = redirects.with_query if flow.challenge is not None else redirects.with_fragment
    return redirect(put(flow.redirect, values), clear)


def _broken() -> ApiError:
    return inputs.bad_request(
        "This sign-in was not begun in this browser, is over, or took too long; begin again."
    )


def _read_cookie(header: str, name: str) -> str:
    for part in header.split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


async def _finish(
    call: Call, providers: Providers, flow: Flow, answer: dict[str, str]
) -> dict[str, str]:
    """What the app gets: a session, or a code for one."""
    provider = chosen(call, flow.provider)
    if "error" in answer:
        denied = answer["error"] in ("access_denied", "user_cancelled_authorize")
        code = "access_denied" if denied else "provider_error"
        raise Refused(code, "The provider did not sign you in.")
    if not answer.get("code"):
        raise Refused("provider_error", "The provider gave no code.")
    try:
        person = await providers.person(
            flow.provider, provider, flow.callback, answer, flow.nonce, flow.verifier
        )
    except (ProviderError, OutboundError) as error:
        log.warning("provider %s of project %s: %s", flow.provider, call.project.slug, error)
        raise Refused("provider_error", "The sign-in at the provider failed.") from None
    user = await account(call, flow.provider, person)
    method = f"oauth:{flow.provider}"
    if flow.challenge is not None:
        code = codes.new_token()
        payload = {"challenge": flow.challenge, "method": method}
        await call.database.rows(
            KEEP, secrets.token_hex(16), user.id, codes.token_hash(code),
            msgspec.json.encode(payload).decode(), EXCHANGE_SECONDS,
        )  # fmt: skip
        return {"code": code}
    result = await sessions.start(call, user, method)
    if result is None:
        raise Refused("user_disabled", "This account is disabled.")
    values = {
        "access_token": result["access_token"],
        "refresh_token": result["refresh_token"],
        "expires_in": str(result["expires_in"]),
        "token_type": "bearer",
        "user_id": user.id,
    }
    if user.email is not None:
        values["email"] = user.email
    return values


async def account(call: Call, provider: str, person: Person) -> Subject:
    """The user of an identity: known, joined by an address that both sides verified, or new."""
    address = None
    if person.email is not None:
        try:
            address = inputs.email(person.email)
        except ApiError:
            address = None
    data = msgspec.json.encode(person.data).decode()
    for _ in range(2):  # once more when the same person arrives twice at one moment
        rows = await call.database.rows(FIND, provider, person.subject, address, data)
        if rows:
            if rows[0][3] == b"t":
                raise Refused("user_disabled", "This account is disabled.")
            return Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
        proven = address if person.verified else None
        if proven is not None:
            rows = await call.database.rows(JOIN, provider, person.subject, proven, data)
            if rows:
                user = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
                await audit.write(
                    call, "identity_linked", "user", user_id=user.id, detail={"provider": provider}
                )
                return user
            holder = await call.database.rows(HOLDER, proven)
            if holder and holder[0][1] == b"t":
                raise Refused("user_disabled", "This account is disabled.")
            if holder and holder[0][0] != b"t":
                raise Refused(
                    "email_not_verified",
                    "There is an account with this address that never confirmed it. Confirm the "
                    "address, then sign in with the provider.",
                )
        if not call.settings.signup_enabled:
            raise Refused("signup_disabled", "This app does not take sign-ups.")
        shown = ("name", "picture", "avatar_url")
        metadata = {name: person.data[name] for name in shown if name in person.data}
        rows = await call.database.rows(
            CREATE, provider, person.subject, proven, data,
            msgspec.json.encode(metadata).decode(), address, call.ip, call.user_agent,
        )  # fmt: skip
        if rows:
            return Subject(sure(rows[0][0]), text(rows[0][1]), None)
    raise Refused("provider_error", "The account could not be made; try again.")


async def exchange(call: Call) -> Response:
    body = await inputs.read(call.request, inputs.Exchange)
    if not call.trusted:
        await ratelimit.take(call.database, (f"exchange|{call.ip}", EXCHANGES))
    taken = await codes.redeem_token(call, body.code, "oauth_exchange")
    expected = str(taken.payload.get("challenge"))
    if not VERIFIER.fullmatch(body.code_verifier) or not hmac.compare_digest(
        challenge(body.code_verifier), expected
    ):
        raise codes.invalid_code()
    user = Subject(taken.user_id or "", None, None)
    result = None
    rows = await call.database.rows(SUBJECT, taken.user_id)
    if rows:
        user = Subject(sure(rows[0][0]), text(rows[0][1]), text(rows[0][2]))
        result = await sessions.start(call, user, str(taken.payload.get("method")))
    if result is None:
        raise ApiError(403, "user_disabled", "This account cannot sign in.")
    return json(200, result)


SUBJECT = statement("select id, email, phone from auth.users where id = $1::uuid")
