"""Credentials: what each header may hold and who that makes the caller."""

import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.base.keys import Denied, KeyRing, forget, revoke
from server.base.project import NOBODY, Project, SigningKey

SECRET = "a secret of thirty-two bytes or more"
OTHER = "a different secret, as long as the first"
UID = "11111111-1111-4111-8111-111111111111"


def project(slug="shop", secret=SECRET):
    return Project(
        id=f"id-{slug}", slug=slug, flavor="postgres", tier="free", url="http://shop.localhost",
        keys=(SigningKey("k1", "HS256", secret),), anon_key="", service_key="", storage_secret="",
        authenticator_dsn=None, owner_dsn=None, system_dsn=None, mongo_url=None, settings={},
        revision=1,
    )  # fmt: skip


def sign(claims, secret=SECRET):
    return jwt.encode(claims, secret, "HS256", headers={"kid": "k1"})


def user(secret=SECRET, **claims):
    now = int(time.time())
    base = {"role": "authenticated", "sub": UID, "aud": "authenticated", "iat": now,
            "exp": now + 900, "session_id": "s1"}  # fmt: skip
    return sign(base | claims, secret)


def key(role="anon", secret=SECRET, **claims):
    prefix = {"anon": "ich_pub_", "service_role": "ich_admin_"}[role]
    return prefix + sign({"role": role, "ref": "shop"} | claims, secret)


def refused(ring, authorization=None, apikey=None):
    with pytest.raises(ApiError) as caught:
        ring.identify(authorization, apikey, time.time())
    assert caught.value.status == 401
    assert ("www-authenticate", "Bearer") in caught.value.headers
    return caught.value.code


def who(ring, authorization=None, apikey=None):
    found = ring.identify(authorization, apikey, time.time())
    return found.role, found.key_role, found.uid


@pytest.fixture
def ring():
    return KeyRing(project())


def test_who_the_caller_is(ring):
    anon, service, bearer = key(), key("service_role"), f"Bearer {user()}"
    assert ring.identify(None, None, time.time()) is NOBODY
    assert who(ring, apikey=anon) == ("anon", "anon", None)
    assert who(ring, apikey=service) == ("service_role", "service_role", None)
    assert who(ring, f"Bearer {anon}") == ("anon", None, None)
    assert who(ring, f"bearer  {service}") == ("service_role", None, None)
    assert who(ring, bearer) == ("authenticated", None, UID)
    assert who(ring, bearer, anon) == ("authenticated", "anon", UID)
    assert who(ring, bearer, service) == ("authenticated", "service_role", UID)
    assert who(ring, f"Bearer {anon}", service) == ("anon", "service_role", None)
    found = ring.identify(bearer, None, time.time())
    assert found.session_id == "s1"
    assert b'"role":"authenticated"' in found.claims_json
    assert ring.identify(bearer, None, time.time()) is found  # from the cache


@pytest.mark.parametrize("text", [
    "x", "ich_pub_", "ich_pub_x.y.z", sign({"role": "anon"}), user(),
    "ich_admin_" + sign({"role": "anon"}), "ich_pub_" + sign({"role": "service_role"}),
    "ich_pub_" + user(), key(secret=OTHER), key(ref="other"), key(exp=1), "ich_other_x",
    key(sub=UID), "Bearer " + key(), "ICH_PUB_" + key()[8:],
])  # fmt: skip
def test_bad_keys(ring, text):
    assert refused(ring, apikey=text) == "invalid_api_key"
    # a good token beside it changes nothing
    assert refused(ring, f"Bearer {user()}", text) == "invalid_api_key"


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_key_is_none(ring, text):
    assert refused(ring, apikey=text) == "missing_api_key"
    assert refused(ring, f"Bearer {user()}", text) == "missing_api_key"


@pytest.mark.parametrize(("value", "code"), [
    ("", "invalid_token"), ("Bearer", "invalid_token"), ("Bearer ", "invalid_token"),
    ("Basic eDp5", "invalid_token"), (user(), "invalid_token"), ("Bearer x", "invalid_token"),
    ("Bearer undefined", "invalid_token"), ("Bearer " + sign({"role": "anon"}), "invalid_token"),
    ("Bearer " + sign({"role": "service_role"}), "invalid_token"),
    ("Bearer " + user(role="postgres"), "invalid_token"), ("Bearer " + sign({}), "invalid_token"),
    ("Bearer " + user(secret=OTHER), "invalid_token"), ("Bearer " + user(exp=1), "token_expired"),
    ("Bearer " + user(aud="x"), "invalid_token"), ("Bearer " + user(ref="x"), "invalid_token"),
    ("Bearer " + user(sub=7), "invalid_token"), ("Bearer " + user(nbf=1e12), "invalid_token"),
    ("Bearer " + key(exp=1), "invalid_api_key"), ("Bearer " + "x" * 9000, "invalid_token"),
])  # fmt: skip
def test_bad_authorization(ring, value, code):
    assert refused(ring, value) == code
    assert refused(ring, value, key()) == code


def test_a_cached_identity_ends_with_its_token(ring):
    bearer = f"Bearer {user(exp=int(time.time()) + 5)}"
    ring.identify(bearer, key(), time.time())
    ring.identify(bearer, key(), time.time() + 34)
    with pytest.raises(ApiError) as caught:
        ring.identify(bearer, key(), time.time() + 36)
    assert caught.value.code == "token_expired"


def test_revocation_reaches_cached_tokens(ring):
    first, second = f"Bearer {user()}", f"Bearer {user(session_id='s2')}"
    assert who(ring, first)[0] == who(ring, second)[0] == "authenticated"
    revoke(ring.denied, {"session_id": "s1"})
    assert refused(ring, first) == "invalid_token"
    assert refused(ring, first) == "invalid_token"
    assert who(ring, second)[0] == "authenticated"
    revoke(ring.denied, {"user_id": UID, "before": time.time() + 1})
    assert refused(ring, second) == "invalid_token"
    later = f"Bearer {user(session_id='s3', iat=int(time.time()) + 2)}"
    assert who(ring, later)[0] == "authenticated"


def test_what_is_over_is_forgotten_of_projects_that_are_gone():
    denied = {name: Denied() for name in ("here", "gone", "over", "user")}
    for name in ("here", "over"):
        revoke(denied[name], {"session_id": "s", "exp": 1})
    revoke(denied["gone"], {"session_id": "s", "exp": time.time() + 100})
    revoke(denied["user"], {"user_id": "u", "before": 1, "exp": time.time() + 100})
    forget(denied, {"here"})
    assert denied.keys() == {"here", "gone", "user"}


def test_the_list_of_revoked_is_bounded(monkeypatch):
    monkeypatch.setattr("server.base.keys.MAX_DENIED", 50)
    denied = Denied()
    for number in range(500):
        denied.session(f"s{number}", float(number))
        denied.user(f"u{number}", 0.0, float(number))
    assert len(denied.sessions) + len(denied.users) <= 51
    assert denied.covers({"session_id": "s499"}, 499.0)
    assert not denied.covers({"session_id": "s499"}, 499.0 + 90_000)


@given(st.one_of(st.none(), st.text(max_size=40)), st.one_of(st.none(), st.text(max_size=40)))
def test_any_header_text_is_nobody_or_refused(authorization, apikey):
    ring = KeyRing(project())
    if authorization is None and apikey is None:
        return
    with pytest.raises(ApiError) as caught:
        ring.identify(authorization, apikey, 1.8e9)
    assert caught.value.status == 401
