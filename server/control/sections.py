"""The sections of a project's settings, typed; unknown keys are refused."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

import msgspec

from ichicore.errors import ApiError

SECTIONS = ("cors", "postgres", "auth", "mongo", "realtime", "storage", "functions")
ORIGIN = re.compile(
    r"\*|[a-z][a-z0-9+.-]*://(?:(?:\*|[a-z0-9-]+)(?:\.(?:\*|[a-z0-9-]+))*|\[[0-9a-f:.]+\])"
    r"(?::(?:\d{1,5}|\*))?",
    re.IGNORECASE,
)


class Cors(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """origins: scheme://host[:port] each; * stands for one label, a port, or alone for all."""

    origins: list[str] = []


class Postgres(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What /postgres serves. max_rows: most rows of one answer, None for all. pre_request:
    schema.function called before each request. statement_timeout_ms: None takes the node's."""

    schemas: tuple[str, ...] = ("public",)
    extra_search_path: tuple[str, ...] = ("public",)
    max_rows: int | None = None
    aggregates_enabled: bool = False
    plan_enabled: bool = False
    pre_request: str | None = None
    root_spec: str | None = None
    openapi_mode: str = "follow-privileges"
    statement_timeout_ms: int | None = None


# Sections that belong to a service are typed by it: section to (module, struct).
OWNED = {
    "auth": ("server.auth.settings", "AuthSettings"),
    "mongo": ("server.mongo.settings", "MongoSettings"),
    "storage": ("server.storage.settings", "StorageSettings"),
    "realtime": ("server.realtime.settings", "RealtimeSettings"),
    "functions": ("server.functions.settings", "FunctionsSettings"),
}


class Empty(msgspec.Struct, forbid_unknown_fields=True):
    """A section whose service this build does not have: it takes no settings."""


def shape(section: str) -> type[Any]:
    """The struct of a section; ApiError 404 for a name that is none."""
    if section == "cors":
        return Cors
    if section == "postgres":
        return Postgres
    if section not in SECTIONS:
        raise ApiError(
            404, "unknown_section", f"The sections are {', '.join(SECTIONS)}; not {section!r}."
        )
    module, name = OWNED[section]
    if importlib.util.find_spec(module) is None:
        return Empty
    return getattr(importlib.import_module(module), name)


def check(section: str, body: bytes) -> dict[str, Any]:
    """The section's value as plain data; ApiError 400 invalid_settings says what is wrong."""
    try:
        value = msgspec.json.decode(body, type=shape(section))
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_settings", f"{section}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "bad_request", "The body is not valid JSON.") from None
    if isinstance(value, Cors):
        for origin in value.origins:
            if not ORIGIN.fullmatch(origin):
                raise ApiError(
                    400, "invalid_settings",
                    f"cors: {origin[:100]!r} is no origin: use scheme://host[:port] without a path",
                )  # fmt: skip
    if isinstance(value, Postgres):
        _check_postgres(value)
    plain = msgspec.to_builtins(value)
    return plain if isinstance(plain, dict) else {}


def _check_postgres(value: Postgres) -> None:
    problem = None
    if not value.schemas:
        problem = "schemas needs at least one schema"
    elif {"auth", "storage", "realtime", "ichibase", "pg_catalog", "information_schema"} & set(
        value.schemas
    ):
        problem = "schemas cannot expose the server's own schemas"
    elif value.max_rows is not None and value.max_rows < 1:
        problem = "max_rows must be at least 1"
    elif value.openapi_mode not in {"follow-privileges", "ignore-privileges", "disabled"}:
        problem = "openapi_mode is follow-privileges, ignore-privileges or disabled"
    elif value.statement_timeout_ms is not None and value.statement_timeout_ms < 1:
        problem = "statement_timeout_ms must be at least 1"
    if problem is not None:
        raise ApiError(400, "invalid_settings", f"postgres: {problem}")
