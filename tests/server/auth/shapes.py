"""Bodies for every endpoint, made from the types that it takes: right ones, nearly right ones, and
ones of other shapes."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from server.auth import inputs, users
from tests.server.auth.harness import PASSWORD

EXISTING = "ann@example.com"
BODIES: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("POST", "/signup"): inputs.Credentials,
    ("POST", "/login"): inputs.Credentials,
    ("POST", "/refresh"): inputs.RefreshToken,
    ("PATCH", "/me"): inputs.MetadataPatch,
    ("POST", "/logout"): inputs.OptionalRefreshToken,
    ("POST", "/change-password"): inputs.PasswordChange,
    ("POST", "/password-reset/request"): inputs.Address,
    ("POST", "/password-reset/confirm"): inputs.ResetByToken,
    ("POST", "/password-reset/confirm-otp"): inputs.ResetByCode,
    ("POST", "/verify-email"): inputs.Token,
    ("POST", "/verify-email/otp"): inputs.AddressCode,
    ("POST", "/verify-email/resend"): inputs.Address,
    ("POST", "/login/passwordless/request"): inputs.Address,
    ("POST", "/login/passwordless/verify"): inputs.AddressCode,
    ("POST", "/login/magic"): inputs.Token,
    ("POST", "/login/2fa/verify"): inputs.AddressCode,
    ("POST", "/login/2fa/magic"): inputs.Token,
    ("POST", "/login/phone/request"): inputs.PhoneNumber,
    ("POST", "/login/phone/verify"): inputs.PhoneCode,
    ("POST", "/oauth/exchange"): inputs.Exchange,
    ("POST", "/admin/users"): users.NewUser,
    ("PATCH", "/admin/users/{id}"): users.UserPatch,
    ("POST", "/admin/users/{id}/impersonate"): users.Impersonation,
    ("POST", "/admin/invite"): users.Invitation,
    ("POST", "/admin/generate-link"): users.LinkOrder,
}
BARE = {
    ("GET", "/me"),
    ("GET", "/sessions"),
    ("GET", "/admin/users"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/users/{id}"),
    ("GET", "/admin/users/{id}/sessions"),
    ("POST", "/admin/users/{id}/logout"),
    ("DELETE", "/admin/users/{id}"),
    ("POST", "/logout-all"),
}

_TEXT = st.text(max_size=40)
_LONG = st.sampled_from(["x" * 300, "x" * 20_000, "\0", "\ud7ff", "ı", "ß", "\u202e", "'; --", ""])
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(
        allow_nan=False, allow_infinity=False), _TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)  # fmt: skip
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "email": st.one_of(
        st.sampled_from([EXISTING, " ANN@Example.com ", "new@example.com", "a@b", "a@b..c"]),
        st.emails(),
    ),
    "phone": st.sampled_from(["+14155551234", "+1", "14155551234", "+" + "9" * 15, "+" + "9" * 16]),
    "password": st.sampled_from([PASSWORD, "not the lamp", "short", "password1", "ü" * 130]),
    "code": st.from_regex(r"[0-9]{6}", fullmatch=True),
    "code_verifier": st.from_regex(r"[A-Za-z0-9._~-]{43,60}", fullmatch=True),
    "token": st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
    "refresh_token": st.from_regex(r"[A-Za-z0-9_-]{80}", fullmatch=True),
    "password_hash": st.sampled_from(
        ["$2b$04$" + "a" * 53, "$2b$99$" + "a" * 53, "$argon2id$v=19$m=1,t=1,p=1$aaaa$bbbb",
         "$argon2id$v=19$m=999999999,t=1,p=1$YWFhYWFhYWE$YWFh", "md5"]
    ),
    "seconds": st.integers(-10, 5000),
    "reason": _TEXT,
    "type": st.sampled_from(["verify_email", "password_reset", "magic", "nonsense"]),
    "metadata": st.dictionaries(st.text(max_size=8), _JSON, max_size=4),
}  # fmt: skip
_FIELDS["new_password"] = _FIELDS["current_password"] = _FIELDS["password"]
_FIELDS["app_metadata"] = _FIELDS["metadata"]


def fields(kind: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the members of a type: each as it should be, of another sort, or left out."""
    members = {
        name: st.one_of(_FIELDS.get(name, st.booleans()), _LONG, _JSON)
        if name not in _FIELDS
        else st.one_of(_FIELDS[name], _FIELDS[name], _FIELDS[name], _LONG, _JSON)
        for name in kind.__struct_fields__
    }
    exact = st.fixed_dictionaries({n: _FIELDS.get(n, st.booleans()) for n in members})
    return st.one_of(
        exact,
        st.fixed_dictionaries({}, optional=members),
        st.fixed_dictionaries(members, optional={"unknown": _JSON, "__proto__": _JSON}),
    )


def bodies(kind: type[msgspec.Struct] | None) -> st.SearchStrategy[bytes]:
    """Bodies as they travel."""
    if kind is None:
        return st.one_of(st.just(b""), st.binary(max_size=20))
    cut = fields(kind).map(msgspec.json.encode).flatmap(
        lambda raw: st.integers(0, len(raw)).map(lambda end: raw[:end])
    )  # fmt: skip
    return st.one_of(
        fields(kind).map(msgspec.json.encode), fields(kind).map(msgspec.json.encode),
        cut, _JSON.map(msgspec.json.encode), st.binary(max_size=40),
    )  # fmt: skip
