"""Who a request comes from: the headers apikey and Authorization, read and verified.

A project key is `ich_pub_<jwt>` with the role anon or `ich_admin_<jwt>` with the role
service_role; a user token is a bare JWT with the role authenticated. What is presented must be
valid: a bad credential in either header is refused, never ignored.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from ichicore.errors import ApiError
from ichicore.token.cache import GenerationCache
from ichicore.token.jwt import LEEWAY, MAX_TOKEN, Keyset, VerificationKey
from server.base.project import NOBODY, Identity, Project

PUBLISHABLE = "ich_pub_"
SECRET = "ich_admin_"  # noqa: S105 - a prefix, not a secret
CHALLENGE = (("www-authenticate", "Bearer"),)
CACHE_ENTRIES = 8192  # a project
MAX_DENIED = 100_000  # a project
MAX_LIFETIME = 86_400.0  # seconds; no access token lives longer
NEVER = float("inf")


def bad_key(message: str = "The API key is not valid for this project.") -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers=CHALLENGE)


def missing_key() -> ApiError:
    return ApiError(401, "missing_api_key", "The request carries no API key.", headers=CHALLENGE)


class Denied:
    """Sessions and users of one project whose tokens are refused before they expire. Entries end
    by themselves when no token they could meet is in force any more."""

    __slots__ = ("sessions", "users")

    def __init__(self) -> None:
        self.sessions: dict[str, float] = {}  # session id > when the entry ends
        self.users: dict[str, tuple[float, float]] = {}  # uid > (issued before, when it ends)

    def __bool__(self) -> bool:
        return bool(self.sessions or self.users)

    def session(self, session_id: str, now: float, last: float = NEVER) -> None:
        """Refuses the tokens of one session from now on. last: when the last of them expires."""
        self._trim(now)
        self.sessions[session_id] = min(last, now + MAX_LIFETIME) + LEEWAY

    def user(self, uid: str, before: float, now: float, last: float = NEVER) -> None:
        """Refuses the user's tokens issued before that time (epoch seconds)."""
        self._trim(now)
        self.users[uid] = (before, min(last, now + MAX_LIFETIME) + LEEWAY)

    def covers(self, claims: dict[str, Any], now: float) -> bool:
        """Whether a token with these claims is refused."""
        session = claims.get("session_id")
        if isinstance(session, str) and self.sessions.get(session, 0.0) > now:
            return True
        uid = claims.get("sub")
        if not isinstance(uid, str) or uid not in self.users:
            return False
        before, end = self.users[uid]
        return end > now and float(claims.get("iat", 0)) < before

    def over(self, now: float) -> bool:
        """Whether nothing is refused any more."""
        return not any(end > now for end in self.sessions.values()) and not any(
            end > now for _, end in self.users.values()
        )

    def _trim(self, now: float) -> None:
        if len(self.sessions) + len(self.users) < MAX_DENIED:
            return
        self.sessions = {key: end for key, end in self.sessions.items() if end > now}
        self.users = {key: pair for key, pair in self.users.items() if pair[1] > now}
        while len(self.sessions) + len(self.users) >= MAX_DENIED:  # the oldest give way
            fuller: dict[str, Any] = self.sessions
            if len(self.users) > len(self.sessions):
                fuller = self.users
            del fuller[next(iter(fuller))]


class _Known:
    """A pair of headers that was found good."""

    __slots__ = ("identity", "until")

    def __init__(self, identity: Identity, until: float) -> None:
        self.identity = identity
        self.until = until


