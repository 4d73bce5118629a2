"""What an OAuth or OpenID Connect provider is asked, and the checks of what it answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import msgspec

from server.auth.outbound import Outbound, OutboundError
from server.auth.settings import Provider

GOOGLE = "https://accounts.google.com"
APPLE = "https://appleid.apple.com"
GITHUB_AUTHORIZE = "https://github.com/login/oauth/authorize"
GITHUB_TOKEN = "https://github.com/login/oauth/access_token"  # noqa: S105 - an address
GITHUB_API = "https://api.github.com"
DISCOVERY_SECONDS = 3600.0
KEYS_RETRY_SECONDS = 60.0  # a key id nobody knows makes us ask for the keys at most so often
LEEWAY = 30
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]


class ProviderError(RuntimeError):
    """The sign-in at the provider failed; the text is for the log, not for the browser."""


class Person(msgspec.Struct, frozen=True):
    """Who signed in. email: lower case, None without one. verified: the provider vouches for it."""

    subject: str
    email: str | None
    verified: bool
    data: dict[str, Any]


class Metadata(msgspec.Struct, frozen=True):
    """The part of a discovery document that we use."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class Providers:
    """Asks providers for one worker; remembers discovery documents and keys by issuer."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._metadata: dict[str, tuple[float, Metadata]] = {}
        self._keys: dict[str, tuple[float, dict[str, jwt.PyJWK]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # a provider that is away holds up no other

    async def authorize_url(
        self, name: str, provider: Provider, callback: str, state: str, nonce: str, verifier: str
    ) -> str:
        """Where the browser is sent. verifier: of PKCE; its S256 challenge goes along."""
        kind = provider.kind or name
        query = {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": callback,
            "scope": " ".join(provider.scopes or default_scopes(kind)),
            "state": state,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        if kind == "github":
            return f"{GITHUB_AUTHORIZE}?{urlencode(query)}"
        query["nonce"] = nonce
        if kind == "apple":
            query["response_mode"] = "form_post"
        metadata = await self.metadata(issuer(name, provider))
        joint = "&" if "?" in metadata.authorization_endpoint else "?"
        return f"{metadata.authorization_endpoint}{joint}{urlencode(query)}"

    async def person(
        self,
        name: str,
        provider: Provider,
        callback: str,
        answer: dict[str, str],
        nonce: str,
        verifier: str,
    ) -> Person:
        """Redeems the code of a callback. answer: its parameters. ProviderError, OutboundError."""
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"],
            "redirect_uri": callback,
            "code_verifier": verifier,
            "client_id": provider.client_id,
        }
        if (provider.kind or name) == "github":
            return await self._github(provider, form)
        metadata = await self.metadata(issuer(name, provider))
        # RFC 9207: a code that another provider issued is not shown to this one.
        given = answer.get("iss")
        if given is None and metadata.authorization_response_iss_parameter_supported:
            raise ProviderError("the answer does not name its issuer")
        if given is not None and given != metadata.issuer:
            raise ProviderError(f"the answer names the issuer {given[:200]!r}")
        methods = metadata.token_endpoint_auth_methods_supported
        reply = await self._redeem(
            metadata.token_endpoint, provider, form, basic="client_secret_post" not in methods
        )
        token = reply.get("id_token")
        if not isinstance(token, str):
            raise ProviderError("the token endpoint gave no id_token")
        claims = await self._verify(token, metadata, provider.client_id, nonce)
        person = _person(claims)
        if (provider.kind or name) == "apple":
            person.data.update(apple_name(answer.get("user", "")))
        return person

    async def metadata(self, address: str) -> Metadata:
        """The issuer's discovery document, kept for an hour."""
        known = self._metadata.get(address)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return known[1]
        url = f"{address.rstrip('/')}/.well-known/openid-configuration"
        answer = await self._outbound.request("GET", url, {"accept": "application/json"})
        if answer.status != 200:
            raise ProviderError(f"{url} answered {answer.status}")
        try:
            found = msgspec.json.decode(answer.body, type=Metadata)
        except msgspec.MsgspecError as error:
            raise ProviderError(f"{url} is not a discovery document: {error}") from None
        if found.issuer.rstrip("/") != address.rstrip("/"):
            raise ProviderError(f"{url} belongs to the issuer {found.issuer!r}")
        self._metadata[address] = (now + DISCOVERY_SECONDS, found)
        return found

    async def _verify(
        self, token: str, metadata: Metadata, client_id: str, nonce: str
    ) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm = str(header.get("alg"))
            if algorithm not in ALGORITHMS:
                raise ProviderError(f"the id_token is signed with {algorithm!r}")
            key = await self._key(metadata.jwks_uri, header.get("kid"))
            if key.algorithm_name != algorithm and not algorithm.startswith(
                {"RSA": ("RS", "PS"), "EC": ("ES",)}.get(str(key.key_type), ("EdDSA",))
            ):
                raise ProviderError("the id_token's algorithm does not fit its key")
            claims: dict[str, Any] = jwt.decode(
                token, key.key, algorithms=[algorithm], audience=client_id,
                issuer=metadata.issuer, leeway=LEEWAY,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise ProviderError(f"the id_token is not valid: {error}") from None
        if claims.get("nonce") != nonce:
            raise ProviderError("the id_token was made for another sign-in")
        audience = claims["aud"]
        if (isinstance(audience, list) and len(audience) > 1) or "azp" in claims:
            if claims.get("azp") != client_id:
                raise ProviderError("the id_token was made for another client")
        return claims

    async def _key(self, url: str, kid: str | None) -> jwt.PyJWK:
        """The provider's key, asked for again when it is not known yet."""
        async with self._locks.setdefault(url, asyncio.Lock()):
            for attempt in (1, 2):
                asked, keys = self._keys.get(url, (float("-inf"), {}))
                found = keys.get(kid) if kid else next(iter(keys.values()), None)
                if found is not None and time.monotonic() - asked < DISCOVERY_SECONDS:
                    return found
                if attempt == 2 or (keys and time.monotonic() - asked < KEYS_RETRY_SECONDS):
                    break
                self._keys[url] = (time.monotonic(), await self._fetch_keys(url))
        raise ProviderError("the id_token is signed with an unknown key")

    async def _fetch_keys(self, url: str) -> dict[str, jwt.PyJWK]:
        answer = await self._outbound.request("GET", url, {"accept": "application/json"})
        if answer.status != 200:
            raise ProviderError(f"{url} answered {answer.status}")
        try:
            listed = msgspec.json.decode(answer.body)["keys"]
        except (msgspec.MsgspecError, KeyError, TypeError):
            raise ProviderError(f"{url} is not a set of keys") from None
        keys = {}
        for number, entry in enumerate(listed if isinstance(listed, list) else []):
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
                continue
            if entry.get("kty") not in ("RSA", "EC", "OKP"):
                continue  # a shared secret must never verify an id_token
            try:
                keys[str(entry.get("kid", f"#{number}"))] = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                continue
        return keys

    async def _redeem(
        self, url: str, provider: Provider, form: dict[str, str], *, basic: bool
    ) -> dict[str, Any]:
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
            "user-agent": "ichibase",
        }
        secret = client_secret(provider)
        if basic:
            pair = f"{quote(provider.client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form = {**form, "client_secret": secret}
        answer = await self._outbound.request("POST", url, headers, urlencode(form).encode())
        try:
            reply = msgspec.json.decode(answer.body, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise ProviderError(f"{url} answered {answer.status} without JSON") from None
        if answer.status != 200 or "error" in reply:
            raise ProviderError(f"{url} refused the code: {str(reply.get('error'))[:100]!r}")
        return reply

    async def _github(self, provider: Provider, form: dict[str, str]) -> Person:
        """GitHub speaks no OpenID Connect: the person is read from its API."""
        reply = await self._redeem(GITHUB_TOKEN, provider, form, basic=False)
        headers = {
            "authorization": f"Bearer {reply.get('access_token')}",
            "accept": "application/vnd.github+json",
            "user-agent": "ichibase",
        }
        found = []
        for path in ("/user", "/user/emails"):
            answer = await self._outbound.request("GET", GITHUB_API + path, headers)
            if answer.status != 200:
                raise ProviderError(f"GitHub answered {answer.status} to {path}")
            found.append(msgspec.json.decode(answer.body))
        return github_person(*found)


def github_person(user: Any, emails: Any) -> Person:
    """GitHub's answers to /user and /user/emails; ProviderError when they are not that."""
    if not isinstance(user, dict) or not isinstance(user.get("id"), int):
        raise ProviderError("GitHub's answer names no user")
    listed = [e for e in emails if isinstance(e, dict)] if isinstance(emails, list) else []
    primary = next((e for e in listed if e.get("primary") is True), None)
    address = primary.get("email") if primary else None
    data = {name: user[name] for name in ("login", "name", "avatar_url") if user.get(name)}
    return Person(
        str(user["id"]),
        address.lower() if isinstance(address, str) else None,
        bool(primary and primary.get("verified") is True),
        data,
    )


def apple_name(text: str) -> dict[str, str]:
    """The name that Apple posts beside the first sign-in alone. It is the user's own word: worth as
    much as a name they type."""
    try:
        parts = msgspec.json.decode(text, type=dict[str, Any]).get("name")
    except (msgspec.MsgspecError, RecursionError):
        return {}
    if not isinstance(parts, dict):
        return {}
    words = [parts.get("firstName"), parts.get("lastName")]
    name = " ".join(word for word in words if isinstance(word, str)).replace("\0", "").strip()
    return {"name": name[:200]} if name else {}


def _person(claims: dict[str, Any]) -> Person:
    address = claims.get("email")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise ProviderError("the id_token names no subject")
    shown = ("name", "given_name", "family_name", "picture", "locale", "preferred_username")
    data = {n: claims[n] for n in shown if isinstance(claims.get(n), str)}
    return Person(
        subject,
        address.lower() if isinstance(address, str) else None,
        claims.get("email_verified") in (True, "true"),  # Apple sends text
        {name: value.replace("\0", "")[:2048] for name, value in data.items()},
    )


def issuer(name: str, provider: Provider) -> str:
    kind = provider.kind or name
    return {"google": GOOGLE, "apple": APPLE}.get(kind) or provider.issuer or ""


def default_scopes(kind: str) -> tuple[str, ...]:
    if kind == "github":
        return ("read:user", "user:email")
    return ("name", "email") if kind == "apple" else ("openid", "email", "profile")


def challenge(verifier: str) -> str:
    """S256 of RFC 7636."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def client_secret(provider: Provider) -> str:
    """The shared secret; for Apple a token signed with the developer's key."""
    if provider.private_key is None:
        return provider.client_secret or ""
    now = int(time.time())
    claims = {
        "iss": provider.team_id, "iat": now, "exp": now + 300, "aud": APPLE,
        "sub": provider.client_id,
    }  # fmt: skip
    try:
        return jwt.encode(
            claims, provider.private_key, algorithm="ES256", headers={"kid": provider.key_id}
        )
    except (ValueError, TypeError, jwt.PyJWTError) as error:
        raise ProviderError(f"the private key of the provider cannot be used: {error}") from None


__all__ = ["OutboundError", "Person", "ProviderError", "Providers", "challenge"]
