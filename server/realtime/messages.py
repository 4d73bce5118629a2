"""The frames of the realtime protocol: what clients send, decoded, and what they get, encoded."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import orjson

from ichicore.live.wire import encode

Ref = str | int


class Subscribe(msgspec.Struct, tag="subscribe"):
    """kind decides which of the others count."""

    ref: Ref
    kind: Literal["postgres", "mongo", "broadcast"]
    table: str | None = None
    collection: str | None = None
    channel: str | None = None
    events: list[str] | None = None
    filter: dict[str, Any] | bool | None = None
    presence: bool = False
    state: msgspec.Raw = msgspec.Raw(b"null")
    own: bool = msgspec.field(name="self", default=False)


class Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    ref: Ref


class Broadcast(msgspec.Struct, tag="broadcast"):
    channel: str
    event: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"null")


class Presence(msgspec.Struct, tag="presence"):
    channel: str
    state: msgspec.Raw = msgspec.Raw(b"null")


class Ping(msgspec.Struct, tag="ping"):
    pass


class Token(msgspec.Struct, tag="token"):
    token: str


Message = Subscribe | Unsubscribe | Broadcast | Presence | Ping | Token
TYPES = {"subscribe", "unsubscribe", "broadcast", "presence", "ping", "token"}
_decoder = msgspec.json.Decoder(Message)


class BadFrameError(ValueError):
    """A frame that cannot be taken. ref: of the subscription it is about, when it names one."""

    def __init__(self, code: str, detail: str, ref: Ref | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.ref = ref


def decode(data: bytes) -> Message:
    """One frame; BadFrameError for anything that is not one."""
    try:
        plain = orjson.loads(data)  # strict, where the typed decoder passes raw parts unread
    except ValueError:
        raise BadFrameError("bad_frame", "The frame is not valid JSON.") from None
    if type(plain) is not dict:
        raise BadFrameError("bad_frame", "A frame is a JSON object.")
    ref = plain.get("ref")
    if type(ref) not in (str, int) or (type(ref) is str and len(ref) > 128):
        ref = None
    kind = plain.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise BadFrameError("unknown_type", "The frame has no known type.", ref)
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise BadFrameError("bad_frame", str(error), ref) from None
    except (msgspec.DecodeError, RecursionError):
        raise BadFrameError("bad_frame", "The frame is nested too deeply.", ref) from None


def frame(value: dict[str, Any]) -> bytes:
    """A server's frame, encoded for the wire."""
    return encode(orjson.dumps(value))


def error(code: str, detail: str, ref: Ref | None = None) -> bytes:
    value: dict[str, Any] = {"type": "error", "code": code, "detail": detail}
    if ref is not None:
        value["ref"] = ref
    return frame(value)


def closing(reason: str, code: int) -> bytes:
    return frame({"type": "closing", "reason": reason, "code": code})


PONG = frame({"type": "pong"})
