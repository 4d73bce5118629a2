"""The section `realtime` of a project's settings."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from ichicore.rules import RuleError
from server.realtime import rules

TABLE = re.compile(r"[^.\x00]{1,63}(\.[^.\x00]{1,63})?")
COLLECTION = re.compile(r"[^$\x00]{1,120}")
MAX_RULES = 1_000
Expression = bool | dict[str, Any]


class RealtimeSettingsError(ValueError):
    """The section cannot be used; the text names the member and what is wrong with it."""


class Fields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which fields receivers get: only those of `allow`, or all but those of `deny`."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """rule: who receives a changed row, a match expression over it and the receiver's identity;
    true is everybody, false (the default) only the secret key. events: kinds of change that are
    told."""

    enabled: bool = True
    rule: Expression = False
    events: tuple[Literal["INSERT", "UPDATE", "DELETE"], ...] = ("INSERT", "UPDATE", "DELETE")
    fields: Fields | None = None


class Collection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As Table."""

    enabled: bool = True
    rule: Expression = False
    events: tuple[Literal["insert", "update", "delete"], ...] = ("insert", "update", "delete")
    fields: Fields | None = None


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """subscribe, send, presence: true, false or a match expression over the identity. presence also
    needs subscribe."""

    subscribe: Expression = False
    send: Expression = False
    presence: Expression = False


class RealtimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """tables: by name, `public` when without a schema. channels: by pattern, where `*` stands for
    any characters and ${auth.uid} for a value of the identity; the longest pattern that fits
    decides. client_broadcast: "off" refuses what clients send whatever the rules say. documents:
    whether changed documents are told by the node as it writes them, or by the database's change
    stream, which also tells of others' writes.
    token_grace_seconds: how long a socket outlives its token. presence_members: of one channel.
    buffer_bytes: what may wait for a client that reads slowly. Numbers of a connection:
    subscriptions, frames_per_second, payload_bytes and state_bytes."""

    tables: dict[str, Table] = {}
    collections: dict[str, Collection] = {}
    channels: dict[str, ChannelRule] = {}
    client_broadcast: Literal["off", "rules"] = "rules"
    documents: Literal["gateway", "stream"] = "gateway"
    token_grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 300
    presence_members: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    subscriptions: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    frames_per_second: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 20
    payload_bytes: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 32_768
    state_bytes: Annotated[int, msgspec.Meta(ge=2, le=65_536)] = 4_096

    def __post_init__(self) -> None:
        try:
            _check(self)
        except RuleError as error:
            raise RealtimeSettingsError(str(error)) from None


def table_name(name: str) -> str:
    """The name with its schema."""
    return name if "." in name else f"public.{name}"


def parse(section: dict[str, Any]) -> RealtimeSettings:
    """Plain JSON object to settings; raises RealtimeSettingsError."""
    try:
        return msgspec.convert(section, RealtimeSettings)
    except msgspec.ValidationError as error:
        raise RealtimeSettingsError(str(error)) from None


def _check(settings: RealtimeSettings) -> None:
    total = len(settings.tables) + len(settings.collections) + len(settings.channels)
    if total > MAX_RULES:
        raise RealtimeSettingsError(f"more than {MAX_RULES} rules")
    seen: set[str] = set()
    for name, table in settings.tables.items():
        path = f"tables.{name}"
        if not TABLE.fullmatch(name):
            raise RealtimeSettingsError(f"{path}: write schema.table")
        if table_name(name) in seen:
            raise RealtimeSettingsError(f"{path}: {table_name(name)} is there twice")
        seen.add(table_name(name))
        rules.compile_row_rule(table.rule, f"{path}.rule", loose=True)
        _check_fields(table.fields, path)
    for name, collection in settings.collections.items():
        path = f"collections.{name}"
        if not COLLECTION.fullmatch(name):
            raise RealtimeSettingsError(f"{path}: not the name of a collection")
        rules.compile_row_rule(collection.rule, f"{path}.rule", loose=False)
        _check_fields(collection.fields, path)
    for pattern, channel in settings.channels.items():
        path = f"channels.{pattern}"
        rules.compile_pattern(pattern, path)
        for member in ("subscribe", "send", "presence"):
            rules.compile_identity_rule(getattr(channel, member), f"{path}.{member}")


def _check_fields(fields: Fields | None, path: str) -> None:
    if fields is None:
        return
    if bool(fields.allow) == bool(fields.deny):
        raise RealtimeSettingsError(f"{path}.fields: give allow or deny")
    for name in (*fields.allow, *fields.deny):
        if not name or name.startswith("$") or ".." in name:
            raise RealtimeSettingsError(f"{path}.fields: {name!r} is no path")
