"""Verification of a project's tokens: which key, which algorithm, which times.

PyJWT checks signatures; everything a token says about itself is judged here, so that the choice
of the key and of the algorithm never follows the token's own wish.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt import exceptions

from ichicore.errors import ApiError

MAX_TOKEN = 8192  # characters; far above any token of ours, far below what hurts to decode
LEEWAY = 30.0  # seconds of clock difference between servers that is forgiven
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
MIN_HMAC_SECRET = 32  # bytes, the size of the digest


class VerificationKey:
    """One key with the only algorithm it may be used with."""

    __slots__ = ("algorithm", "jws", "key", "kid")

    def __init__(self, kid: str, algorithm: str, secret: str) -> None:
        """secret: text for HS256; a PEM private or public key otherwise. ValueError when unfit."""
        self.kid = kid
        self.algorithm = algorithm
        self.key = _load(algorithm, secret)
        self.jws = jwt.PyJWS(algorithms=[algorithm])

    def payload(self, token: str) -> bytes | None:
        """What the token carries when this key has signed it, else None."""
        try:
            found = self.jws.decode(token, self.key, algorithms=[self.algorithm])
        except (exceptions.PyJWTError, ValueError, RecursionError):
            return None
        return found if isinstance(found, bytes) else None


def _load(algorithm: str, secret: str) -> Any:
    if algorithm == "HS256":
        raw = secret.encode()
        if len(raw) < MIN_HMAC_SECRET:
            raise ValueError(f"an HS256 secret has at least {MIN_HMAC_SECRET} bytes")
        return raw
    if algorithm not in ALGORITHMS:
        raise ValueError(f"the algorithm {algorithm!r} is not supported")
    pem = secret.encode()
    key: Any
    if b"PRIVATE KEY" in pem:
        key = serialization.load_pem_private_key(pem, None).public_key()
    else:
        key = serialization.load_pem_public_key(pem)
    fits = {
        "RS256": isinstance(key, rsa.RSAPublicKey),
        "ES256": isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1",
        "EdDSA": isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey),
    }
    if not fits[algorithm]:
        raise ValueError(f"the key cannot be used with {algorithm}")
    return key


def invalid(message: str = "The token is not valid.") -> ApiError:
    return ApiError(401, "invalid_token", message)


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = orjson.loads(payload)
    except ValueError:
        raise invalid() from None
    if not isinstance(claims, dict):
        raise invalid()
    return claims


class Keyset:
    """The verification keys of one project."""

    __slots__ = ("keys",)

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self.keys = tuple(keys)

    def verify(self, token: str, now: float) -> dict[str, Any]:
        """The claims of a token that one of the keys has signed and that is in force at `now`
        (epoch seconds). ApiError 401 invalid_token or token_expired otherwise."""
        claims = self._signed(token)
        self._times(claims, now)
        return claims

    def _signed(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN or not token.isascii() or token.count(".") != 2:
            raise invalid()
        try:
            header = jwt.get_unverified_header(token)
        except (exceptions.PyJWTError, ValueError, RecursionError):
            raise invalid() from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header or header.get("b64") is False:
            raise invalid("The token asks for a header extension that is not supported.")
        for key in self.keys:
            if key.algorithm != algorithm or (kid is not None and kid != key.kid):
                continue
            payload = key.payload(token)
            if payload is not None:
                return _claims(payload)
        raise invalid()

    @staticmethod
    def _times(claims: dict[str, Any], now: float) -> None:
        for name in ("exp", "nbf", "iat"):
            value = claims.get(name)
            if value is None:
                claims.pop(name, None)
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise invalid(f"The claim {name} of the token is not a number.")
        expiry = claims.get("exp")
        if expiry is not None and now >= expiry + LEEWAY:
            raise ApiError(401, "token_expired", "The token has expired.")
        if claims.get("nbf", now) > now + LEEWAY or claims.get("iat", now) > now + LEEWAY:
            raise invalid("The token is not yet valid.")
