"""What the rules say of a request, without running it."""

from __future__ import annotations

import time
from typing import Any, Literal

import bson
import msgspec
import orjson
from bson import json_util

from ichicore.errors import ApiError
from ichicore.mongo import Caps, Plan, apply, check_collection, parse
from ichicore.rules import ALLOW, NOTHING, Bound, Context, Decision, FieldRule, Policy
from ichicore.rules import compile_policy as compiled
from server.mongo.rulebook import Book

BYTES = ("filter", "projection", "sort", "update", "replacement")
FUNCTION = "the project's function decides (mode function), which is not called here"


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """A request that somebody might make. role: that of uid, or anon, when left out. body: as the
    operation takes it."""

    operation: str
    collection: str
    role: Literal["anon", "authenticated", "service_role"] | None = None
    uid: str | None = None
    email: str | None = None
    claims: dict[str, Any] = {}
    body: dict[str, Any] = {}

    def context(self) -> Context:
        role = self.role or ("authenticated" if self.uid else "anon")
        claims = {"role": role, **self.claims}
        if self.uid is not None:
            claims["sub"] = self.uid
        if self.email is not None:
            claims["email"] = self.email
        return Context(role, self.uid, self.email, claims, time.time())


class Explained(msgspec.Struct, kw_only=True):
    """error: why the request is refused before any rule is asked. rule: path of the one that
    decided. filter, set, check: what the rule adds, with the identity's values. commands: what
    would be sent to the database, one for each operation of a batch."""

    allow: bool = False
    reason: str = ""
    rule: str | None = None
    filter: Any = None
    set: Any = None
    check: Any = None
    read_fields: Any = None
    write_fields: Any = None
    commands: list[dict[str, Any]] = []
    error: str | None = None


def explain(book: Book, question: Question) -> Explained:
    """The decision of the rules in force."""
    if book.by_function:
        return Explained(error=FUNCTION)
    service = question.role == "service_role"
    caps = Caps(book.max_docs, min(100, book.max_docs), book.project.limits.document_bytes, service)
    return decide(book.policy, caps, question, bypass=service and not book.enforce_service_role)


def offline(rules: Any, question: dict[str, Any]) -> Any:
    """The decision of rules that need not be in force, as plain data."""
    policy = NOTHING if rules is None else compiled(rules)
    asked = msgspec.convert(question, Question)
    service = asked.role == "service_role"
    return msgspec.to_builtins(decide(policy, Caps(privileged=service), asked, bypass=service))


def decide(policy: Policy, caps: Caps, question: Question, *, bypass: bool) -> Explained:
    """bypass: the rules do not bind this identity."""
    try:
        check_collection(question.collection)
        command = parse(question.operation, orjson.dumps(question.body), caps)
    except ApiError as error:
        return Explained(error=f"{error.message} [{error.code}]")
    who = question.context()
    found: Any
    if bypass:
        found = ALLOW
    elif command.operation == "bulkWrite":
        found = policy.decide_bulk(command.pairs, question.collection, who)
    else:
        upsert = command.parts[0].upsert
        found = policy.decide(command.operation, question.collection, who, upsert=upsert)
    first: Decision = next(iter(found.values())) if isinstance(found, dict) else found
    told = Explained(
        reason=first.reason if not bypass else "the secret key is not bound by rules",
        rule=first.rule or None, filter=_bound(first.filter), set=_plain(first.set) or None,
        check=_bound(first.check), read_fields=_fields(first.read),
        write_fields=_fields(first.write),
    )  # fmt: skip
    try:
        told.commands = [shown(plan) for plan in apply(command, found)]
        told.allow = True
    except ApiError as error:
        told.reason = error.message
    return told


def shown(plan: Plan) -> dict[str, Any]:
    """What a plan sends, in relaxed extended JSON."""
    command: dict[str, Any] = {"operation": plan.operation}
    for name in BYTES:
        value = getattr(plan, name)
        if value is not None and (name != "filter" or plan.operation not in _WITHOUT_FILTER):
            command[name] = _plain(bson.decode(value))
    for name in ("pipeline", "documents", "array_filters"):
        if values := getattr(plan, name):
            command[name] = [_plain(bson.decode(value)) for value in values]
    if plan.limit:
        command["limit"] = plan.limit
    if plan.field:
        command["field"] = plan.field
    if plan.upsert:
        command["upsert"] = True
    if plan.check is not None:
        command["checked_afterwards"] = _bound(plan.check)
    return command


_WITHOUT_FILTER = ("insertOne", "insertMany", "aggregate")


def _bound(bound: Bound | None) -> Any:
    return None if bound is None else _plain(bound.filter)


def _fields(rule: FieldRule | None) -> Any:
    if rule is None:
        return None
    return {"allow": list(rule.allow)} if rule.allow else {"deny": list(rule.deny)}


def _plain(value: Any) -> Any:
    options = json_util.RELAXED_JSON_OPTIONS
    return orjson.loads(json_util.dumps(value, json_options=options))
