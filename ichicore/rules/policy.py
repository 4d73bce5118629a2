"""Policies: the rules of a project, and what they decide for an operation."""

from __future__ import annotations

import json
import re
from typing import Any

from ichicore.rules.compile import compile_into, compile_match, compile_values
from ichicore.rules.context import Context
from ichicore.rules.errors import RuleError
from ichicore.rules.fields import FieldRule
from ichicore.rules.match import Bound, Match

READS = ("find", "findOne", "count", "distinct", "aggregate")
INSERTS = ("insertOne", "insertMany")
UPDATES = ("updateOne", "updateMany", "replaceOne", "findOneAndUpdate")
DELETES = ("deleteOne", "deleteMany", "findOneAndDelete")
BULK = "bulkWrite"
OPERATIONS = (*READS, *INSERTS, *UPDATES, *DELETES, BULK)
GROUPS = {"read": READS, "insert": INSERTS, "update": UPDATES, "delete": DELETES}
GROUP_OF = {name: group for group, members in GROUPS.items() for name in members}
ACTIONS = (*OPERATIONS, *GROUPS, "write")
COLLECTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,119}")
MEMBERS = ("when", "filter", "set", "check", "read_fields", "write_fields")
HIDING = "hiding"  # key for the rules of the first read that hides fields
MOST_FIELDS = 500
NO_RULE = "no rule allows this operation"
NO_WHEN = "no rule holds for this identity"
UNRESOLVED = "the rule needs an identity that this request does not have"


class Decision:
    """What a policy says of one operation by one identity.

    filter: to be ANDed to the caller's, None for no restriction. set: dotted paths with the values
    that overwrite the caller's ones. check: what the resulting document must satisfy, None for
    anything; check_is_filter: it is the filter itself. read, write: fields, None for all. insert:
    of an upsert, the decision on the insertion. reason: of a refusal, for the caller to read. rule:
    path of the rule that decided, such as "rules.collections.notes.read[1]", "" for none.
    """

    __slots__ = (
        "allow",
        "check",
        "check_is_filter",
        "filter",
        "insert",
        "read",
        "reason",
        "rule",
        "set",
        "write",
    )

    def __init__(
        self,
        allow: bool,
        reason: str = "",
        *,
        filter: Bound | None = None,
        set: dict[str, Any] | None = None,
        check: Bound | None = None,
        check_is_filter: bool = False,
        read: FieldRule | None = None,
        write: FieldRule | None = None,
        insert: Decision | None = None,
        rule: str = "",
    ) -> None:
        self.allow = allow
        self.reason = reason
        self.filter = filter
        self.set = {} if set is None else set
        self.check = check
        self.check_is_filter = check_is_filter
        self.read = read
        self.write = write
        self.insert = insert
        self.rule = rule

    def __repr__(self) -> str:
        if not self.allow:
            return f"Decision(False, {self.reason!r})"
        return f"Decision(True, filter={self.filter!r}, set={self.set!r}, check={self.check!r})"


ALLOW = Decision(True)


class Rule:
    """One compiled rule; `set` is kept as an equality expression so that it binds like one."""

    __slots__ = ("check", "filter", "path", "read", "set", "verdict", "when", "write")

    def __init__(self, path: str) -> None:
        self.path = path
        self.verdict = True
        self.when: Match | None = None
        self.filter: Match | None = None
        self.set: Match | None = None
        self.check: Match | None = None
        self.read: FieldRule | None = None
        self.write: FieldRule | None = None

    def decide(self, kind: str, identity: Context) -> Decision:
        """kind: read, insert, update or delete."""
        if not self.verdict:
            return Decision(False, NO_RULE, rule=self.path)
        bound = check = None
        values: dict[str, Any] | None = None
        check_is_filter = False
        if self.filter is not None and kind != "insert":
            bound = self.filter.bind(identity)
            if bound is None:
                return Decision(False, UNRESOLVED, rule=self.path)
        if kind in ("insert", "update"):
            if self.set is not None:
                stamped = self.set.bind(identity)
                if stamped is None:
                    return Decision(False, UNRESOLVED, rule=self.path)
                values = stamped.filter
            if self.check is not None:
                check = self.check.bind(identity)
                if check is None:
                    return Decision(False, UNRESOLVED, rule=self.path)
            elif kind == "update" and bound is not None:
                check, check_is_filter = bound, True
        return Decision(
            True,
            filter=bound,
            set=values,
            check=check,
            check_is_filter=check_is_filter,
            read=self.read,
            write=self.write,
            rule=self.path,
        )


