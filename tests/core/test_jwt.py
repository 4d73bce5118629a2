"""Tokens: the key decides the algorithm, times are judged with leeway, garbage is refused."""

import base64
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.token.jwt import LEEWAY, Keyset, VerificationKey

SECRET = "a secret of sixty-four bytes or more, which is what HS512 asks for"
NOW = 1_800_000_000.0


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def public_pem(text):
    key = serialization.load_pem_private_key(text.encode(), None)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture(scope="module")
def pems():
    return {
        "RS256": pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "ES256": pem(ec.generate_private_key(ec.SECP256R1())),
        "EdDSA": pem(ed25519.Ed25519PrivateKey.generate()),
    }


@pytest.fixture(scope="module")
def keyset(pems):
    keys = [VerificationKey(name, name, text) for name, text in pems.items()]
    return Keyset([VerificationKey("h", "HS256", SECRET), *keys])


def sign(claims, key=SECRET, algorithm="HS256", **headers):
    return jwt.encode(claims, key, algorithm, headers=headers)


def code_of(keyset, token, now=NOW):
    with pytest.raises(ApiError) as caught:
        keyset.verify(token, now)
    assert caught.value.status == 401
    return caught.value.code


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", [True, False])
def test_each_algorithm(keyset, pems, algorithm, kid):
    key = pems.get(algorithm, SECRET)
    headers = {"kid": algorithm if algorithm != "HS256" else "h"} if kid else {}
    token = sign({"sub": "x"}, key, algorithm, **headers)
    assert keyset.verify(token, NOW) == {"sub": "x"}
    head, body, _ = token.split(".")
    assert code_of(keyset, f"{head}.{body}.AAAA") == "invalid_token"
    assert code_of(keyset, f"{head}.{part({'sub': 'y'})}.{token.split('.')[2]}") == "invalid_token"


def test_the_algorithm_is_the_keys(keyset, pems):
    assert code_of(keyset, f"{part({'alg': 'none'})}.{part({'sub': 'x'})}.") == "invalid_token"
    signed = f"{part({'alg': 'HS256', 'kid': 'RS256'})}.{part({'sub': 'x'})}"
    forged = hmac.digest(public_pem(pems["RS256"]), signed.encode(), "sha256")
    tail = base64.urlsafe_b64encode(forged).rstrip(b"=").decode()
    assert code_of(keyset, f"{signed}.{tail}") == "invalid_token"
    assert code_of(keyset, sign({}, SECRET, "HS512")) == "invalid_token"
    assert code_of(keyset, sign({}, SECRET, kid="RS256")) == "invalid_token"
    assert code_of(keyset, sign({}, SECRET, crit=["exp"])) == "invalid_token"
    assert code_of(keyset, sign({}, "another secret of thirty-two bytes")) == "invalid_token"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": NOW - LEEWAY}, "token_expired"),
        ({"exp": NOW - LEEWAY + 1}, None),
        ({"nbf": NOW + LEEWAY + 1}, "invalid_token"),
        ({"nbf": NOW + LEEWAY}, None),
        ({"iat": NOW + LEEWAY + 1}, "invalid_token"),
        ({"exp": None}, None),
    ],
)
def test_times(keyset, claims, code):
    token = sign(claims)
    if code is None:
        keyset.verify(token, NOW)
    else:
        assert code_of(keyset, token) == code


@pytest.mark.parametrize("payload", [b"[]", b'"x"', b"1", b"{", b"\xff", b'{"exp":"1"}',
                                     b'{"exp":true}', b'{"nbf":[]}'])  # fmt: skip
def test_payloads_that_are_no_claims(keyset, payload):
    token = jwt.PyJWS().encode(payload, SECRET, "HS256")
    assert code_of(keyset, token) == "invalid_token"


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[\w-]{0,20}\.[\w-]{0,20}\.[\w-]{0,20}")))
def test_garbage_is_refused(text):
    assert code_of(Keyset([VerificationKey("h", "HS256", SECRET)]), text) == "invalid_token"


def test_unfit_keys(pems):
    for algorithm, secret in [("HS256", "short"), ("HS512", SECRET), ("RS256", pems["ES256"]),
                              ("ES256", pems["EdDSA"]), ("EdDSA", pems["RS256"]),
                              ("RS256", "no key")]:  # fmt: skip
        with pytest.raises(ValueError):
            VerificationKey("k", algorithm, secret)
