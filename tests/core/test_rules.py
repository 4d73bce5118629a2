"""Rules: mistakes are named by their path, what does not resolve is refused, decisions apply."""

from __future__ import annotations

import pytest

from ichicore.rules import Context, RuleError, compile_match, compile_policy, decision_of

ANNA = Context("authenticated", "anna", "anna@example.com", {"org": 7, "teams": ["red", "blue"]})
NOBODY = Context()


def test_every_mistake_is_named_by_its_path():
    with pytest.raises(RuleError) as caught:
        compile_policy(
            {
                "collections": {
                    "notes": {
                        "read": {"filter": {"$foo": 1, "a": {"$x": 2}, "b": "${auth.x}"}},
                        "insert": {"filter": {"a": 1}},
                        "fly": True,
                    }
                }
            }
        )
    assert [path for path, _ in caught.value.errors] == [
        "rules.collections.notes.read.filter.$foo",
        "rules.collections.notes.read.filter.a.$x",
        "rules.collections.notes.read.filter.b",
        "rules.collections.notes.insert.filter",
        "rules.collections.notes.fly",
    ]
    assert "rules.collections.notes.read.filter.$foo: unknown operator" in str(caught.value)


def test_a_variable_that_does_not_resolve_refuses():
    policy = compile_policy({"collections": {"notes": {"read": {"filter": {"by": "${auth.uid}"}}}}})
    assert not policy.decide("find", "notes", NOBODY).allow
    decision = policy.decide("find", "notes", ANNA)
    assert decision.allow
    assert decision.filter is not None
    assert decision.filter.filter == {"by": {"$eq": "anna"}}
    assert compile_match({"by": "$auth.uid"}).bind(NOBODY) is None
    assert not compile_match({"by": "$auth.uid"}).test({}, NOBODY)


def test_values_of_an_identity_are_never_operators():
    for hostile in ({"$gt": ""}, {"a": {"$ne": 1}}, {"a.b": 1}, {"__proto__": 1}, 1 << 70):
        claims = {"x": hostile}
        assert compile_match({"a": "${auth.claims.x}"}).bind(Context("anon", claims=claims)) is None
    bound = compile_match({"a": "${auth.claims.x}"}).bind(Context(claims={"x": "$where"}))
    assert bound is not None
    assert bound.filter == {"a": {"$eq": "$where"}}


def test_realtime_uses_roots_and_an_index():
    match = compile_match(
        {
            "$or": [{"sender": "$auth.uid"}, {"recipient": "$auth.uid"}],
            "auth.role": "authenticated",
        },
        roots=("auth", "record", "old"),
        loose=True,
    )
    assert match.index() == (("sender", "auth.uid"), ("recipient", "auth.uid"))
    assert match.test({"sender": "x", "recipient": "anna"}, ANNA)
    assert not match.test({"sender": "x"}, ANNA)
    changed = compile_match({"old.state": "open", "record.state": "done"}, roots=("record", "old"))
    assert changed.test({"state": "done"}, ANNA, {"state": "open"})
    assert not changed.test({"state": "done"}, ANNA)
    loose = compile_match({"org": "7"}, loose=True)
    assert loose.test({"org": 7}, ANNA)
    assert compile_match({"by": "$auth.uid"}).equalities() == (("by", "auth.uid"),)


def test_only_an_answer_that_allows_allows():
    for answer in (None, True, {}, {"allow": 1}, {"allow": True, "merge_filter": {"$where": "1"}}):
        assert not decision_of(answer).allow
    decision = decision_of(
        {"allow": True, "merge_filter": {"a": "$auth.uid"}, "merge_doc": {"b": 1}}
    )
    assert decision.allow
    assert decision.set == {"b": 1}