class Policy:
    """Compiled rules of one project; immutable. version: of the grammar. rules: how many."""

    __slots__ = ("_entries", "_other", "collections", "rules", "version")

    def __init__(
        self,
        version: int,
        entries: dict[str, dict[str, tuple[Rule, ...]]],
        other: dict[str, tuple[Rule, ...]] | None,
        rules: int,
    ) -> None:
        self.version = version
        self.rules = rules
        self.collections = tuple(entries)
        self._entries = entries
        self._other = other

    def decide(
        self, operation: str, collection: str, identity: Context, *, upsert: bool = False
    ) -> Decision:
        """The decision on one operation (a name of the document API). An upsert needs the right to
        insert as well. What cannot be decided is refused."""
        actions = self._entries.get(collection, self._other)
        if actions is None:
            return Decision(False, NO_RULE)
        decision = self._verdict(actions, operation, operation, collection, identity)
        if decision.allow and upsert:
            insert = self._verdict(actions, "insertOne", operation, collection, identity)
            if not insert.allow:
                return Decision(False, f"an upsert inserts: {insert.reason}", rule=insert.rule)
            decision.insert = insert
        return decision

    def decide_bulk(
        self, operations: tuple[tuple[str, bool], ...], collection: str, identity: Context
    ) -> dict[tuple[str, bool], Decision] | Decision:
        """Of a batch with these (operation, upsert) pairs: a decision for each, or the refusal of
        the whole batch."""
        actions = self._entries.get(collection, self._other)
        if actions is None:
            return Decision(False, NO_RULE)
        whole = BULK in actions
        found: dict[tuple[str, bool], Decision] = {}
        for pair in operations:
            operation, upsert = pair
            if pair in found:
                continue
            action = BULK if whole else operation
            decision = self._verdict(actions, action, operation, collection, identity)
            if decision.allow and upsert:
                insert = self._verdict(
                    actions, BULK if whole else "insertOne", "insertOne", collection, identity
                )
                if not insert.allow:
                    decision = Decision(False, f"an upsert inserts: {insert.reason}")
                decision.insert = insert
            if not decision.allow:
                return decision
            found[pair] = decision
        return found

    def allow_none(self) -> bool:
        """Whether it refuses everything."""
        return not self._entries and self._other is None

    def _verdict(
        self,
        actions: dict[str, tuple[Rule, ...]],
        action: str,
        operation: str,
        collection: str,
        identity: Context,
    ) -> Decision:
        rules = actions.get(action)
        if rules is None:
            return Decision(False, NO_RULE)
        kind = GROUP_OF.get(action) or GROUP_OF.get(operation)
        if kind is None:
            return Decision(False, NO_RULE)
        request = {"operation": operation, "collection": collection}
        for rule in rules:
            when = rule.when
            if when is None or when.test(None, identity, None, request):
                decision = rule.decide(kind, identity)
                if kind != "read" and decision.read is None and HIDING in actions:
                    decision.read = _hidden(actions[HIDING], identity, request)
                return decision
        return Decision(False, NO_WHEN)


def _hidden(
    rules: tuple[Rule, ...], identity: Context, request: dict[str, str]
) -> FieldRule | None:
    """What the rule for reading hides from an identity: a write must not tell of it either."""
    for rule in rules:
        if rule.when is None or rule.when.test(None, identity, None, request):
            return rule.read
    return None


