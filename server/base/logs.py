"""Events as log lines on standard error: text for people or JSON for machines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

import msgspec
import orjson

from server.base.events import Event, Failed, Lost, Noted, Regained, Served

Access = Literal["off", "errors", "all"]
Format = Literal["text", "json"]
SLOW = 1.0  # seconds from which a request is worth a line even when all is well
# What lets its reader in, wherever it stands: tokens and keys (a signed upload has one in its
# path), and passwords of addresses and of connections.
TOKEN = re.compile(r"(?:ich_[a-z]+_)?eyJ[\w-]+\.[\w-]+\.[\w-]+")
PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s@/]+(?=@)|(\bpassword=)[^\s'\"]+")
LEVELS = {Served: "info", Failed: "error", Lost: "warning", Regained: "info", Noted: "info"}


def plain(text: str) -> str:
    """The text on one line: control characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def without_secrets(line: str) -> str:
    if "eyJ" in line:
        line = TOKEN.sub("(token)", line)
    if "@" in line or "password=" in line:
        line = PASSWORD.sub(r"\1\2(hidden)", line)
    return line


def text_line(event: Event, stamp: str) -> str:
    """One event for people. A traceback follows on its own lines."""
    level = LEVELS[type(event)]
    if isinstance(event, Served):
        body = (
            f"{event.project or '-'} {event.route} {event.method} {plain(event.path)} "
            f"{event.status} {event.seconds * 1000:.1f}ms {event.peer or '-'} {event.id}"
        )
        if event.error:
            body += f" {event.error}"
    elif isinstance(event, Failed):
        body = f"failed: {plain(event.doing)} {event.id}\n{event.trace.rstrip()}"
    elif isinstance(event, Lost):
        body = f"lost {event.what}: {plain(event.reason)}"
    elif isinstance(event, Regained):
        body = f"regained {event.what}"
    elif isinstance(event, Noted):
        body = f"{plain(event.what)} {plain(event.detail)}".rstrip()
    else:
        raise TypeError(f"no line for {type(event).__name__}")
    return f"{stamp} {level} {body}"


def json_line(event: Event, stamp: str) -> str:
    """One event as a JSON object on one line."""
    fields = msgspec.to_builtins(event)
    kind = fields.pop("type").lower()
    return orjson.dumps(
        {"time": stamp, "level": LEVELS[type(event)], "event": kind, **fields}
    ).decode()


class Logger:
    """A listener that writes lines. access: which requests get one; "errors" are those answered
    with 5xx and those slower than a second."""

    def __init__(
        self, access: Access = "errors", format: Format = "text", out: TextIO | None = None
    ) -> None:
        self.access = access
        self.line: Callable[[Event, str], str] = json_line if format == "json" else text_line
        self.out = out if out is not None else sys.stderr

    def __call__(self, event: Event) -> None:
        if isinstance(event, Served) and not self.wants(event.status, event.seconds):
            return
        now = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        )
        self.out.write(without_secrets(self.line(event, stamp)) + "\n")
        self.out.flush()

    def wants(self, status: int, seconds: float) -> bool:
        """Whether a request with this end gets a line; asked before an event is made."""
        if self.access == "errors":
            return status >= 500 or seconds >= SLOW
        return self.access == "all"
