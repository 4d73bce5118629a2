"""Tokens of storage URLs: one kind opens files for reading, the other takes one upload.

Both are JWTs of the project, each kind with a signing key of its own that is derived from the
project's storage secret, so neither passes for the other nor for a token of the auth service.
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from typing import Any, NamedTuple

import jwt
import msgspec

from ichicore.errors import ApiError
from server.base.project import Project

ALGORITHM = "HS256"
MAX_TOKEN = 8192  # characters
ISSUER = "storage"


class ReadGrant(msgspec.Struct, frozen=True):
    """bucket, path: what it opens, and with `recursive` everything below. exp, iat: epoch
    seconds."""

    bucket: str
    path: str
    recursive: bool
    user_id: str | None
    iat: int
    exp: int


class UploadGrant(msgspec.Struct, frozen=True):
    """id: of the reservation. size: bytes. exp: epoch seconds."""

    id: str
    bucket: str
    path: str
    size: int
    content_type: str
    exp: int


class Signer:
    """Makes one project's tokens with its secret, and reads those of any secret it accepts."""

    __slots__ = ("_jws", "_read", "_upload", "project_slug")

    def __init__(self, project: Project) -> None:
        self.project_slug = project.slug
        self._read = _keys(project, "read")
        self._upload = _keys(project, "upload")
        self._jws = jwt.PyJWS(algorithms=[ALGORITHM])

    def read(
        self, bucket: str, path: str, *, recursive: bool, user_id: str | None, seconds: int
    ) -> tuple[str, str, int]:
        """(token, its id, when it expires in epoch seconds)."""
        now, jti = int(time.time()), secrets.token_hex(16)
        claims: dict[str, Any] = {
            "iss": ISSUER, "prj": self.project_slug, "b": bucket, "p": path, "r": recursive,
            "jti": jti, "iat": now, "exp": now + seconds,
        }  # fmt: skip
        if user_id is not None:
            claims["sub"] = user_id
        return self._encode(claims, self._read[0].key), jti, now + seconds

    def upload(
        self, id: str, bucket: str, path: str, size: int, content_type: str, seconds: int
    ) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER, "prj": self.project_slug, "b": bucket, "p": path, "n": size,
            "t": content_type, "jti": id, "iat": now, "exp": now + seconds,
        }  # fmt: skip
        return self._encode(claims, self._upload[0].key)

    def open_read(self, token: str, now: float) -> ReadGrant:
        """What a read token opens; ApiError 401 invalid_token or token_expired."""
        claims = self._decode(token, self._read, now)
        try:
            return ReadGrant(
                claims["b"], claims["p"], claims["r"] is True, claims.get("sub"), claims["iat"],
                claims["exp"],
            )  # fmt: skip
        except KeyError:
            raise _invalid() from None

    def open_upload(self, token: str, now: float) -> UploadGrant:
        """What an upload token takes; ApiError 401 invalid_token or token_expired."""
        claims = self._decode(token, self._upload, now)
        try:
            return UploadGrant(
                claims["jti"], claims["b"], claims["p"], claims["n"], claims["t"], claims["exp"]
            )
        except KeyError:
            raise _invalid() from None

    def _encode(self, claims: dict[str, Any], key: bytes) -> str:
        return jwt.encode(claims, key, ALGORITHM)

    def _decode(self, token: str, keys: list[_Key], now: float) -> dict[str, Any]:
        if len(token) > MAX_TOKEN or not token.isascii():
            raise _invalid()
        try:
            claims = msgspec.json.decode(self._payload(token, keys, now), type=dict[str, Any])
        except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, RecursionError):
            raise _invalid() from None
        if claims.get("iss") != ISSUER or claims.get("prj") != self.project_slug:
            raise _invalid()
        expires = claims.get("exp")
        if not isinstance(expires, int):
            raise _invalid()
        if now >= expires:
            raise ApiError(401, "token_expired", "The token has expired.")
        return claims

    def _payload(self, token: str, keys: list[_Key], now: float) -> bytes:
        """What one of the keys has signed."""
        for key, until in keys:
            if now < until:
                try:
                    found: bytes = self._jws.decode(token, key, algorithms=[ALGORITHM])
                    return found
                except jwt.InvalidSignatureError:
                    continue
        raise _invalid()


class _Key(NamedTuple):
    """until: epoch seconds to which what it signed is accepted."""

    key: bytes
    until: float


def _keys(project: Project, kind: str) -> list[_Key]:
    """For one kind of tokens: the key that signs, then the others that are accepted."""
    secrets = [(project.storage_secret, math.inf)]
    secrets += [(one.secret, one.until) for one in project.storage_accepted]
    text = f"ichibase storage {kind} {project.id}".encode()
    return [_Key(hmac.digest(secret.encode(), text, "sha256"), end) for secret, end in secrets]


def _invalid() -> ApiError:
    return ApiError(401, "invalid_token", "The token is not valid.")


def new_version() -> str:
    """A name for one version of an object's bytes; 32 hexadecimal digits."""
    return secrets.token_hex(16)


def etag(digest: str) -> str:
    """The strong validator of content with this digest (hexadecimal)."""
    return f'"{digest[:32]}"'
