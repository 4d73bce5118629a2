"""Tokens of `ichibase rest`: which role and claims a request has, and what is wrong with it."""

from __future__ import annotations

import binascii
import re
import time
from typing import Any

import jwt
import orjson
from jwt.utils import base64url_decode

from ichicore.errors import ApiError
from ichicore.token.cache import GenerationCache
from server.standalone import rolepath
from server.standalone.config import Config, ConfigError

SKEW = 30
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512",
              "PS256", "PS384", "PS512", "EdDSA")  # fmt: skip
PART = r"(?:[\w-]{4})*(?:[\w-]{2,3}=*)?"  # base64url
PARTS = re.compile(rf"{PART}\.{PART}\.{PART}", re.ASCII)
KINDS = {"H": "oct", "R": "RSA", "P": "RSA", "E": "EC"}


class Caller:
    """role: to work in. claims_json: JSON text. anonymous: the role is the one without a token."""

    __slots__ = ("anonymous", "claims_json", "role")

    def __init__(self, role: str, claims_json: bytes, anonymous: bool) -> None:
        self.role = role
        self.claims_json = claims_json
        self.anonymous = anonymous


class Known:
    """Who an Authorization header names, and the epoch second from which that is to be judged
    anew."""

    __slots__ = ("identity", "until")

    def __init__(self, identity: Caller, until: float) -> None:
        self.identity = identity
        self.until = until


def refused(code: str, message: str, details: str | None = None) -> ApiError:
    challenge = f'Bearer error="invalid_token", error_description="{message}"'
    return ApiError(401, code, message, details, headers=(("www-authenticate", challenge),))


class Authenticator:
    def __init__(self, config: Config) -> None:
        """ConfigError for a secret that cannot be used."""
        self.config = config
        self.keys = None if config.jwt_secret is None else _keys(config.jwt_secret)
        # Verified payloads by token; the times in them are judged anew for each request.
        self.verified: GenerationCache[dict[str, Any]] = GenerationCache(max(2, config.jwt_cache))
        self.known: GenerationCache[Known] = GenerationCache(max(2, config.jwt_cache))  # by header
        self.nobody: Known | None = None
        if config.anon_role is not None:
            claims = orjson.dumps({"role": config.anon_role})
            self.nobody = Known(Caller(config.anon_role, claims, True), float("inf"))

    def identify(self, authorization: str | None) -> Caller:
        """The caller that an Authorization header names. ApiError 401, or 500 PGRST300."""
        now = time.time()
        known = self.known.get(authorization)
        if known is not None and now < known.until:
            return known.identity
        token = _bearer(authorization)
        if token is None:
            if self.nobody is None:
                raise ApiError(401, "PGRST302", "Anonymous access is disabled",
                               headers=(("www-authenticate", "Bearer"),))  # fmt: skip
            return self.nobody.identity
        claims = self._claims(token)
        self._check(claims, now)
        caller = self._caller(claims)
        if self.config.jwt_cache and claims.get("nbf") is None:
            exp = _seconds(claims, "exp")
            until = float("inf") if exp is None else exp + SKEW
            self.known.put(authorization, Known(caller, until))
        return caller

    def _caller(self, claims: dict[str, Any]) -> Caller:
        role = rolepath.walk(claims, self.config.role_path)
        if role is None:
            role = self.config.anon_role
            if role is None:
                raise ApiError(401, "PGRST302", "Anonymous access is disabled",
                               headers=(("www-authenticate", "Bearer"),))  # fmt: skip
        elif not isinstance(role, str):
            role = orjson.dumps(role).decode()
        text = orjson.dumps({**claims, "role": role})
        return Caller(role, text, role == self.config.anon_role)

    def _claims(self, token: str) -> dict[str, Any]:
        if self.keys is None:
            raise ApiError(500, "PGRST300", "Server lacks JWT secret")
        if not token:
            raise refused("PGRST301", "Empty JWT is sent in Authorization header")
        parts = token.count(".") + 1
        if parts != 3:
            raise refused("PGRST301", f"Expected 3 parts in JWT; got {parts}")
        known = self.verified.get(token)
        if known is not None:
            return known
        claims = _decode(token, self.keys)
        if self.config.jwt_cache:
            self.verified.put(token, claims)
        return claims

    def _check(self, claims: dict[str, Any], now: float) -> None:
        """The first claim that does not hold, in this order, is the one told."""
        whole = int(now)
        exp = _seconds(claims, "exp")
        if exp is not None and whole - SKEW > exp:
            raise refused("PGRST303", "JWT expired")
        nbf = _seconds(claims, "nbf")
        if nbf is not None and whole + SKEW < nbf:
            raise refused("PGRST303", "JWT not yet valid")
        iat = _seconds(claims, "iat")
        if iat is not None and whole + SKEW < iat:
            raise refused("PGRST303", "JWT issued at future")
        audience = claims.get("aud")
        if audience is None:
            return
        listed = [audience] if isinstance(audience, str) else audience
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise refused("PGRST303", "The JWT 'aud' claim must be a string or an array of strings")
        wanted = self.config.jwt_aud
        if wanted is not None and listed and wanted not in listed:
            raise refused("PGRST303", "JWT not in audience")


