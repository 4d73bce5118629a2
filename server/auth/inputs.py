"""Bodies of the auth endpoints, and the checks of what people type."""

from __future__ import annotations

import re
import unicodedata
from typing import TypeVar
from uuid import UUID

import msgspec

from ichicore.errors import ApiError
from server.base.http import Request

MAX_BODY = 32_768  # bytes
MAX_METADATA = 8_192  # bytes of JSON without insignificant spaces
MAX_DEPTH = 64

LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
ATOM = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+"
EMAIL = re.compile(rf"({ATOM}(?:\.{ATOM})*)@({LABEL}(?:\.{LABEL})*)", re.ASCII)
PHONE = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
CODE = re.compile(r"[0-9]{6}", re.ASCII)
TOKEN = re.compile(r"[A-Za-z0-9_-]{20,100}", re.ASCII)
UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

Body = TypeVar("Body", bound=msgspec.Struct)


class Credentials(msgspec.Struct):
    email: str
    password: str


class Address(msgspec.Struct):
    email: str


class AddressCode(msgspec.Struct):
    email: str
    code: str


class Token(msgspec.Struct):
    token: str


class RefreshToken(msgspec.Struct):
    refresh_token: str


class OptionalRefreshToken(msgspec.Struct):
    refresh_token: str | None = None


class ResetByToken(msgspec.Struct):
    token: str
    new_password: str


class ResetByCode(msgspec.Struct):
    email: str
    code: str
    new_password: str


class PasswordChange(msgspec.Struct):
    current_password: str
    new_password: str


class PhoneNumber(msgspec.Struct):
    phone: str


class PhoneCode(msgspec.Struct):
    phone: str
    code: str


class MetadataPatch(msgspec.Struct):
    metadata: msgspec.Raw


class Exchange(msgspec.Struct):
    code: str
    code_verifier: str


def bad_request(message: str) -> ApiError:
    return ApiError(400, "bad_request", message)


async def read(request: Request, kind: type[Body]) -> Body:
    """The request's JSON body as `kind`; ApiError 400 bad_request or 413."""
    return decode(await request.read_body(MAX_BODY), kind)


def decode(raw: bytes, kind: type[Body]) -> Body:
    """JSON text to `kind`; ApiError 400 bad_request."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise bad_request(f"The body is not what this endpoint takes: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise bad_request("The body is not valid JSON.") from None
    except RecursionError:
        raise bad_request("The body is nested too deeply.") from None


def email(text: str) -> str:
    """Trimmed and lower-cased address of at most 254 characters; ApiError 400 invalid_email.

    Only ASCII is taken: the lower case of some other letters is ASCII, and mail to a look-alike
    would go to somebody else.
    """
    value = text.strip(" \t\r\n")
    if value.isascii() and len(value) <= 254:
        match = EMAIL.fullmatch(value.lower())
        if match and len(match[1]) <= 64:
            return match[0]
    raise ApiError(400, "invalid_email", "That is not an e-mail address.")


def phone(text: str) -> str:
    """A number in E.164 form; ApiError 400 invalid_phone."""
    value = text.strip(" ")
    if not PHONE.fullmatch(value):
        raise ApiError(400, "invalid_phone", "Give the number in the form +14155551234.")
    return value


def is_code(text: str) -> bool:
    return CODE.fullmatch(text) is not None


def is_token(text: str) -> bool:
    return TOKEN.fullmatch(text) is not None


def uuid(text: str) -> str | None:
    """Canonical form of a UUID, or None."""
    value = text.lower()
    return value if UUID_TEXT.fullmatch(value) and str(UUID(value)) == value else None


def metadata(raw: bytes | msgspec.Raw) -> str:
    """JSON text of an object of at most 8 KB; ApiError 400 metadata_too_large or bad_request."""
    text = bytes(raw)
    if not text.lstrip().startswith(b"{"):
        raise bad_request("metadata must be an object.")
    try:
        compact = msgspec.json.format(text, indent=-1)
        _check_json(msgspec.json.decode(compact), 0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("metadata must be an object that is not nested too deeply.") from None
    if len(compact) > MAX_METADATA:
        raise ApiError(
            400, "metadata_too_large", f"metadata takes at most {MAX_METADATA} bytes as JSON."
        )
    return compact.decode()


def _check_json(value: object, depth: int) -> None:
    """What Postgres cannot keep in jsonb, or what would be a burden to read."""
    if depth > MAX_DEPTH:
        raise bad_request(f"metadata is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, str):
        if "\0" in value:
            raise bad_request("metadata must not contain the character U+0000.")
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_json(key, depth)
            _check_json(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _check_json(member, depth + 1)
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise bad_request("metadata contains a number that is too large.")


def normalized_password(text: str) -> str:
    """The same characters typed on different systems give the same text (Unicode NFKC)."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def header(request: Request, name: str, limit: int) -> str | None:
    """A header's printable text, cut to `limit` characters; None when absent or empty."""
    value = request.headers.get(name)
    if not value:
        return None
    return "".join(c for c in value[:limit] if c.isprintable()) or None
