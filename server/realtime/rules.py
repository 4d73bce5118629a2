"""A project's realtime rules, compiled: who may receive, subscribe, send and be present."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import orjson

from ichicore.live.hub import event_bits
from ichicore.rules import Bound, Context, FieldRule, Match, RuleError, compile_match
from server.base.project import Identity

if TYPE_CHECKING:
    from server.realtime.settings import Collection, RealtimeSettings, Table

ROOTS = ("auth", "record", "old")
CHANNEL = re.compile(r"[A-Za-z0-9_:.\-]{1,128}")
PATTERN = re.compile(
    r"(?:[A-Za-z0-9_:.\-*]|\$\{auth\.(?:uid|role|email|claims\.[A-Za-z0-9_.\-]+)\})+"
)
VARIABLE = re.compile(r"\$\{(auth\.[^}]+)\}")
MAX_PATTERN = 256
MAX_STARS = 3  # each multiplies the time that a name takes
USER = "user:"  # channels of one user: only that user subscribes, only the server sends


def compile_row_rule(rule: object, path: str, *, loose: bool) -> Match:
    """A rule over a row or document; RuleError."""
    return compile_match(rule, path, roots=ROOTS, loose=loose)


def compile_identity_rule(rule: object, path: str) -> Match:
    """A rule over nothing but the identity; RuleError."""
    match = compile_match(rule, path, roots=("auth",), default=None)
    if match.paths or match.uses_old:
        raise RuleError(path, "only the identity can be asked for here")
    return match


def compile_pattern(pattern: str, path: str) -> list[str]:
    """A channel pattern as its parts, texts and names of variables by turns; RuleError."""
    if not PATTERN.fullmatch(pattern) or len(pattern) > MAX_PATTERN:
        raise RuleError(
            path, "a pattern has letters, digits, _ : . - * and ${auth.uid} or another variable"
        )
    if pattern.count("*") > MAX_STARS:
        raise RuleError(path, f"a pattern has at most {MAX_STARS} stars")
    return VARIABLE.split(pattern)


def context_of(identity: Identity, *, claims: bool = True) -> Context:
    """The identity as rules see it. The times of its token are left out: sockets of one user then
    share their decisions."""
    kept = {}
    if claims:
        kept = {k: v for k, v in identity.claims.items() if k not in ("iat", "exp")}
    email = identity.claims.get("email")
    return Context(identity.role, identity.uid, email if isinstance(email, str) else None, kept)


class Timed:
    """A rule that asks for the time, decided anew for every change."""

    def __init__(self, match: Match, identity: Identity) -> None:
        self.match = match
        self.identity = identity

    def test(
        self, document: dict[str, Any], old: dict[str, Any] | None = None, partial: int = 0
    ) -> bool:
        base = context_of(self.identity)
        now = Context(base.role, base.uid, base.email, base.claims, time.time())
        return self.match.test(document, now, old, None, partial)


class Audience:
    """What one identity sees of a source. rule: None for no restriction. key: equal for audiences
    that are the same. terms: see ichicore.live.hub.Source.add."""

    __slots__ = ("key", "never", "rule", "terms", "whole")

    def __init__(
        self,
        rule: Bound | Timed | None,
        key: object,
        terms: tuple[tuple[str, Any], ...] | None = None,
        *,
        never: bool = False,
        whole: bool = False,
    ) -> None:
        self.rule = rule
        self.key = key
        self.terms = terms
        self.never = never
        self.whole = whole


ALL = Audience(None, "all")
WHOLE = Audience(None, "whole", whole=True)
NOBODY = Audience(None, "nobody", never=True)


class SourceRule:
    """The rule of one table or collection."""

    def __init__(self, kind: str, name: str, given: Table | Collection) -> None:
        self.kind = kind
        self.name = name
        self.loose = kind == "postgres"
        place = "tables" if kind == "postgres" else "collections"
        self.match = compile_row_rule(given.rule, f"{place}.{name}.rule", loose=self.loose)
        self.events = event_bits(given.events)
        fields = given.fields
        self.fields = None if fields is None else FieldRule(fields.allow, fields.deny)
        source = orjson.dumps(given.rule)
        self.asks_claims = b"claims" in source
        self.asks_time = "now" in self.match.variables
        self.constant = not self.match.paths and not self.match.uses_old and not self.asks_time
        self.mark = object()  # keys of a Bound mean something among those of one expression only

    def audience(self, identity: Identity) -> Audience:
        """What this identity sees."""
        if identity.role == "service_role":
            return WHOLE
        context = context_of(identity, claims=self.asks_claims)
        if self.asks_time:
            return Audience(Timed(self.match, identity), object(), None)
        bound = self.match.bind(context)
        if bound is None:
            return NOBODY
        if self.constant:
            return ALL if bound.test({}) else NOBODY
        return Audience(bound, (self.mark, bound.key), self._terms(context))

    def _terms(self, context: Context) -> tuple[tuple[str, Any], ...] | None:
        found = self.match.index()
        if not found:
            return None
        terms = []
        for path, variable in found:
            value = context.value(variable)
            if value is None or path.startswith("old."):
                return None
            terms.append((path, value))
        return tuple(terms)


class ChannelRules:
    """The rules of all channels whose name a pattern fits."""

    def __init__(self, pattern: str, given: Any) -> None:
        path = f"channels.{pattern}"
        self.length = len(pattern)
        self.parts = compile_pattern(pattern, path)
        self.simple = self._regex(None) if len(self.parts) == 1 else None
        self.subscribe = compile_identity_rule(given.subscribe, f"{path}.subscribe")
        self.send = compile_identity_rule(given.send, f"{path}.send")
        self.presence = compile_identity_rule(given.presence, f"{path}.presence")

    def fits(self, name: str, context: Context) -> bool:
        regex = self.simple or self._regex(context)
        return regex is not None and regex.fullmatch(name) is not None

    def _regex(self, context: Context | None) -> re.Pattern[str] | None:
        text = ""
        for number, part in enumerate(self.parts):
            if number % 2:
                value = None if context is None else context.value(part)
                if not isinstance(value, str) or not value:
                    return None
                text += re.escape(value)
            else:
                text += ".*".join(map(re.escape, part.split("*")))
        return re.compile(text)


class ProjectRules:
    """All rules of one project at one revision of its settings."""

    def __init__(self, settings: RealtimeSettings) -> None:
        from server.realtime.settings import table_name

        self.settings = settings
        self.tables = {
            table_name(name): SourceRule("postgres", table_name(name), table)
            for name, table in settings.tables.items()
            if table.enabled
        }
        self.collections = {
            name: SourceRule("mongo", name, collection)
            for name, collection in settings.collections.items()
            if collection.enabled
        }
        self.channels = sorted(
            (ChannelRules(pattern, rule) for pattern, rule in settings.channels.items()),
            key=lambda rules: -rules.length,
        )

    def source(self, kind: str, name: str) -> SourceRule | None:
        return (self.tables if kind == "postgres" else self.collections).get(name)

    def channel(self, name: str, context: Context) -> ChannelRules | None:
        """The rules that decide about a channel."""
        for rules in self.channels:
            if rules.fits(name, context):
                return rules
        return None

    def may(self, action: str, name: str, identity: Identity) -> bool:
        """Whether an identity may subscribe to a channel, send to it or be present there."""
        if identity.role == "service_role":
            return True
        if name.startswith(USER):
            if action == "send":
                return False
            if action == "subscribe" and identity.uid and name == USER + identity.uid:
                return True
        context = context_of(identity)
        rules = self.channel(name, context)
        if rules is None:
            return False
        if name.startswith(USER) and action == "subscribe":
            return False  # other users' channels, whatever the patterns say
        match: Match = getattr(rules, action)
        if "now" in match.variables:
            context = Context(context.role, context.uid, context.email, context.claims, time.time())
        return match.test({}, context)


def client_filter(given: object, *, loose: bool) -> Match:
    """A filter that a client sent; RuleError."""
    return compile_match(given, "filter", interpolate=False, loose=loose)


def filter_terms(bound: Bound) -> tuple[tuple[str, Any], ...] | None:
    """One equality of a client's filter, by which it can be found."""
    for path, value in bound.equality_terms().items():
        if isinstance(value, str | int | float) and not path.startswith("old."):
            return ((path, value),)
    return None