def _seconds(claims: dict[str, Any], name: str) -> int | None:
    """A time claim. A number that is no whole one, or beyond 64 bits, counts as 0."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused("PGRST303", f"The JWT '{name}' claim must be a number")
    if isinstance(value, float):
        value = int(value) if value.is_integer() else 0
    return value if abs(value) < 1 << 63 else 0


def _bearer(header: str | None) -> str | None:
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _keys(secret: bytes) -> list[tuple[str, str | None, Any]]:
    """(key type, kid, key) of a JWK, a set of them, or a plain secret."""
    try:
        parsed = orjson.loads(secret)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        if len(secret) < 32:
            raise ConfigError("The JWT secret must be at least 32 characters long.")
        return [("oct", None, secret)]
    listed = parsed.get("keys", [parsed])
    keys = []
    for one in listed if isinstance(listed, list) else []:
        try:
            keys.append((str(one.get("kty")), one.get("kid"), _key(one)))
        except KeyError as error:
            raise ConfigError(f"jwt-secret has a key without {error}") from None
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"jwt-secret has a key that cannot be used: {error}") from None
    return keys


def _key(jwk: dict[str, Any]) -> Any:
    if jwk["kty"] == "oct":
        return base64url_decode(jwk["k"])
    if "alg" not in jwk and jwk["kty"] == "RSA":
        jwk = {**jwk, "alg": "RS256"}
    return jwt.PyJWK(jwk).key


def _decode(token: str, keys: list[tuple[str, str | None, Any]]) -> dict[str, Any]:
    if not PARTS.fullmatch(token):
        raise refused("PGRST301", "JWT cryptographic operation failed")
    try:
        header = orjson.loads(base64url_decode(token.split(".", 1)[0]))
        algorithm, kid = header["alg"], header.get("kid")
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise refused("PGRST301", "JWT cryptographic operation failed") from None
    if algorithm == "none":
        raise refused(
            "PGRST301", "Wrong or unsupported encoding algorithm",
            "JWT is unsecured but expected 'alg' was not 'none'",
        )  # fmt: skip
    if algorithm not in ALGORITHMS:
        raise refused("PGRST301", "JWT cryptographic operation failed")
    kind = "OKP" if algorithm == "EdDSA" else KINDS[algorithm[0]]
    fitting = [key for kty, id, key in keys if kty == kind and (kid is None or id in (None, kid))]
    wrong = "No suitable key or wrong key type"
    if not fitting:
        raise refused("PGRST301", wrong, "No suitable key was found to decode the JWT")
    verifier = jwt.PyJWS(algorithms=[algorithm])
    for key in fitting:
        try:
            claims = orjson.loads(verifier.decode(token, key, algorithms=[algorithm]))
        except (jwt.PyJWTError, ValueError, RecursionError):
            continue
        if isinstance(claims, dict):
            return claims
    raise refused("PGRST301", wrong, "None of the keys was able to decode the JWT")
