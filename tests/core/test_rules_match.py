"""The compiled evaluator, its twin, and its own output as a filter agree."""

from __future__ import annotations

import bson
from hypothesis import given, settings

from ichicore.rules import Context, compile_match
from tests.oracle import rules_match as twin
from tests.oracle.rules_strategies import DOCUMENTS, IDENTITIES, expressions

NOBODY = Context()


@settings(max_examples=1500, deadline=None)
@given(expressions(True), DOCUMENTS, IDENTITIES)
def test_the_evaluator_agrees_with_its_twin(expression, document, identity):
    match = compile_match(expression)
    expected = twin.match(expression, document, identity)
    assert match.test(document, identity) == expected
    bound = match.bind(identity)
    assert (bound is not None) == twin.resolves(expression, identity)
    if bound is not None:
        assert bound.test(document) == expected
        assert bound.test_raw(bson.encode(document)) == expected
        # what is sent to the server means the same
        again = compile_match(extended(bound.filter), interpolate=False)
        assert again.test(document, NOBODY) == expected
        assert bson.decode(bound.bson) == bson.decode(bson.encode(bound.filter))


def extended(value):
    """A filter as JSON: identifiers in their extended form."""
    if isinstance(value, dict):
        return {key: extended(one) for key, one in value.items()}
    if isinstance(value, list):
        return [extended(one) for one in value]
    return {"$oid": str(value)} if isinstance(value, bson.ObjectId) else value


@settings(max_examples=300, deadline=None)
@given(expressions(True), IDENTITIES, IDENTITIES, DOCUMENTS)
def test_identities_with_the_same_key_share_a_result(expression, first, second, document):
    match = compile_match(expression)
    a, b = match.bind(first), match.bind(second)
    if a is not None and b is not None and a.key == b.key:
        assert a.test(document) == b.test(document)


@settings(max_examples=300, deadline=None)
@given(expressions(True), IDENTITIES, DOCUMENTS)
def test_an_index_never_misses(expression, identity, document):
    match = compile_match(expression)
    index = match.index()
    bound = match.bind(identity)
    if index is None or bound is None or not bound.test(document):
        return
    assert any(
        compile_match({path: f"${{{name}}}"}).test(document, identity) for path, name in index
    )


@settings(max_examples=250, deadline=None)
@given(expressions(True), DOCUMENTS, IDENTITIES)
def test_what_is_certain_agrees_with_its_twin(expression, document, identity):
    bound = compile_match(expression).bind(identity)
    expected = twin.certain(expression, document, identity)
    assert compile_match(expression).test(document, identity, None, None, 1) == expected
    assert (bound is not None and bound.test(document, None, 1)) == expected


@settings(max_examples=250, deadline=None)
@given(expressions(True), DOCUMENTS, DOCUMENTS, IDENTITIES)
def test_what_is_certain_holds_whatever_is_missing(expression, document, rest, identity):
    match = compile_match(expression)
    if match.test(document, identity, None, None, 1):
        assert match.test({**rest, **document}, identity)
        assert match.test(document, identity)


def test_what_is_certain_of_the_old_document():
    rule = {"$or": [{"a": 1}, {"old.b": {"$ne": 2}}]}
    match = compile_match(rule, roots=("old",))
    for document, old, expected in (
        ({}, {}, (True, True, False, False)), ({"a": 1}, None, (True,) * 4),
        ({"a": 2}, None, (True, True, False, False)), ({}, {"b": 3}, (True,) * 4),
        ({}, {"b": 2}, (False,) * 4),
    ):  # fmt: skip
        found = tuple(match.test(document, NOBODY, old, None, partial) for partial in range(4))
        assert found == expected, (document, old)
