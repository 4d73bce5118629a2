"""Access tokens, the public keys that verify them, and new signing keys."""

from __future__ import annotations

import base64
import json
import secrets
import time
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import (
    ECAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
    get_default_algorithms,
)

from server.base.project import Project, SigningKey

AUDIENCE = "authenticated"
ROLE = "authenticated"
LEEWAY = 30  # seconds of clock skew
ALGORITHMS = ("HS256", "ES256", "RS256", "EdDSA")
SIGNERS = {name: get_default_algorithms()[name] for name in ALGORITHMS}
RESERVED_CLAIMS = frozenset(
    ("iss", "aud", "sub", "role", "exp", "iat", "nbf", "jti", "session_id", "email", "phone",
     "ref", "act")
)  # fmt: skip


class Subject(msgspec.Struct, frozen=True):
    """The user a token is made for."""

    id: str
    email: str | None
    phone: str | None


class TokenError(RuntimeError):
    """The project has no usable signing key."""


@lru_cache(maxsize=256)
def _private(key: SigningKey) -> Any:
    """The key as PyJWT wants it; parsing a PEM text takes longer than signing."""
    if key.algorithm == "HS256":
        return key.secret.encode()
    return serialization.load_pem_private_key(key.secret.encode(), password=None)


@lru_cache(maxsize=256)
def _head(key: SigningKey) -> bytes:
    """The first part of every token that this key signs."""
    return _part(msgspec.json.encode({"alg": key.algorithm, "kid": key.kid, "typ": "JWT"}))


def _part(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def sign(claims: dict[str, Any], key: SigningKey) -> str:
    """A JWS in compact form, put together here and signed by PyJWT: its own way there takes five
    times as long."""
    text = _head(key) + b"." + _part(msgspec.json.encode(claims))
    return (text + b"." + _part(SIGNERS[key.algorithm].sign(text, _private(key)))).decode()


def current_key(project: Project) -> SigningKey:
    """The key that signs now."""
    for key in project.keys:
        if key.current and key.algorithm in ALGORITHMS:
            return key
    raise TokenError(f"project {project.slug} has no current signing key")


def issue(
    project: Project,
    subject: Subject,
    session_id: str,
    seconds: int,
    extra: dict[str, Any] | None = None,
    actor: str | None = None,
) -> str:
    """A signed access token that lives `seconds`. extra: claims of the hook; reserved names in it
    are ignored. actor: who impersonates the user."""
    key = current_key(project)
    now = int(time.time())
    claims: dict[str, Any] = {}
    if extra:
        claims = {name: value for name, value in extra.items() if name not in RESERVED_CLAIMS}
    claims["iss"] = project.url
    claims["aud"] = AUDIENCE
    claims["sub"] = subject.id
    claims["role"] = ROLE
    if subject.email is not None:
        claims["email"] = subject.email
    if subject.phone is not None:
        claims["phone"] = subject.phone
    claims["session_id"] = session_id
    claims["iat"] = now
    claims["exp"] = now + seconds
    if actor is not None:
        claims["act"] = {"sub": actor}
    return sign(claims, key)


def public_jwk(key: SigningKey) -> dict[str, Any] | None:
    """The verifying half as a JWK; None for a shared secret, which is never shown."""
    if key.algorithm == "HS256":
        return None
    public = _private(key).public_key()
    convert: dict[str, Any] = {"ES256": ECAlgorithm, "RS256": RSAAlgorithm, "EdDSA": OKPAlgorithm}
    found = json.loads(convert[key.algorithm].to_jwk(public))
    return {name: found[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in found} | {
        "kid": key.kid,
        "alg": key.algorithm,
        "use": "sig",
    }


def jwks(project: Project) -> dict[str, Any]:
    """The project's public keys, retired ones included while their tokens may live."""
    found = (public_jwk(key) for key in project.keys)
    return {"keys": [key for key in found if key is not None]}


def new_signing_key(algorithm: str) -> SigningKey:
    """A fresh key. ValueError for an algorithm other than HS256, ES256, RS256 and EdDSA."""
    kid = secrets.token_hex(8)
    if algorithm == "HS256":
        return SigningKey(kid=kid, algorithm=algorithm, secret=secrets.token_urlsafe(48))
    private: Any
    if algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    elif algorithm == "RS256":
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}")
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return SigningKey(kid=kid, algorithm=algorithm, secret=pem.decode())
