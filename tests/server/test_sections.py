import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.control import sections


@pytest.mark.parametrize(
    "origin",
    ["*", "https://app.example.com", "http://localhost:*", "https://*.vercel.app",
     "http://127.0.0.1:3000", "app://x", "http://[::1]:5173"],
)  # fmt: skip
def test_origins_that_may_be_listed(origin):
    assert sections.check("cors", json.dumps({"origins": [origin]}).encode())


@pytest.mark.parametrize("origin", ["", "https://a/", "https://a/b", "a.com", "https://a b", "//a"])
def test_origins_that_may_not(origin):
    with pytest.raises(ApiError) as caught:
        sections.check("cors", json.dumps({"origins": [origin]}).encode())
    assert (caught.value.status, caught.value.code) == (400, "invalid_settings")


@pytest.mark.parametrize(
    ("section", "body", "status"),
    [
        ("nothing", b"{}", 404),
        ("cors", b"{", 400),
        ("cors", b'{"orgins":[]}', 400),
        ("cors", b"[]", 400),
        ("postgres", b'{"schemas":[]}', 400),
        ("postgres", b'{"schemas":["auth"]}', 400),
        ("postgres", b'{"max_rows":0}', 400),
        ("postgres", b'{"openapi_mode":"x"}', 400),
    ],
)
def test_bad_sections_are_refused(section, body, status):
    with pytest.raises(ApiError) as caught:
        sections.check(section, body)
    assert caught.value.status == status


@given(st.sampled_from(["cors", "postgres"]), st.binary(max_size=80))
def test_any_body_is_answered(section, body):
    try:
        sections.check(section, body)
    except ApiError as error:
        assert error.status == 400