NOTHING = Policy(1, {}, None, 0)


def compile_policy(rules: bytes | str | dict[str, Any], path: str = "rules") -> Policy:
    """The policy of a project from its rules, JSON or decoded; RuleError with every mistake."""
    errors: list[tuple[str, str]] = []
    if isinstance(rules, bytes | str):
        rules = _decode(rules, path)
    if not isinstance(rules, dict):
        raise RuleError(path, "an object is expected")
    for key in rules:
        if key not in ("version", "collections"):
            errors.append((f"{path}.{key}", "unknown member; known are version and collections"))
    version = rules.get("version", 1)
    if type(version) is not int or version != 1:
        errors.append((f"{path}.version", "1 is the only version"))
    collections = rules.get("collections", {})
    entries: dict[str, dict[str, tuple[Rule, ...]]] = {}
    count = 0
    if not isinstance(collections, dict):
        errors.append((f"{path}.collections", "an object is expected"))
        collections = {}
    for name, entry in collections.items():
        where = f"{path}.collections.{name}"
        if name != "*" and (not COLLECTION.fullmatch(name) or name.startswith("system.")):
            errors.append((where, "not a name of a collection"))
            continue
        entries[name], found = _entry(errors, entry, where)
        count += found
    if errors:
        raise RuleError.of(errors)
    other = entries.pop("*", None)
    return Policy(1, entries, other, count)


