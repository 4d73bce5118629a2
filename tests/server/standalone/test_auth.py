"""Who a request is, as the program tells it."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.standalone.auth import Authenticator
from server.standalone.config import ConfigError, load

SECRET = "reallyreallyreallyreallyverysafe"


def authenticator(**settings: str) -> Authenticator:
    named = {key.replace("_", "-"): value for key, value in settings.items()}
    return Authenticator(load({"jwt-secret": SECRET, "db-anon-role": "anon", **named}, {}))


def token(
    claims: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any
) -> str:
    return "Bearer " + jwt.PyJWS().encode(
        json.dumps(claims).encode(), key, algorithm=algorithm, headers=headers or None
    )


def refused(auth: Authenticator, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        auth.identify(header)
    return caught.value


def test_without_a_token() -> None:
    caller = authenticator().identify(None)
    assert (caller.role, caller.anonymous, caller.claims_json) == ("anon", True, b'{"role":"anon"}')
    assert authenticator().identify("Basic abc").anonymous
    nobody = Authenticator(load({"jwt-secret": SECRET}, {}))
    error = refused(nobody, None)
    assert (error.status, error.code, error.headers) == (
        401, "PGRST302", (("www-authenticate", "Bearer"),),
    )  # fmt: skip


def test_the_role_and_the_claims() -> None:
    caller = authenticator().identify(token({"role": "author", "id": 1}))
    assert caller.role == "author"
    assert json.loads(caller.claims_json) == {"role": "author", "id": 1}
    caller = authenticator().identify(token({"id": 1}))
    assert (caller.role, json.loads(caller.claims_json)["role"]) == ("anon", "anon")
    deep = authenticator(jwt_role_claim_key='.realm.roles[?(@ ^== "db_")]')
    assert deep.identify(token({"realm": {"roles": ["x", "db_author"]}})).role == "db_author"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Bearer ", "Empty JWT is sent in Authorization header"),
        ("Bearer a.b", "Expected 3 parts in JWT; got 2"),
        ("Bearer a.b.c", "JWT cryptographic operation failed"),
        (token({"role": "x"}, "another secret that is long enough"),
         "No suitable key or wrong key type"),
    ],
)  # fmt: skip
def test_broken_tokens(header: str, message: str) -> None:
    error = refused(authenticator(), header)
    assert (error.status, error.code, error.message) == (401, "PGRST301", message)
    assert error.headers == (
        ("www-authenticate", f'Bearer error="invalid_token", error_description="{message}"'),
    )


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"exp": NOW - 20}, None),
        ({"exp": NOW - 40}, "JWT expired"),
        ({"nbf": NOW + 20, "iat": NOW + 20}, None),
        ({"nbf": NOW + 60}, "JWT not yet valid"),
        ({"iat": NOW + 60}, "JWT issued at future"),
        ({"exp": "x"}, "The JWT 'exp' claim must be a number"),
        ({"nbf": True}, "The JWT 'nbf' claim must be a number"),
        ({"exp": NOW - 40, "nbf": "x"}, "JWT expired"),
        ({"exp": NOW + 100.5}, "JWT expired"),
        ({"exp": 10**30}, "JWT expired"),
        ({"aud": 1}, "The JWT 'aud' claim must be a string or an array of strings"),
        ({"aud": "us"}, None),
        ({"aud": ["them", "us"]}, None),
        ({"aud": []}, None),
        ({"aud": None}, None),
        ({"aud": ""}, "JWT not in audience"),
        ({"aud": ["them"]}, "JWT not in audience"),
    ],
)
def test_claims_that_are_checked(claims: dict[str, Any], message: str | None) -> None:
    passed = int(time.time()) - NOW  # since the table above was made
    claims = {
        name: value + passed
        if isinstance(value, int | float) and abs(value - NOW) < 1000
        else value
        for name, value in claims.items()
    }
    auth = authenticator(jwt_aud="us")
    header = token({"role": "author", **claims})
    for _ in range(2):  # also when the token is known
        if message is None:
            assert auth.identify(header).role == "author"
        else:
            error = refused(auth, header)
            assert (error.code, error.message) == ("PGRST303", message)


def test_no_secret() -> None:
    auth = Authenticator(load({"db-anon-role": "anon"}, {}))
    error = refused(auth, token({}))
    assert (error.status, error.code, error.message) == (500, "PGRST300", "Server lacks JWT secret")


def public(key: Any, algorithm: str, **more: str) -> dict[str, Any]:
    found = jwt.algorithms.get_default_algorithms()[algorithm].to_jwk(
        key.public_key(), as_dict=True
    )
    return {**found, **more}


def test_key_sets_and_algorithms() -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)
    ec_key = ec.generate_private_key(ec.SECP256R1())
    ed_key = ed25519.Ed25519PrivateKey.generate()
    keys = [public(rsa_key, "RS256", kid="r"), public(ec_key, "ES256"), public(ed_key, "EdDSA")]
    auth = authenticator(jwt_secret=json.dumps({"keys": keys}))
    for key, algorithm in ((rsa_key, "RS256"), (rsa_key, "PS256"), (ec_key, "ES256"),
                           (ed_key, "EdDSA")):  # fmt: skip
        assert auth.identify(token({"role": "a"}, key, algorithm)).role == "a"
    assert auth.identify(token({"role": "a"}, rsa_key, "RS256", kid="r")).role == "a"
    assert refused(auth, token({}, rsa_key, "RS256", kid="s")).details == (
        "No suitable key was found to decode the JWT"
    )
    # A public key must not pass for a shared secret.
    assert refused(auth, token({}, "x" * 40)).code == "PGRST301"
    assert refused(auth, token({}, None, "none")).message == (
        "Wrong or unsupported encoding algorithm"
    )
    one = authenticator(jwt_secret=json.dumps(
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")}
    ))  # fmt: skip
    assert one.identify(token({"role": "a"})).role == "a"


def test_base64_secret() -> None:
    raw = bytes(range(200, 240))
    auth = authenticator(
        jwt_secret=base64.urlsafe_b64encode(raw).decode(), jwt_secret_is_base64="true"
    )
    assert auth.identify(token({"role": "a"}, raw)).role == "a"


@pytest.mark.parametrize("secret", ["short", '{"kty":"RSA","n":"!","e":"AQAB"}'])
def test_unusable_secrets(secret: str) -> None:
    with pytest.raises(ConfigError):
        authenticator(jwt_secret=secret)


@given(st.text(max_size=40))
def test_any_header(text: str) -> None:
    try:
        authenticator().identify("Bearer " + text)
    except ApiError as error:
        assert error.status == 401
