"""The section `auth` of a project's settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from server.auth.redirects import RedirectRule, check_rule

Delivery = Literal["otp", "magic", "both"]
LinkDelivery = Literal["link", "otp", "both"]
MESSAGES = (
    "verify_email", "password_reset", "passwordless", "twofa", "invite", "already_registered",
    "password_changed",
)  # fmt: skip
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")

Seconds = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class AuthSettingsError(ValueError):
    """The section cannot be used; the text names the member and what is wrong with it."""


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most `count` in `seconds`."""

    count: Count
    seconds: Seconds


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each limit applies to the key in its name; *_project ones to the whole project."""

    login_per_ip_and_email: Limit = Limit(10, 60)
    login_per_email: Limit = Limit(60, 60)
    login_per_ip: Limit = Limit(120, 60)
    login_project: Limit = Limit(6_000, 60)
    signup_per_ip: Limit = Limit(5, 60)
    signup_project: Limit = Limit(600, 60)
    message_per_address: Limit = Limit(1, 60)
    message_per_address_hour: Limit = Limit(5, 3600)
    message_per_ip: Limit = Limit(30, 300)
    message_project: Limit = Limit(1_000, 3600)
    verify_per_ip: Limit = Limit(60, 60)
    verify_per_ip_and_address: Limit = Limit(10, 60)
    verify_per_address_hour: Limit = Limit(60, 3600)
    refresh_per_session: Limit = Limit(60, 60)
    oauth_per_ip: Limit = Limit(30, 60)
    password_per_user: Limit = Limit(10, 60)


class Lockout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Wrong passwords in a row: after `free` ones the wait starts at one second and doubles with
    each further one, up to `longest` seconds. The first pair counts per client and e-mail, the
    second per e-mail from anywhere."""

    free: Count = 5
    longest: Seconds = 900
    free_per_email: Count = 50
    longest_per_email: Seconds = 60
    forget_after: Seconds = 86_400


class Smtp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The project's own mail server. security: "starttls" and "tls" verify the certificate."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 587
    username: str | None = None
    password: str | None = None
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
    sender_name: Annotated[str, msgspec.Meta(max_length=100)] = ""


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message. Parts left out keep their built-in text. {{ name }} is replaced."""

    subject: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    text: Annotated[str, msgspec.Meta(max_length=20_000)] | None = None
    html: Annotated[str, msgspec.Meta(max_length=100_000)] | None = None


class LandingUrls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pages of the app that take ?token=…; a missing one means the built-in page."""

    verify_email: str | None = None
    password_reset: str | None = None
    passwordless: str | None = None
    twofa: str | None = None
    invite: str | None = None


class Phone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sign-in by SMS. The webhook gets {phone, code, message} signed with webhook_secret."""

    enabled: bool = False
    webhook_url: str | None = None
    webhook_secret: str | None = None
    message: Annotated[str, msgspec.Meta(max_length=300)] = "{{ code }} is your {{ project }} code"
    per_ip: Limit = Limit(10, 3600)
    per_phone: Limit = Limit(5, 3600)
    per_day: Count = 1_000
    per_month: Count = 20_000


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One OAuth client. kind: "oidc" needs issuer; "apple" needs team_id, key_id and private_key
    (PEM) in place of client_secret. The kind may be left out when it is the provider's name."""

    kind: Literal["google", "github", "apple", "oidc"] | None = None
    enabled: bool = True
    client_id: Annotated[str, msgspec.Meta(min_length=1)]
    client_secret: str | None = None
    issuer: str | None = None
    scopes: tuple[str, ...] = ()
    team_id: str | None = None
    key_id: str | None = None
    private_key: str | None = None


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times in seconds. redirect_urls: see redirects.py. claims_hook: [schema.]function taking and
    giving jsonb. templates: kind of message (see templates.py) to its parts."""

    signup_enabled: bool = True
    require_verified_email: bool = False
    verification: LinkDelivery = "link"
    password_reset: LinkDelivery = "link"  # noqa: S105
    passwordless: Literal["off", "otp", "magic", "both"] = "off"
    twofa: Literal["off", "otp", "magic", "both"] = "off"
    phone: Phone = Phone()
    providers: dict[str, Provider] = {}
    redirect_urls: tuple[str, ...] = ()
    landing: LandingUrls = LandingUrls()
    smtp: Smtp | None = None
    templates: dict[str, Template] = {}
    app_name: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    access_token_seconds: Annotated[int, msgspec.Meta(ge=300, le=86_400)] = 900
    session_idle_seconds: Annotated[int, msgspec.Meta(ge=3600)] = 30 * 86_400
    session_total_seconds: Annotated[int, msgspec.Meta(ge=3600)] = 90 * 86_400
    refresh_grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=300)] = 30
    code_seconds: Annotated[int, msgspec.Meta(ge=60, le=3600)] = 600
    link_seconds: Annotated[int, msgspec.Meta(ge=60, le=86_400)] = 900
    claims_hook: str | None = None
    rate_limits: RateLimits = RateLimits()
    lockout: Lockout = Lockout()

    def __post_init__(self) -> None:
        _check(self)


def parse(section: dict[str, Any]) -> AuthSettings:
    """Plain JSON object to settings; raises AuthSettingsError."""
    try:
        return msgspec.convert(section, AuthSettings)
    except msgspec.ValidationError as error:
        raise AuthSettingsError(str(error)) from None


def _check(settings: AuthSettings) -> None:
    for url in settings.redirect_urls:
        check_rule(url, AuthSettingsError)
    for name in settings.landing.__struct_fields__:
        url = getattr(settings.landing, name)
        if url is not None and RedirectRule.parse(url) is None:
            raise AuthSettingsError(f"landing.{name} is not a plain URL: {url!r}")
    for kind in settings.templates:
        if kind not in MESSAGES:
            raise AuthSettingsError(f"templates: there is no message {kind!r}; only {MESSAGES}")
    hook = settings.claims_hook
    if hook is not None and not FUNCTION_NAME.fullmatch(hook):
        raise AuthSettingsError("claims_hook must be function or schema.function")
    for name, provider in settings.providers.items():
        _check_provider(name, provider)
    phone = settings.phone
    if phone.webhook_url is not None:
        if not phone.webhook_url.startswith(("https://", "http://")):
            raise AuthSettingsError("phone.webhook_url must be an http(s) URL")
        if not phone.webhook_secret or len(phone.webhook_secret) < 16:
            raise AuthSettingsError("phone.webhook_secret needs at least 16 characters")


def _check_provider(name: str, provider: Provider) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
        raise AuthSettingsError(f"providers: {name!r} is not a name of lower-case letters")
    kind = provider.kind or name
    if kind not in ("google", "github", "apple", "oidc"):
        raise AuthSettingsError(f"providers.{name} needs a kind: google, github, apple or oidc")
    if kind == "oidc" and not (provider.issuer or "").startswith(("https://", "http://")):
        raise AuthSettingsError(f"providers.{name} needs its issuer, an http(s) URL")
    if kind == "apple":
        if not (provider.team_id and provider.key_id and provider.private_key):
            raise AuthSettingsError(f"providers.{name} needs team_id, key_id and private_key")
    elif not provider.client_secret:
        raise AuthSettingsError(f"providers.{name} needs client_secret")