def _decode(text: bytes | str, path: str) -> Any:
    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in members:
            if key in found:
                raise RuleError(path, f"the member {key!r} appears twice in one object")
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise RuleError(path, f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RuleError:
        raise
    except (ValueError, RecursionError) as error:
        raise RuleError(path, f"not JSON: {error}") from None


def _entry(
    errors: list[tuple[str, str]], entry: Any, where: str
) -> tuple[dict[str, tuple[Rule, ...]], int]:
    """Of every operation that has a verdict, its rules; and how many rules there are."""
    if not isinstance(entry, dict):
        errors.append((where, "an object of actions is expected"))
        return {}, 0
    given: dict[str, tuple[Rule, ...]] = {}
    for action, verdict in entry.items():
        inner = f"{where}.{action}"
        if action not in ACTIONS:
            errors.append((inner, f"unknown action; known are {', '.join(ACTIONS)}"))
            continue
        given[action] = _verdict(errors, verdict, inner, action)
    actions: dict[str, tuple[Rule, ...]] = {}
    for operation in OPERATIONS:
        group = GROUP_OF.get(operation)
        for action in (operation, group, "write" if group not in (None, "read") else None):
            if action in given:
                actions[operation] = given[action]
                break
    for operation in ("findOne", "find", "aggregate", "distinct", "count"):
        if any(rule.read is not None for rule in actions.get(operation, ())):
            actions[HIDING] = actions[operation]
            break
    return actions, sum(map(len, given.values()))


def _verdict(
    errors: list[tuple[str, str]], verdict: Any, where: str, action: str
) -> tuple[Rule, ...]:
    if isinstance(verdict, list):
        if not verdict:
            errors.append((where, "at least one rule is expected"))
        return tuple(
            _rule(errors, rule, f"{where}[{number}]", action) for number, rule in enumerate(verdict)
        )
    return (_rule(errors, verdict, where, action),)


def _rule(errors: list[tuple[str, str]], source: Any, where: str, action: str) -> Rule:
    rule = Rule(where)
    if source is True or source is False:
        rule.verdict = source
        return rule
    if not isinstance(source, dict):
        errors.append((where, "true, false, a rule or a list of rules is expected"))
        return rule
    for key, value in source.items():
        inner = f"{where}.{key}"
        if key == "when":
            rule.when = compile_into(
                errors, value, inner, roots=("auth", "request"), default=None, lenient=True
            )
        elif key == "filter":
            if action in INSERTS or action == "insert":
                errors.append((inner, "an insert has no filter; use 'check'"))
            elif value is False:
                rule.verdict = False
            elif value is not True:
                rule.filter = compile_into(errors, value, inner)
        elif key == "check":
            rule.check = compile_into(errors, value, inner)
        elif key == "set":
            rule.set = _set(errors, value, inner)
        elif key == "read_fields":
            rule.read = _fields(errors, value, inner)
        elif key == "write_fields":
            rule.write = _fields(errors, value, inner)
        else:
            errors.append((inner, f"unknown member; known are {', '.join(MEMBERS)}"))
    return rule


def _set(
    errors: list[tuple[str, str]], source: Any, where: str, *, interpolate: bool = True
) -> Match | None:
    """Dotted paths and their values, compiled as an expression of equalities."""
    if not isinstance(source, dict):
        errors.append((where, "an object of paths and values is expected"))
        return None
    paths = sorted(source)
    for path in paths:
        for other in paths:
            if path.startswith(other + "."):
                errors.append((f"{where}.{path}", f"lies below '{other}', which is set as well"))
        if path == "_id" or path.startswith("_id."):
            errors.append((f"{where}.{path}", "an identifier cannot be set"))
        if any(part.isdigit() for part in path.split(".")):
            errors.append((f"{where}.{path}", "positions of arrays cannot be set"))
    return compile_values(errors, source, where, interpolate=interpolate)


def _fields(errors: list[tuple[str, str]], source: Any, where: str) -> FieldRule | None:
    if not isinstance(source, dict) or len(source) != 1 or not set(source) <= {"allow", "deny"}:
        errors.append((where, '{"allow": […]} or {"deny": […]} is expected'))
        return None
    ((kind, paths),) = source.items()
    where = f"{where}.{kind}"
    if not isinstance(paths, list) or not paths or len(paths) > MOST_FIELDS:
        errors.append((where, f"a list of 1 to {MOST_FIELDS} paths is expected"))
        return None
    before = len(errors)
    for number, path in enumerate(paths):
        if not isinstance(path, str) or not path or "\0" in path or len(path) > 512:
            errors.append((f"{where}[{number}]", "a path is expected"))
        elif any(
            not part or part[0] == "$" or part.isdigit() or part == "__proto__"
            for part in path.split(".")
        ):
            errors.append(
                (f"{where}[{number}]", "a path of names is expected, without array positions")
            )
    if len(errors) > before:
        return None
    return FieldRule(**{kind: tuple(paths)})


def decision_of(answer: object) -> Decision:
    """The decision in the (decoded) answer of a policy function: {"allow": true, "merge_filter"?,
    "merge_doc"?} or {"allow": false, "reason"?}. Anything else is a refusal."""
    if not isinstance(answer, dict) or answer.get("allow") is not True:
        reason = answer.get("reason") if isinstance(answer, dict) else None
        return Decision(False, reason if isinstance(reason, str) and reason else "policy refused")
    errors: list[tuple[str, str]] = []
    bound = values = None
    if (merge := answer.get("merge_filter")) is not None:
        try:
            bound = compile_match(merge, "merge_filter", interpolate=False).bind(NOBODY)
        except RuleError as error:
            return Decision(False, f"the policy's answer cannot be used: {error.errors[0][0]}")
    if (stamps := answer.get("merge_doc")) is not None:
        stamped = _set_plain(errors, stamps)
        if errors or stamped is None:
            return Decision(False, "the policy's answer cannot be used: merge_doc")
        values = stamped
    return Decision(True, filter=bound, set=values, check=bound, check_is_filter=bound is not None)


def _set_plain(errors: list[tuple[str, str]], source: Any) -> dict[str, Any] | None:
    found = _set(errors, source, "merge_doc", interpolate=False)
    if found is None:
        return None
    bound = found.bind(NOBODY)
    return None if bound is None else bound.filter


NOBODY = Context()
