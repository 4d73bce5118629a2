"""One rule, every surface: what find, count, distinct, aggregate, writes and realtime let a user
see or touch is what the rules' slow twin says, for random rules and documents."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ichicore.rules import Context, RuleError, compile_match
from tests.oracle import rules_match
from tests.oracle.rules_strategies import expressions, nested
from tests.wire.mongo.conftest import ANN, BOB

SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from([0.5, 2.0])
    | st.sampled_from(["", "x", "xy", "X", "anna", "ü", ANN])
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c"])
VALUES = nested(SCALARS, 5)
DOCUMENTS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=6, max_size=6)
USERS = (
    (ANN, {"n": 1, "list": ["x", 1, None], "o": {"a": 1}, "email": "a@x"}),
    (BOB, {"n": 0.5, "list": [], "o": {}}),
)


def compiles(expression):
    try:
        compile_match(expression)
    except RuleError:
        return False
    return True


RULES = st.lists(expressions(True, NAMES).filter(compiles), min_size=8, max_size=8)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(rules=RULES, bodies=DOCUMENTS)
def test_every_surface_agrees_with_the_twin(world, rules, bodies):
    documents = [{**body, "_id": number} for number, body in enumerate(bodies)]
    names = [f"surface{number}" for number in range(len(rules))]
    world.rules({
        name: {action: {"filter": rule} for action in ("read", "update", "delete")}
        for name, rule in zip(names, rules, strict=True)
    })  # fmt: skip
    for name, rule in zip(names, rules, strict=True):
        for uid, claims in USERS:
            world.service("deleteMany", name, {"filter": {}})
            world.service("insertMany", name, {"docs": documents})
            check(world, name, rule, documents, uid, claims)
    world.settings()


def check(world, name, rule, documents, uid, claims):
    identity = Context("authenticated", uid, claims.get("email"), {**claims, "sub": uid})
    told = f"{json.dumps(rule)} for {uid} over {json.dumps(documents)}"
    who = {"uid": uid, **claims}

    def call(op, body):
        return world.call(op, name, body, **who)

    if not rules_match.resolves(rule, identity):
        for op, body in (("find", {}), ("count", {}), ("distinct", {"field": "_id"}),
                         ("aggregate", {"pipeline": []}), ("deleteMany", {"filter": {}}),
                         ("updateMany", {"filter": {}, "update": {"$set": {"z": 1}}})):  # fmt: skip
            assert call(op, body).code == "policy_denied", (op, told)
        assert compile_match(rule).bind(identity) is None, told
        return
    wanted = [d["_id"] for d in documents if rules_match.match(rule, d, identity)]

    found = call("find", {"sort": {"_id": 1}})
    assert found.status == 200, (found.text, told)
    assert [d["_id"] for d in found.json["docs"]] == wanted, told
    assert call("count", {}).json == {"count": len(wanted)}, told
    assert sorted(call("distinct", {"field": "_id"}).json["values"]) == wanted, told
    pipeline = [{"$sort": {"_id": 1}}, {"$project": {"_id": 1}}]
    docs = call("aggregate", {"pipeline": pipeline}).json["docs"]
    assert [d["_id"] for d in docs] == wanted, told
    grouped = call("aggregate", {"pipeline": [{"$group": {"_id": None, "n": {"$sum": 1}}}]})
    assert sum(d["n"] for d in grouped.json["docs"]) == len(wanted), told
    for number in range(len(documents)):
        one = call("findOne", {"filter": {"_id": number}}).json["doc"]
        assert (one is not None) == (number in wanted), told

    # the realtime process tests records as they come out in JSON
    bound = compile_match(rule, roots=("auth", "record", "old")).bind(identity)
    assert bound is not None
    seen = [d["_id"] for d in documents if bound.test(json.loads(json.dumps(d)))]
    assert seen == wanted, told

    done = call("updateMany", {"filter": {}, "update": {"$set": {"z": 1}}}).json
    assert done["matched"] == len(wanted), told
    marked = world.service("find", name, {"filter": {"z": 1}, "sort": {"_id": 1}})["docs"]
    assert [d["_id"] for d in marked] == wanted, told
    ops = [{"op": "updateOne", "filter": {"_id": n}, "update": {"$set": {"y": 1}}}
           for n in range(len(documents))]  # fmt: skip
    answer = call("bulkWrite", {"ops": ops})
    assert answer.json["matched"] == len(wanted), told
    assert call("deleteMany", {"filter": {}}).json == {"deleted": len(wanted)}, told
    left = world.service("distinct", name, {"field": "_id"})["values"]
    assert sorted(left) == [d["_id"] for d in documents if d["_id"] not in wanted], told
