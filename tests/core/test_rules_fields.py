"""Hidden fields are nowhere in what is shown, and a filter of a policy holds whatever is asked."""

from __future__ import annotations

import json
from typing import Any

import bson
from hypothesis import given, settings
from hypothesis import strategies as st

from ichicore.errors import ApiError
from ichicore.mongo import Caps, apply, parse, reply
from ichicore.rules import Context, Decision, FieldRule, compile_match
from ichicore.rules.fields import overlaps
from tests.core.test_rules_match import extended
from tests.oracle.rules_strategies import DOCUMENTS, IDENTITIES, WORDS, expressions

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join),
    min_size=1,
    max_size=3,
).map(tuple)
RULES = st.builds(FieldRule, NAMES) | st.builds(lambda names: FieldRule(deny=names), NAMES)
NOBODY = Context()


def at(document: Any, path: str) -> list[Any]:
    """Everything that a path leads to."""
    found = [document]
    for name in path.split("."):
        after: list[Any] = []
        while found:
            one = found.pop()
            if isinstance(one, list):
                found += one
            elif isinstance(one, dict) and name in one:
                after.append(one[name])
        found = after
    return found


@settings(max_examples=300, deadline=None)
@given(RULES, DOCUMENTS)
def test_what_is_shown_has_nothing_hidden(rule, document):
    document.pop("_id")
    shown = rule.strip(document)
    assert rule.first_denied(shown) is None
    for denied in rule.deny:
        assert at(shown, denied) == []
    assert json.loads(reply.to_json(bson.encode(document), rule)) == json.loads(
        reply.to_json(bson.encode(shown))
    )


@settings(max_examples=300, deadline=None)
@given(RULES, DOCUMENTS, WORDS)
def test_a_path_that_may_be_used_is_shown_in_full(rule, document, path):
    if rule.allows(path):
        assert rule.visible(path)
        assert sorted(map(repr, at(rule.strip(document), path))) == sorted(
            map(repr, at(document, path))
        )
        assert not any(overlaps(path, denied) for denied in rule.deny)


@settings(max_examples=300, deadline=None)
@given(RULES, DOCUMENTS, expressions(False, WORDS))
def test_a_filter_that_may_be_used_depends_on_shown_fields_only(rule, document, filter_):
    """Whether it matches is the same for the document and for what is shown of it."""
    if rule.deny and any("_id" in path for path in rule.deny):
        return
    body = json.dumps({"filter": filter_}).encode()
    try:
        (plan,) = apply(parse("find", body, Caps()), Decision(True, read=rule))
    except ApiError:
        return
    match = compile_match(extended(bson.decode(plan.filter)), interpolate=False)
    assert match.test(document, NOBODY) == match.test(rule.strip(document), NOBODY)


@settings(max_examples=400, deadline=None)
@given(expressions(False, WORDS), expressions(True, WORDS), DOCUMENTS, IDENTITIES)
def test_the_filter_that_is_sent_is_both_filters(own, rule, document, identity):
    bound = compile_match(rule).bind(identity)
    if bound is None:
        return
    try:
        command = parse("find", json.dumps({"filter": own}).encode(), Caps())
    except ApiError:
        return
    (alone,) = apply(command, Decision(True))
    (plan,) = apply(command, Decision(True, filter=bound))

    def matches(data: bytes) -> bool:
        match = compile_match(extended(bson.decode(data)), interpolate=False)
        return match.test(document, NOBODY)

    assert matches(plan.filter) == (matches(alone.filter) and bound.test(document))
