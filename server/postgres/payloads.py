"""Request bodies: JSON, CSV, forms and raw bytes as the one JSON parameter of a statement."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson

from ichicore.errors import ApiError
from ichicore.http import accept
from ichicore.http.target import decode
from ichicore.rest import csvbody, payload

RAW = ("text/plain", "text/xml", "application/octet-stream")
LARGE = 128 << 10  # bytes of a body that is looked at beside the loop
MOST_PAIRS = 10_000  # of a form


@dataclass(frozen=True, slots=True)
class Given:
    """A body as the planner and the executor need it.

    names: the columns or arguments it gives, sorted. is_object: one object, not an array. body:
    JSON, or the raw bytes for a function's single argument. arguments: (name, value, -1) of a form
    sent to a function, repeated ones included. media: the body's media type.
    """

    names: tuple[str, ...] = ()
    is_object: bool = True
    body: bytes | None = None
    arguments: tuple[tuple[str, str, int], ...] | None = None
    media: str = "application/json"


NOTHING = Given()


async def looked_at(body: bytes, content_type: str | None) -> Given | ApiError | None:
    """What a large body is, found while the loop serves others: for `read`, which finds it in
    others by itself."""
    try:
        kind = "application/json" if content_type is None else accept.media(content_type).text
        look = {"application/json": _plain_json, "text/csv": _csv}.get(kind)
        if look is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(None, look, body)
    except ApiError as error:
        return error


def read(
    body: bytes, content_type: str | None, columns: tuple[str, ...] | None, *, rpc: bool,
    looked: Given | ApiError | None = None,
) -> Given:  # fmt: skip
    """The body of a write or of a POST to a function.

    columns: of the columns parameter; with them JSON is not looked into. looked: by `looked_at`.
    Raises ApiError 400 PGRST102.
    """
    kind = "application/json" if content_type is None else accept.media(content_type).text
    if kind == "application/json" and columns is not None:
        return Given(tuple(sorted(columns)), body.lstrip()[:1] == b"{", body)
    if looked is not None:
        if isinstance(looked, ApiError):
            raise looked
        return looked
    if kind == "application/json":
        return Given((), True, b"{}") if rpc and not body else _plain_json(body)
    if kind == "text/csv":
        return _csv(body)
    if kind == "application/x-www-form-urlencoded":
        return _form(body, rpc)
    if rpc and kind in RAW:
        return Given((), True, body, None, kind)
    raise _refuse(f"Content-Type not acceptable: {kind}")


def _refuse(message: str) -> ApiError:
    return ApiError(400, "PGRST102", message)


def _plain_json(body: bytes) -> Given:
    found = payload.scan(body)
    if found is None:
        raise _refuse("Empty or invalid json")
    kind, keys, uniform = found
    if kind == "scalar":
        return Given((), False, b"[]")
    if not uniform:
        raise _refuse("All object keys must match")
    return Given(tuple(sorted(keys)), kind == "object", body)


def _csv(body: bytes) -> Given:
    """The header line names the columns, NULL is null, every other value a string."""
    try:
        names, found = csvbody.to_json(body)
    except ValueError as error:
        raise _refuse(str(error)) from None
    return Given(tuple(sorted(names)), False, found, None, "text/csv")


def _form(body: bytes, rpc: bool) -> Given:
    pairs = []
    if body.count(b"&") + body.count(b";") > MOST_PAIRS:
        raise _refuse(f"A form has at most {MOST_PAIRS} values")
    for piece in body.replace(b";", b"&").split(b"&"):
        name, equals, value = piece.partition(b"=")
        if name or equals:
            try:
                pairs.append((decode(name).decode(), decode(value).decode()))
            except UnicodeDecodeError:
                raise _refuse("The form is not UTF-8") from None
    values = dict(pairs)
    media = "application/x-www-form-urlencoded"
    names = tuple(sorted(values))
    if rpc:
        arguments = tuple((name, value, -1) for name, value in pairs)
        return Given(names, True, orjson.dumps(values), arguments, media)
    return Given(names, True, orjson.dumps(values))
