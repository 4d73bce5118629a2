"""Host headers: which project, and what is no host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.errors import ApiError
from server.base.hosts import HostRule

RULE = HostRule("ichi.example", "default", "https://ichi.example:8443", "https://cdn.ichi.example")


@pytest.mark.parametrize(
    ("host", "slug"),
    [
        ("shop.ichi.example", "shop"),
        ("SHOP.Ichi.Example:8443", "shop"),
        ("shop.ichi.example.", "shop"),
        ("shop.ichi.example.:80", "shop"),
        ("shop.localhost:8000", "shop"),
        ("a-1.localhost", "a-1"),
        ("xn--shp-tna.ichi.example", "xn--shp-tna"),  # a name that no project can have
        ("ichi.example", "default"),
        ("localhost:8000", "default"),
        ("127.0.0.1:8000", "default"),
        ("10.1.2.3", "default"),
        ("[::1]:8000", "default"),
        ("[2001:db8::1]", "default"),
        ("backend:8000", "default"),
        ("cdn.ichi.example", None),
        ("cdn.localhost", None),
    ],
)
def test_named_projects(host, slug):
    assert RULE.slug(host) == slug


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("", 400), ("a b", 400), ("shop.ichi.example:0", 400), ("shop.ichi.example:99999", 400),
        ("shop.ichi.example:8a", 400), ("shop..localhost", 400), (".localhost", 400),
        ("user@shop.localhost", 400), ("shop.localhost/x", 400), ("[::1", 400), ("[zz]", 400),
        ("[::1]x", 400), ("[::1]:", 400), ("a" * 300, 400), ("shop.localhost:", 400),
        ("sh\u00f6p.localhost", 400), ("-.localhost", 400), ("*.localhost", 400),
        ("a.b.ichi.example", 404), ("a.b.localhost", 404), ("evil.example", 404),
        ("shop%2e.localhost", 400),
        ("shop.ichi.example..", 400), ("shop.localhost:80:80", 400), ("shop.localhost.:x", 400),
        ("ｓｈｏｐ.localhost", 400), ("shop.localhost,other.localhost", 400),
        ("shop.ichi.example.evil.net", 404), ("x_y.localhost", 404), ("evilichi.example", 404),
        ("shop\r\nx: y", 400), ("shop\x00.localhost", 400), ("1.2.3.4.5", 404),
    ],
)  # fmt: skip
def test_refused_hosts(host, status):
    with pytest.raises(ApiError) as caught:
        RULE.slug(host)
    assert caught.value.status == status


@given(st.text(max_size=80))
def test_any_text_is_a_slug_or_a_refusal(text):
    try:
        slug = RULE.slug(text)
    except ApiError as error:
        assert error.status in (400, 404)
    else:
        assert slug is None or slug.replace("-", "").isalnum()
