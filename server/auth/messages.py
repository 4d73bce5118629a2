"""Codes and links on their way to a user.

Asking is answered before anything is looked up: the work goes on after the answer, so neither
its content nor its time tells whether somebody has the address.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from ichicore.errors import ApiError
from server.auth import codes, mail, ratelimit, redirects, sms
from server.auth.codes import Issued
from server.auth.ratelimit import Hit
from server.auth.room import Call

LANDING = {
    "verify_email": "verify_email",
    "password_reset": "password_reset",
    "passwordless": "passwordless",
    "twofa": "twofa",
    "invite": "invite",
}


def limits(call: Call, address: str) -> list[Hit]:
    """The counters of a request for a message to an address."""
    rates = call.settings.rate_limits
    hits = [
        (f"message|{address}", rates.message_per_address),
        (f"message hour|{address}", rates.message_per_address_hour),
        ("messages", rates.message_project),
    ]
    if not call.trusted:
        hits.append((f"message ip|{call.ip}", rates.message_per_ip))
    return hits


async def request(call: Call, purpose: str, address: str, delivery: str) -> None:
    """Counts the request, then makes and sends the challenge after the answer."""
    await ratelimit.take(call.database, *limits(call, address))
    call.room.later(challenge(call, purpose, address, delivery), f"message {purpose}")


async def challenge(
    call: Call, purpose: str, address: str, delivery: str, payload: dict[str, Any] | None = None
) -> None:
    """Makes a challenge and mails it to whoever may have it."""
    issued = await make(call, purpose, address, delivery, payload)
    if may_have(call, purpose, issued):
        await mail.deliver(call, purpose, address, values(call, purpose, issued))


def may_have(call: Call, purpose: str, issued: Issued) -> bool:
    """Passwordless sign-in makes accounts; everything else is for existing ones."""
    if issued.user_id is not None:
        return True
    return purpose == "passwordless" and not issued.known and call.settings.signup_enabled


async def make(
    call: Call, purpose: str, address: str, delivery: str, payload: dict[str, Any] | None = None
) -> Issued:
    """A challenge that lives as long as the settings say for what it holds."""
    seconds = lifetime(call, delivery)
    return await codes.ask(
        call.database, call.project, purpose, address, delivery, seconds, payload
    )


def lifetime(call: Call, delivery: str) -> int:
    """With a code and a link in one message both end when the code does."""
    settings = call.settings
    return settings.code_seconds if delivery in ("otp", "both") else settings.link_seconds


def values(call: Call, purpose: str, issued: Issued) -> dict[str, str]:
    """What a template may show of a challenge."""
    delivery = "both" if issued.code and issued.token else "otp" if issued.code else "link"
    found = {"minutes": str(max(1, lifetime(call, delivery) // 60))}
    if issued.code is not None:
        found["code"] = issued.code
    if issued.token is not None:
        found["link"] = link(call, purpose, issued.token)
    return found


def link(call: Call, purpose: str, token: str) -> str:
    """The app's landing page with the token, or ours when the project has set none."""
    landing = getattr(call.settings.landing, LANDING[purpose])
    if landing is not None:
        return redirects.with_query(landing, {"token": token})
    query = urlencode({"for": purpose, "token": token})
    return f"{call.project.url}/auth/landing?{query}"


async def request_sms(call: Call, phone: str) -> None:
    """Counts the request against the owner's limits, then sends a code after the answer."""
    own = call.settings.phone
    hits: list[Hit] = [
        (f"sms|{phone}", call.settings.rate_limits.message_per_address),
        (f"sms hour|{phone}", own.per_phone),
        ("sms day", _per(own.per_day, 86_400)),
        ("sms month", _per(own.per_month, 30 * 86_400)),
    ]
    if not call.trusted:
        hits.append((f"sms ip|{call.ip}", own.per_ip))
    await ratelimit.take(call.database, *hits)
    call.room.later(_sms(call, phone), "message phone")


def _per(count: int, seconds: int) -> Any:
    from server.auth.settings import Limit

    return Limit(count, seconds)


async def _sms(call: Call, phone: str) -> None:
    issued = await codes.ask(
        call.database, call.project, "phone", phone, "otp", call.settings.code_seconds
    )
    if issued.user_id is not None or (not issued.known and call.settings.signup_enabled):
        await sms.deliver(call, phone, issued.code or "")


def require_mail(call: Call, code: str, what: str) -> None:
    """ApiError 403 when the project cannot send what the feature needs."""
    if not mail.can_send(call):
        raise ApiError(403, code, f"{what} needs a mail server in the project's settings.")
