"""An OpenID Connect provider: Authlib's authorization server behind a plain asyncio listener."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientMixin,
    OAuth2Payload,
    OAuth2Request,
    grants,
)
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oidc.core import AuthorizationCodeMixin, UserInfo
from authlib.oidc.core.grants import OpenIDCode

from server.auth.tokens import new_signing_key, public_jwk

CLIENT_ID, CLIENT_SECRET = "shop-client", "shop-client-secret"


class Payload(OAuth2Payload):
    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    @property
    def data(self) -> dict[str, str]:
        return self.values

    @property
    def datalist(self) -> defaultdict[str, list[str]]:
        return defaultdict(list, {name: [value] for name, value in self.values.items()})


class ProviderRequest(OAuth2Request):
    def __init__(self, method: str, path: str, headers: dict[str, str], form: str) -> None:
        super().__init__(method, f"https://provider{path}", headers=headers)
        self._form = dict(parse_qsl(form))
        self._args = dict(parse_qsl(urlsplit(path).query))
        self.payload = Payload({**self._args, **self._form})

    @property
    def args(self) -> dict[str, str]:
        return self._args

    @property
    def form(self) -> dict[str, str]:
        return self._form


class Client(ClientMixin):
    id_token_signed_response_alg = "RS256"

    def __init__(self, callback: str) -> None:
        self.callback = callback
        self.client_id = CLIENT_ID

    def get_client_id(self) -> str:
        return CLIENT_ID

    def get_default_redirect_uri(self) -> str:
        return self.callback

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.callback

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == CLIENT_SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "authorization_code"


class Code(AuthorizationCodeMixin):
    def __init__(self, request: OAuth2Request) -> None:
        data = request.payload.data
        self.redirect_uri = data.get("redirect_uri")
        self.scope = data.get("scope")
        self.nonce = data.get("nonce")
        self.code_challenge = data.get("code_challenge")
        self.code_challenge_method = data.get("code_challenge_method")
        self.user = request.user

    def get_redirect_uri(self) -> str | None:
        return self.redirect_uri

    def get_scope(self) -> str | None:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> None:
        return None

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


class Provider(AuthorizationServer):
    """issuer: once `start` has run. person: claims of whoever signs in. spoil: changes the claims
    of the next id_token just before it is signed."""

    def __init__(self, callback: str) -> None:
        super().__init__(scopes_supported=["openid", "email", "profile"])
        self.client = Client(callback)
        self.codes: dict[str, Code] = {}
        self.key = new_signing_key("RS256")
        self.person: dict[str, Any] = {
            "sub": "p-1", "email": "Ann@Example.com", "email_verified": True, "name": "Ann",
        }  # fmt: skip
        self.spoil: dict[str, Any] = {}
        self.announce_iss: str | None = None
        self.issuer = ""
        provider = self

        class Grant(grants.AuthorizationCodeGrant):
            TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic"]

            def save_authorization_code(self, code: str, request: OAuth2Request) -> Code:
                provider.codes[code] = Code(request)
                return provider.codes[code]

            def query_authorization_code(self, code: str, client: Client) -> Code | None:
                return provider.codes.get(code)

            def delete_authorization_code(self, authorization_code: Code) -> None:
                provider.codes = {
                    k: v for k, v in provider.codes.items() if v is not authorization_code
                }

            def authenticate_user(self, authorization_code: Code) -> Any:
                return authorization_code.user

        class OpenId(OpenIDCode):
            def exists_nonce(self, nonce: str, request: OAuth2Request) -> bool:
                return any(code.nonce == nonce for code in provider.codes.values())

            def resolve_client_private_key(self, client: Client) -> Any:
                from joserfc.jwk import RSAKey

                return RSAKey.import_key(provider.key.secret, {"kid": provider.key.kid})

            def get_client_claims(self, client: Client) -> dict[str, Any]:
                return {"iss": provider.issuer, "aud": CLIENT_ID}

            def generate_user_info(self, user: Any, scope: str) -> UserInfo:
                return UserInfo(**{**user, **provider.spoil})

        self.register_grant(Grant, [OpenId(require_nonce=True), CodeChallenge(required=True)])
        self.register_token_generator("default", self._token)

    @staticmethod
    def _token(**given: Any) -> dict[str, Any]:
        token = secrets.token_hex(16)
        return {"token_type": "Bearer", "access_token": token, "scope": given["scope"]}

    def query_client(self, client_id: str) -> Client | None:
        return self.client if client_id == CLIENT_ID else None

    def save_token(self, token: Any, request: OAuth2Request) -> None:
        pass

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        pass

    def create_oauth2_request(self, request: ProviderRequest) -> OAuth2Request:
        return request

    def handle_response(self, status: int, body: Any, headers: Any) -> tuple[int, Any, Any]:
        return status, body, headers

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.title(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        length = int(headers.get("Content-Length", "0"))
        form = (await reader.readexactly(length)).decode()
        status, body, more = self._answer(ProviderRequest(method, path, headers, form), path)
        raw = (body if isinstance(body, str) else json.dumps(body)).encode()
        text = f"HTTP/1.1 {status} X\r\ncontent-length: {len(raw)}\r\nconnection: close\r\n"
        text += "".join(f"{name}: {value}\r\n" for name, value in more)
        writer.write(text.encode() + b"\r\n" + raw)
        await writer.drain()
        writer.close()

    def _answer(self, request: ProviderRequest, path: str) -> tuple[int, Any, Any]:
        route = urlsplit(path).path
        if route == "/.well-known/openid-configuration":
            return (
                200,
                {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                    "token_endpoint_auth_methods_supported": ["client_secret_basic"],
                    "authorization_response_iss_parameter_supported": self.announce_iss is not None,
                },
                [],
            )
        if route == "/keys":
            return 200, {"keys": [public_jwk(self.key)]}, []
        if route == "/authorize":
            grant = self.get_consent_grant(request, end_user=self.person)
            status, body, headers = self.create_authorization_response(
                request, grant_user=self.person, grant=grant
            )
            if self.announce_iss is not None:
                headers = [
                    (k, f"{v}&iss={self.announce_iss}" if k.lower() == "location" else v)
                    for k, v in headers
                ]
            return status, body or "", headers
        if route == "/token":
            return self.create_token_response(request)
        return 404, "", []


async def visit(url: str) -> str:
    """What a browser does at the provider: opens the page, is sent back to this address."""
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(url)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]
