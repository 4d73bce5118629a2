"""What is uploaded of a function: which files, under which names, and what of its configuration."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import orjson

from ichicore.errors import ApiError

MAX_FILES = 500
MAX_SOURCE = 12 << 20  # bytes of all sources
ENTRYPOINTS = ("index.ts", "index.tsx", "index.js", "main.ts", "mod.ts")
SHARED = "../_shared/"  # what begins the names of files that several functions have
CONFIG_KEPT = ("imports", "scopes", "compilerOptions")
PATH = re.compile(r"[\w@+.()\[\]-]+(?:/[\w@+.()\[\]-]+)*\Z")


class Sources:
    """What was uploaded. files: path to text or bytes; paths are relative and stay inside."""

    def __init__(self, files: dict[str, Any], entrypoint: str | None) -> None:
        if not files or len(files) > MAX_FILES:
            raise refused(f"A function has 1 to {MAX_FILES} files.")
        self.files: dict[str, bytes] = {}
        size = 0
        for name, content in files.items():
            check_path(name)
            self.files[name] = raw = _content(name, content)
            size += len(raw)
        if size > MAX_SOURCE:
            raise ApiError(413, "payload_too_large", f"Sources have at most {MAX_SOURCE} bytes.")
        self.entrypoint = entrypoint or self._default()
        if self.entrypoint not in self.files:
            raise refused(f"There is no file {self.entrypoint[:200]!r} to start with.")

    def _default(self) -> str:
        for name in ENTRYPOINTS:
            if name in self.files:
                return name
        raise refused(f"Name the entrypoint; none of {', '.join(ENTRYPOINTS)} is there.")

    def config(self) -> dict[str, Any]:
        """The parts of deno.json that matter to a build; the rest could reach outside."""
        for name in ("deno.json", "deno.jsonc"):
            raw = self.files.pop(name, None)
            if raw is None:
                continue
            try:
                found = orjson.loads(raw if name == "deno.json" else without_comments(raw))
            except ValueError:
                raise refused(f"{name} is not valid JSON.") from None
            if not isinstance(found, dict):
                raise refused(f"{name} is not an object.")
            for key in CONFIG_KEPT:
                if not isinstance(found.get(key, {}), dict):
                    raise refused(f"{name}: {key} is an object.")
            return {key: found[key] for key in CONFIG_KEPT if key in found}
        return {}


def check_path(name: str) -> None:
    name = name.removeprefix(SHARED)
    parts = name.split("/")
    if not PATH.match(name) or len(name) > 400 or ".." in parts or "." in parts:
        raise refused(f"{name[:200]!r} is no plain relative path.")
    if any(part in (".npmrc", "package.json", "package-lock.json", ".ichibase") for part in parts):
        raise refused(f"{name[:200]!r} is not used: put dependencies into deno.json or imports.")


def _content(name: str, content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if isinstance(content, dict) and isinstance(content.get("base64"), str):
        try:
            return base64.b64decode(content["base64"], validate=True)
        except binascii.Error:
            pass
    raise refused(f'{name[:200]!r}: the content is text, or {{"base64": ...}}.')


def without_comments(raw: bytes) -> bytes:
    """JSONC to JSON: comments and trailing commas outside strings are taken out."""
    text = raw.decode("utf-8", "replace")
    token = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    bare = token.sub(lambda m: m[0] if m[0].startswith('"') else " ", text)
    comma = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])')
    return comma.sub(lambda m: m[0] if m[0].startswith('"') else "", bare).encode()


def refused(text: str) -> ApiError:
    return ApiError(400, "build_failed", text)
