"""Bodies of the control calls, refused in the form that clients of this protocol know."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import orjson

from ichicore.errors import ApiError
from server.base.http import JSON, Request, Response
from server.storage import paths

VALIDATION = "FST_ERR_VALIDATION"
MAX_BODY = 64 << 10
LARGEST = 5 << 40  # bytes of one file
_NAME = r"[a-z0-9!#$&^_.+-]{1,100}"
_VALUE = rf"(?:{_NAME}|[a-z0-9:/.+_-]{{1,100}}|\"[ a-z0-9!#$&^_.+:/,=-]{{0,100}}\")"
_TYPE = re.compile(rf"{_NAME}/{_NAME}(?: ?; ?[a-z0-9-]{{1,40}}={_VALUE}){{0,4}}", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def invalid(message: str) -> NoReturn:
    raise ApiError(400, VALIDATION, message)


def validation_response(error: ApiError) -> Response:
    body = {
        "statusCode": 400, "code": error.code, "error": "Bad Request", "message": error.message,
    }  # fmt: skip
    return Response(400, [JSON], orjson.dumps(body))


def content_type(text: str) -> str | None:
    """A media type with its parameters, the type itself in lower case; None when it is none."""
    text = text.strip()
    if not _TYPE.fullmatch(text):
        return None
    essence, semicolon, rest = text.partition(";")
    return f"{essence.strip().lower()}{semicolon}{rest}"


def essence(media_type: str) -> str:
    """A media type without parameters, in lower case."""
    return media_type.partition(";")[0].strip().lower()


class Body:
    """The members of one request's JSON object, each read by what it must be."""

    def __init__(self, members: dict[str, Any]) -> None:
        self.members = members

    @classmethod
    async def read(cls, request: Request) -> Body:
        raw = await request.read_body(MAX_BODY)
        try:
            value = orjson.loads(raw) if raw else None
        except orjson.JSONDecodeError:
            raise ApiError(400, "bad_request", "The body is not valid JSON.") from None
        if not isinstance(value, dict):
            invalid("body must be object")
        return cls(value)

    def has(self, name: str) -> bool:
        return self.members.get(name) is not None

    def text(self, name: str, longest: int = 4096) -> str:
        if name not in self.members:
            invalid(f"body must have required property '{name}'")
        value = self.members[name]
        if not isinstance(value, str):
            invalid(f"body/{name} must be string")
        if len(value) > longest:
            invalid(f"body/{name} must NOT have more than {longest} characters")
        return value

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        if self.members.get(name) is None and default is not None:
            return default
        if name not in self.members:
            invalid(f"body must have required property '{name}'")
        value = self.members[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            invalid(f"body/{name} must be integer")
        if value < least:
            invalid(f"body/{name} must be >= {least}")
        if value > most:
            invalid(f"body/{name} must be <= {most}")
        return value

    def flag(self, name: str) -> bool:
        value = self.members.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            invalid(f"body/{name} must be boolean")
        return value

    def bucket(self) -> str:
        return self._named("bucket", paths.bucket)

    def path(self, name: str = "path", *, folder: bool = False) -> str:
        return self._named(name, lambda text: paths.path(text, folder=folder))

    def prefix(self) -> str:
        return self._named("prefix", paths.prefix) if self.has("prefix") else ""

    def content_type(self) -> str:
        found = content_type(self.text("content_type", 255))
        if found is None:
            invalid("body/content_type must be a media type")
        return found

    def sha256(self) -> bytes | None:
        if not self.has("sha256"):
            return None
        text = self.text("sha256", 64)
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            invalid("body/sha256 must be 64 hexadecimal digits")
        return bytes.fromhex(text)

    def user_id(self) -> str | None:
        """A UUID, as users have it."""
        if not self.has("user_id"):
            return None
        text = self.text("user_id", 36)
        if not _UUID.fullmatch(text):
            invalid("body/user_id must be a UUID")
        return text.lower()

    def _named(self, name: str, check: Any) -> str:
        text = self.text(name)
        try:
            return str(check(text))
        except paths.PathError as error:
            invalid(f"body/{name} {error}")
        except UnicodeEncodeError:
            invalid(f"body/{name} must be valid Unicode")