class KeyRing:
    """Verifies what callers of one project present, and remembers it until it expires."""

    __slots__ = ("denied", "keys", "known", "slug", "tokens")

    def __init__(self, project: Project, denied: Denied | None = None) -> None:
        self.slug = project.slug
        self.keys = Keyset(
            VerificationKey(key.kid, key.algorithm, key.secret) for key in project.keys
        )
        self.denied = denied if denied is not None else Denied()
        self.known: GenerationCache[_Known] = GenerationCache(CACHE_ENTRIES)
        self.tokens: GenerationCache[dict[str, Any]] = GenerationCache(CACHE_ENTRIES)

    def identify(self, authorization: str | None, apikey: str | None, now: float) -> Identity:
        """The identity these header values give; NOBODY when both are absent. now: epoch seconds.
        ApiError 401 when either is not valid."""
        key = authorization if apikey is None else (authorization, apikey)
        known = self.known.get(key)
        if known is not None:
            if now < known.until and not (
                self.denied and self.denied.covers(known.identity.claims, now)
            ):
                return known.identity
            self.known.drop(key)
        if authorization is None and apikey is None:
            return NOBODY
        identity, until = self._resolve(authorization, apikey, now)
        self.known.put(key, _Known(identity, until))
        return identity

    def token(self, text: str, now: float) -> Identity:
        """The identity of one credential given elsewhere than in a header: a key or a user token.
        ApiError 401 when it is not valid."""
        return self.identify(f"Bearer {text}", None, now)

    def _resolve(
        self, authorization: str | None, apikey: str | None, now: float
    ) -> tuple[Identity, float]:
        key_claims = None if apikey is None else self._key(apikey.strip(), now)
        if authorization is None:
            claims = key_claims or {}
        else:
            scheme, _, credential = authorization.strip().partition(" ")
            credential = credential.strip()
            if scheme.lower() != "bearer" or not credential:
                raise ApiError(
                    401, "invalid_token", "The Authorization header is not a bearer token.",
                    headers=CHALLENGE,
                )  # fmt: skip
            if credential.startswith("ich_"):
                claims = self._key(credential, now)
            else:
                claims = self._user(credential, now)
        until = min(_end(claims), _end(key_claims or {}))
        uid, session = claims.get("sub"), claims.get("session_id")
        exp = claims.get("exp")
        identity = Identity(
            role=claims["role"],
            uid=uid if isinstance(uid, str) else None,
            claims=claims,
            claims_json=orjson.dumps(claims),
            key_role=None if key_claims is None else key_claims["role"],
            session_id=session if isinstance(session, str) else None,
            exp=None if exp is None else float(exp),
        )
        return identity, until

    def _key(self, text: str, now: float) -> dict[str, Any]:
        """The claims of a project key."""
        if not text:
            raise missing_key()
        if text.startswith(PUBLISHABLE):
            role, token = "anon", text[len(PUBLISHABLE) :]
        elif text.startswith(SECRET):
            role, token = "service_role", text[len(SECRET) :]
        else:
            raise bad_key()
        try:
            claims = self._verified(token, now)
        except ApiError as error:
            if error.code == "token_expired":
                raise bad_key("The API key has expired.") from None
            raise bad_key() from None
        if claims.get("role") != role or claims.get("ref", self.slug) != self.slug:
            raise bad_key()
        if "sub" in claims:
            raise bad_key()
        return claims

    def _user(self, token: str, now: float) -> dict[str, Any]:
        """The claims of a user token."""
        try:
            claims = self._verified(token, now)
        except ApiError as error:
            error.headers = CHALLENGE
            raise
        problem = None
        audience = claims.get("aud", "authenticated")
        if claims.get("role") != "authenticated":
            problem = "The token is not a user token."
        elif claims.get("ref", self.slug) != self.slug:
            problem = "The token belongs to another project."
        elif audience != "authenticated" and not (
            isinstance(audience, list) and "authenticated" in audience
        ):
            problem = "The token is meant for another audience."
        elif not isinstance(claims.get("sub", ""), str):
            problem = "The subject of the token is not a text."
        elif self.denied and self.denied.covers(claims, now):
            problem = "The token has been revoked."
        if problem is not None:
            raise ApiError(401, "invalid_token", problem, headers=CHALLENGE)
        return claims

    def _verified(self, token: str, now: float) -> dict[str, Any]:
        claims = self.tokens.get(token)
        if claims is not None and now < _end(claims):
            return claims
        if len(token) > MAX_TOKEN:
            raise ApiError(401, "invalid_token", "The token is too long.")
        claims = self.keys.verify(token, now)
        self.tokens.put(token, claims)
        return claims


def _end(claims: dict[str, Any]) -> float:
    """When the claims stop to be accepted, epoch seconds."""
    exp = claims.get("exp")
    return NEVER if exp is None else exp + LEEWAY


def now() -> float:
    """Epoch seconds, the clock tokens are judged by."""
    return time.time()


def forget(denied: dict[str, Denied], present: set[str]) -> None:
    """Drops what is kept of projects that are gone. What is in force stays: one that was deleted
    may be brought back before its tokens expire. present: ids of the others."""
    for id in denied.keys() - present:
        if denied[id].over(now()):
            del denied[id]


def revoke(denied: Denied, message: dict[str, Any]) -> None:
    """Applies one message of the topic `token.revoked`: {"session_id"} or {"user_id","before"},
    with "exp", when the last token it means expires."""
    session, user = message.get("session_id"), message.get("user_id")
    last = float(message.get("exp") or NEVER)
    if isinstance(session, str):
        denied.session(session, now(), last)
    if isinstance(user, str):
        denied.user(user, float(message.get("before") or now()), now(), last)
