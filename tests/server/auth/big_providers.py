"""Stand-ins for GitHub and Apple, which cannot run here: they answer in the shapes that those
document and check what those check."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import jwt

from server.auth.tokens import new_signing_key, public_jwk, sign

Reply = tuple[int, Any, dict[str, str]]


class Site:
    """A small HTTP server; subclasses answer."""

    base = ""

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        form = (await reader.readexactly(int(headers.get("content-length", "0")))).decode()
        url = urlsplit(target)
        values = dict(parse_qsl(url.query)) | dict(parse_qsl(form))
        status, body, more = self.answer(method, url.path, values, headers)
        raw = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(raw)}\r\nconnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in more.items())
        writer.write(head.encode() + b"\r\n" + raw)
        await writer.drain()
        writer.close()

    def answer(
        self, method: str, path: str, values: dict[str, str], headers: dict[str, str]
    ) -> Reply:
        raise NotImplementedError


def s256(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().strip("=")


class GitHub(Site):
    """emails: what /user/emails answers; None as for a token without the scope."""

    def __init__(self) -> None:
        self.codes: dict[str, dict[str, str]] = {}
        self.emails: Any = [
            {"email": "old@example.com", "primary": False, "verified": True, "visibility": None},
            {"email": "Ann@Example.com", "primary": True, "verified": True, "visibility": "public"},
        ]

    def answer(
        self, method: str, path: str, values: dict[str, str], headers: dict[str, str]
    ) -> Reply:
        if path == "/login/oauth/authorize":
            code = secrets.token_hex(10)
            self.codes[code] = values
            back = urlencode({"code": code, "state": values["state"]})
            return 302, {}, {"location": f"{values['redirect_uri']}?{back}"}
        if path == "/login/oauth/access_token":
            asked = self.codes.pop(values.get("code", ""), None)
            assert headers["accept"] == "application/json"
            if (
                asked is None
                or values["client_secret"] != "hub secret"
                or s256(values["code_verifier"]) != asked["code_challenge"]
            ):  # an error that comes with the status 200
                return 200, {"error": "bad_verification_code"}, {}
            assert set(asked["scope"].split()) == {"read:user", "user:email"}
            return 200, {"access_token": "gho_x", "scope": asked["scope"]}, {}
        if headers.get("authorization") != "Bearer gho_x" or "user-agent" not in headers:
            return 403, {"message": "Forbidden"}, {}
        if path == "/user":
            user = {"id": 583231, "login": "ann", "name": None, "avatar_url": "https://x/y.png"}
            return 200, {**user, "email": None}, {}
        if self.emails is None:
            return 404, {"message": "Not Found"}, {}
        return 200, self.emails, {}


class Apple(Site):
    """key: the developer's; its public half verifies the client secret."""

    def __init__(self) -> None:
        self.key = new_signing_key("ES256")
        self.own = new_signing_key("RS256")
        self.codes: dict[str, dict[str, str]] = {}
        self.claims: dict[str, Any] = {"email": "Ann@Example.com", "email_verified": "true"}

    def answer(
        self, method: str, path: str, values: dict[str, str], headers: dict[str, str]
    ) -> Reply:
        if path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.base, "authorization_endpoint": f"{self.base}/auth/authorize",
                "token_endpoint": f"{self.base}/auth/token", "jwks_uri": f"{self.base}/auth/keys",
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
            }  # fmt: skip
            return 200, found, {}
        if path == "/auth/keys":
            return 200, {"keys": [public_jwk(self.own)]}, {}
        if path == "/auth/authorize":
            assert values["response_mode"] == "form_post"  # it refuses scopes without
            assert set(values["scope"].split()) == {"name", "email"}
            code = secrets.token_hex(10)
            self.codes[code] = values
            return 200, {"code": code, "state": values["state"]}, {}
        assert path == "/auth/token"
        asked = self.codes.pop(values.get("code", ""), None)
        try:
            public = jwt.PyJWK(public_jwk(self.key) or {}).key
            secret = jwt.decode(
                values["client_secret"], public, algorithms=["ES256"], audience=self.base,
                issuer="TEAM",
            )  # fmt: skip
        except jwt.PyJWTError:
            return 400, {"error": "invalid_client"}, {}
        if asked is None or secret["sub"] != asked["client_id"]:
            return 400, {"error": "invalid_grant"}, {}
        now = int(time.time())
        claims = {
            "iss": self.base, "aud": asked["client_id"], "sub": "001.ann", "iat": now,
            "exp": now + 600, "nonce": asked["nonce"], "nonce_supported": True, **self.claims,
        }  # fmt: skip
        answer = {"access_token": "a", "token_type": "Bearer", "id_token": sign(claims, self.own)}
        return 200, answer, {}
