"""Makes the secrets of a project: passwords, signing key, and the two keys clients carry."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time

from server.base.project import SigningKey

ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def new_id() -> str:
    """Twelve letters and digits: part of the names of the project's database and roles."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(12))


def new_password() -> str:
    """192 random bits as URL-safe text."""
    return secrets.token_urlsafe(24)


def new_signing_key() -> SigningKey:
    """An HS256 key of 384 random bits."""
    return SigningKey(kid=new_id(), algorithm="HS256", secret=secrets.token_urlsafe(48))


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(claims: dict[str, object], key: SigningKey) -> str:
    """An HS256 JWT of these claims, with the key's id in its header."""
    header = {"alg": "HS256", "typ": "JWT", "kid": key.kid}
    parts = [_base64url(json.dumps(p, separators=(",", ":")).encode()) for p in (header, claims)]
    message = ".".join(parts)
    signature = hmac.new(key.secret.encode(), message.encode(), hashlib.sha256).digest()
    return f"{message}.{_base64url(signature)}"


def project_key(slug: str, url: str, role: str, key: SigningKey) -> str:
    """The publishable key (role anon) or the secret key (role service_role) of a project."""
    prefix = {"anon": "ich_pub_", "service_role": "ich_admin_"}[role]
    claims = {"iss": url, "ref": slug, "role": role, "iat": int(time.time())}
    return prefix + sign(claims, key)
