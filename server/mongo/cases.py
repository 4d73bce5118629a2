"""Tests of rules: who may do what, in a file, run without a database.

{"cases": [{"name": "…", "as": {"uid": "…"}, "operation": "find", "collection": "notes",
  "body": {…}, "expect": "allow" | "deny"},
 {"name": "…", "as": {…}, "collection": "notes", "operation": "find",
  "documents": [{"_id": 1, …}, …], "visible": [1, …]}]}
"""

from __future__ import annotations

from typing import Any, Literal

import bson
import msgspec

from ichicore.mongo import Caps
from ichicore.rules import NOTHING, Decision, Policy, RuleError, compile_policy
from server.mongo.explain import Question, decide


class CasesError(ValueError):
    """The file of cases, or the rules, cannot be read; the text says why."""


class Who(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["anon", "authenticated", "service_role"] | None = None
    uid: str | None = None
    email: str | None = None
    claims: dict[str, Any] = {}


class Case(msgspec.Struct, forbid_unknown_fields=True, rename={"who": "as"}):
    """expect: whether the operation is allowed. visible: identifiers of those `documents` that the
    operation's filter lets through."""

    name: str
    collection: str
    operation: str = "find"
    who: Who = Who()
    body: dict[str, Any] = {}
    expect: Literal["allow", "deny"] | None = None
    documents: list[dict[str, Any]] = []
    visible: list[Any] | None = None


class Cases(msgspec.Struct, forbid_unknown_fields=True):
    cases: list[Case]


def run(rules: Any, source: Any) -> list[dict[str, Any]]:
    """{name, passed, reason} of each case, in order."""
    try:
        policy = NOTHING if rules is None else compile_policy(rules)
        cases = msgspec.convert(source, Cases).cases
    except (RuleError, msgspec.ValidationError) as error:
        raise CasesError(str(error)) from None
    results = []
    for case in cases:
        reason = _run(policy, case)
        results.append({"name": case.name, "passed": not reason, "reason": reason})
    return results


def _run(policy: Policy, case: Case) -> str:
    """What is not as expected, "" when all is."""
    if case.expect is None and case.visible is None:
        return 'the case expects nothing: say "expect" or "visible"'
    who = case.who
    question = Question(
        case.operation, case.collection, who.role, who.uid, who.email, who.claims, case.body
    )
    service = who.role == "service_role"
    found = decide(policy, Caps(privileged=service), question, bypass=service)
    if found.error is not None:
        return f"the request cannot be made: {found.error}"
    if case.expect is not None and found.allow != (case.expect == "allow"):
        return f"it is {'allowed' if found.allow else 'denied'}: {found.reason or found.rule}"
    if case.visible is None:
        return ""
    seen: list[Any] = []
    if found.allow:
        decision = policy.decide(case.operation, case.collection, question.context())
        seen = [document.get("_id") for document in case.documents if _passes(decision, document)]
    if service:
        seen = [document.get("_id") for document in case.documents]
    if sorted(map(repr, seen)) != sorted(map(repr, case.visible)):
        return f"visible are {seen}, expected {case.visible}"
    return ""


def _passes(decision: Decision, document: dict[str, Any]) -> bool:
    return decision.filter is None or decision.filter.test_raw(bson.encode(document))
