"""Random bodies for the document API, good ones and bad ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ichicore.mongo.grammar import (
    ACCUMULATORS,
    BULK_OPERATIONS,
    EXPRESSIONS,
    MEMBERS,
    QUERY,
    STAGES,
    UPDATE,
)
from tests.oracle.rules_strategies import HEX, expressions, short

WORDS = st.sampled_from(
    ["a", "b", "c", "a.b", "a.0", "_id", "items.$.x", "items.$[].x", "items.$[e].x", "a..b", "$a",
     "$where", "__proto__", "a.__proto__", "", "a.$", "ü", "a\0b", "$[x]", "x.$[", "$$ROOT", "$a.b"]
)  # fmt: skip
EXTENDED = st.sampled_from(
    [
        {"$oid": HEX}, {"$oid": "x"}, {"$date": "2026-01-02T03:04:05.678Z"}, {"$date": 5},
        {"$date": {"$numberLong": "5"}}, {"$date": "2026-02-30"}, {"$numberLong": "5000000000"},
        {"$numberInt": "5"}, {"$numberDouble": "NaN"}, {"$numberDecimal": "1.50"},
        {"$binary": {"base64": "aGk=", "subType": "00"}}, {"$binary": "x"}, {"$numberLong": "x"},
        {"$regularExpression": {"pattern": "a", "options": ""}}, {"$code": "x"}, {"$symbol": "x"},
    ]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.5, 1.0, -1.0, 0.0, 1e30, 1 << 40, -(1 << 63), 1 << 63, 1e-7, 123456.789])
    | st.sampled_from(["", "x", HEX, "$a", "$$ROOT.a", "$$NOW", "$$x", "(a+)+", "^a", "date", "i"])
    | WORDS
)
NAMES = WORDS | st.sampled_from([*sorted(QUERY | UPDATE), "$each", "$slice", "$sort", "$position"])
JUNK = st.recursive(
    SCALARS | EXTENDED,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
VALUES = st.recursive(
    SCALARS | EXTENDED,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "ü"]), inner, max_size=3)
    ),
    max_leaves=5,
)
plain_filters = expressions(False)
QUERY_OPERATORS = st.fixed_dictionaries(
    {},
    optional={
        "$type": st.sampled_from(["string", 2, "nope", ["int", "date"], [], 99, -1]),
        "$mod": st.sampled_from(
            [[4, 0], [0, 1], [1], ["x", 1], [{"$numberInt": "0"}, 1], [2.0, 1]]
        ),
        "$in": st.lists(SCALARS | EXTENDED, max_size=3),
        "$eq": VALUES,
        "$ne": VALUES,
        "$exists": st.sampled_from([True, 0, 1.0, 2, "x"]),
        "$size": SCALARS,
        "$regex": st.sampled_from(["^a", "(a+)+", "a|b", "(a|b)*", "[", "a{1,9999}", 5]),
        "$options": st.sampled_from(["i", "", "z", 5]),
        "$all": st.lists(VALUES | st.just({"$elemMatch": {"a": 1}}), max_size=2) | st.just(1),
    },
)
FILTERS = st.one_of(
    plain_filters,
    st.dictionaries(WORDS, QUERY_OPERATORS | VALUES, max_size=2),
    st.dictionaries(NAMES, JUNK, max_size=2),
    st.fixed_dictionaries({"$expr": short(lambda: EXPRESSION)}),
)
OPERANDS = JUNK | st.sampled_from(
    [1, True, {"$type": "date"}, {"$each": [1, 2]}, {"$each": [1], "$slice": 2, "$sort": {"a": 1}},
     {"$each": [1], "$position": 0, "$sort": -1}, {"and": 5}, {"or": {"$numberLong": "7"}},
     {"$gt": 5}, {"cost": {"$lt": 3}}, {"$or": [{"a": 1}]}, "b.c", -1, {"$each": 1}]
)  # fmt: skip
UPDATES = st.dictionaries(
    st.sampled_from([*sorted(UPDATE), "$set", "$foo", "a"]),
    st.dictionaries(WORDS, OPERANDS, max_size=2),
    max_size=2,
) | st.just([{"$set": {"a": 1}}])
ARRAY_FILTERS = st.sampled_from(
    [[], [{"e.x": 1}], [{"e": {"$gt": 1}}, {"f": 1}], [{"e.a": 1, "e.b": 2}], [{"E": 1}], 5, [{}],
     [{"$or": [{"e": 1}, {"e": 2}]}], [{"e": 1}, {"e": 2}], [{"e": 1, "g": 1}]]
)  # fmt: skip
EXPRESSION = st.recursive(
    SCALARS | EXTENDED,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(WORDS, inner, max_size=2),
        st.dictionaries(st.sampled_from([*sorted(EXPRESSIONS), "$function"]), inner, max_size=2),
        st.sampled_from(["$add", "$cond", "$concat", "$literal"]).flatmap(
            lambda name: st.fixed_dictionaries({name: inner})
        ),
        st.fixed_dictionaries({"$let": st.fixed_dictionaries(
            {"vars": st.dictionaries(st.sampled_from(["x", "X"]), inner), "in": inner})}),
        st.fixed_dictionaries({"$regexMatch": st.fixed_dictionaries(
            {"input": inner, "regex": st.sampled_from(["^a", "$a", "(a*)*", 1])},
            optional={"options": st.sampled_from(["i", "$x"])})}),
        st.fixed_dictionaries({"$range": st.lists(st.integers(0, 20000), max_size=4)}),
        st.fixed_dictionaries({"$sortArray": st.fixed_dictionaries(
            {"input": inner, "sortBy": st.sampled_from([1, {"a": -1}, {"a": 2}])})}),
    ),
    max_leaves=4,
)  # fmt: skip
EXPRESSIONS_ = short(lambda: EXPRESSION)
ACCUMULATED = st.dictionaries(
    st.sampled_from(["n", "a.b", "$x"]),
    st.dictionaries(
        st.sampled_from([*sorted(ACCUMULATORS), "$accumulator"]), EXPRESSIONS_, max_size=2
    ),
    max_size=2,
)
STAGE = st.one_of(
    st.fixed_dictionaries({"$match": FILTERS}),
    st.fixed_dictionaries(
        {"$group": st.builds(lambda a, e: {"_id": e, **a}, ACCUMULATED, EXPRESSIONS_)}),
    st.sampled_from(["$project", "$addFields", "$set"]).flatmap(
        lambda name: st.fixed_dictionaries({name: st.dictionaries(WORDS, EXPRESSIONS_, max_size=2)})
    ),
    st.fixed_dictionaries({"$unwind": WORDS | st.fixed_dictionaries(
        {"path": WORDS}, optional={"includeArrayIndex": WORDS, "x": WORDS,
                                   "preserveNullAndEmptyArrays": st.booleans()})}),
    st.fixed_dictionaries({"$bucket": st.fixed_dictionaries(
        {"groupBy": EXPRESSIONS_}, optional={"boundaries": VALUES, "default": VALUES,
                                             "output": ACCUMULATED, "buckets": SCALARS})}),
    st.fixed_dictionaries({"$bucketAuto": st.fixed_dictionaries(
        {"groupBy": EXPRESSIONS_, "buckets": SCALARS}, optional={"granularity": SCALARS})}),
    st.fixed_dictionaries({"$lookup": st.fixed_dictionaries(
        {"from": st.sampled_from(["notes", "system.x", "_x", 1])},
        optional={"as": WORDS, "let": st.dictionaries(WORDS, EXPRESSIONS_, max_size=1),
                  "pipeline": st.just([{"$match": {"a": 1}}])})}),
    st.fixed_dictionaries({"$unionWith": st.sampled_from(
        ["notes", "system.x", {"coll": "x", "pipeline": [{"$out": "y"}]}, {"coll": "x"}, 5])}),
    st.fixed_dictionaries({"$sample": st.sampled_from([{"size": 3}, {"size": 0}, {}, 3])}),
    st.fixed_dictionaries({"$unset": WORDS | st.lists(WORDS, max_size=2)}),
    st.fixed_dictionaries({"$replaceRoot": st.fixed_dictionaries({"newRoot": EXPRESSIONS_})}),
    st.dictionaries(st.sampled_from([*sorted(STAGES), "$out", "$merge"]), JUNK, max_size=2),
)  # fmt: skip
STAGES_ = STAGE | st.fixed_dictionaries(
    {
        "$facet": st.dictionaries(
            st.sampled_from(["x", "a.b"]), st.lists(STAGE, max_size=2), max_size=2
        )
    }
)
DOCUMENTS = st.dictionaries(WORDS, VALUES, max_size=4) | JUNK
SHAPES = st.dictionaries(WORDS, st.sampled_from([0, 1, True, False, -1, 1.0, 2, "x"]), max_size=3)
ANY = {
    "filter": FILTERS,
    "projection": SHAPES,
    "sort": SHAPES,
    "limit": SCALARS,
    "skip": SCALARS,
    "field": WORDS | SCALARS,
    "pipeline": st.lists(STAGES_, max_size=3) | SCALARS,
    "doc": DOCUMENTS,
    "docs": st.lists(DOCUMENTS, max_size=7) | SCALARS,
    "update": UPDATES,
    "upsert": st.sampled_from([True, False, 1]),
    "replacement": DOCUMENTS,
    "return_document": st.sampled_from(["after", "before", "x", 1]),
    "ordered": st.sampled_from([True, False, "x"]),
    "array_filters": ARRAY_FILTERS,
}
PATHS = st.sampled_from(["a", "b", "a.b", "items.$.x", "items.$[].x", "c.0"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "ü"]), inner, max_size=3)
    ),
    max_leaves=5,
).filter(lambda value: not (isinstance(value, float) and value - value != 0))
FIELDS = ["a", "b", "c.d"]
GOOD_EXPRESSION = st.recursive(
    st.integers(-5, 5) | st.sampled_from(["$a", "$b.c", "$$ROOT", "$$NOW", "x", {"$oid": HEX}]),
    lambda inner: st.one_of(
        st.builds(lambda name, args: {name: args}, st.sampled_from(
            ["$add", "$and", "$concat", "$cond", "$eq", "$ifNull"]), st.lists(inner, max_size=3)),
        st.builds(lambda one: {"$let": {"vars": {"x": one}, "in": ["$$x.y", one]}}, inner),
        st.builds(lambda one: {"$regexMatch": {"input": one, "regex": "^a"}}, inner),
        st.builds(lambda one: {"$sortArray": {"input": one, "sortBy": {"a": -1}}}, inner),
        st.builds(lambda one: {"$map": {"input": one, "as": "x", "in": "$$x.y"}}, inner),
        st.dictionaries(st.sampled_from(["a", "b", "c.d"]), inner, max_size=2),
        st.just({"$range": [0, 10]}),
    ),
    max_leaves=4,
)  # fmt: skip
OPERATIONS_BY_OPERAND = (
    (("$set", "$setOnInsert", "$min", "$max", "$unset", "$push", "$addToSet"), PLAIN),
    (("$inc", "$mul"), st.integers(-5, 1 << 40) | st.just({"$numberDecimal": "1.5"})),
    (("$rename",), st.sampled_from(["z", "y.x"])),
    (("$currentDate",), st.sampled_from([True, {"$type": "date"}, {"$type": "timestamp"}])),
    (("$pop",), st.sampled_from([1, -1, 1.0])),
    (("$push",), st.sampled_from([{"$each": [1], "$slice": 2, "$sort": {"a": 1}, "$position": 0}])),
    (("$addToSet",), st.sampled_from([{"$each": [1, {"a": 2}]}])),
    (("$pull",), st.sampled_from([1, {"$gt": 5}, {"cost": {"$lt": 3}}, {"$or": [{"a": 1}]}])),
    (("$pullAll",), st.lists(PLAIN, max_size=3)),
    (("$bit",), st.sampled_from([{"and": 5}, {"or": 1, "xor": {"$numberLong": "7"}}])),
)
GOOD_UPDATE = st.dictionaries(st.integers(0, 9), st.integers(0, 3), min_size=1, max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({
        OPERATIONS_BY_OPERAND[group][0][which % len(OPERATIONS_BY_OPERAND[group][0])]:
            st.dictionaries(PATHS, OPERATIONS_BY_OPERAND[group][1], min_size=1, max_size=2)
        for group, which in chosen.items()
    })
)  # fmt: skip
GOOD_FILTER = short(lambda: plain_filters)
GOOD_STAGE = st.one_of(
    st.builds(lambda f: {"$match": f}, GOOD_FILTER),
    st.builds(lambda e: {"$match": {"$expr": e}}, short(lambda: GOOD_EXPRESSION)),
    st.builds(lambda name, e: {name: {"a": e, "b.c": 1}}, st.sampled_from(
        ["$project", "$addFields", "$set"]), short(lambda: GOOD_EXPRESSION)),
    st.builds(lambda e, f: {"$group": {"_id": e, "n": {"$sum": f}, "t": {"$topN": {
        "n": 1, "sortBy": {"a": 1}, "output": f}}}}, short(lambda: GOOD_EXPRESSION),
        short(lambda: GOOD_EXPRESSION)),
    st.builds(lambda e: {"$bucket": {
        "groupBy": e, "boundaries": [1, 2], "default": "x", "output": {"n": {"$sum": 1}}}},
        short(lambda: GOOD_EXPRESSION)),
    st.builds(lambda name, e: {name: e}, st.sampled_from(
        ["$sortByCount", "$replaceWith", "$redact"]), short(lambda: GOOD_EXPRESSION)),
    st.sampled_from([
        {"$sort": {"a": 1, "b": -1}}, {"$limit": 3}, {"$skip": 2}, {"$count": "n"}, {"$unset": "a"},
        {"$unset": ["a", "b.c"]}, {"$unwind": "$items"}, {"$sample": {"size": 3}},
        {"$unwind": {"path": "$a", "includeArrayIndex": "i", "preserveNullAndEmptyArrays": True}},
        {"$bucketAuto": {"groupBy": "$a", "buckets": 3, "granularity": "R5"}},
        {"$replaceRoot": {"newRoot": "$a"}}, {"$unionWith": "notes"},
        {"$lookup": {"from": "notes", "let": {"x": "$a"}, "as": "n",
                     "pipeline": [{"$match": {"$expr": {"$eq": ["$a", "$$x"]}}}]}},
        {"$facet": {"x": [{"$match": {"_id": HEX}}], "y": [{"$limit": 1}]}},
    ]),
)  # fmt: skip
GOOD = {
    "filter": GOOD_FILTER,
    "projection": st.dictionaries(PATHS.filter(lambda p: "$" not in p), st.just(1), max_size=2),
    "sort": st.dictionaries(st.sampled_from(FIELDS), st.sampled_from([1, -1]), max_size=2),
    "limit": st.integers(0, 20),
    "skip": st.integers(0, 20),
    "field": st.sampled_from(FIELDS),
    "pipeline": st.lists(GOOD_STAGE, max_size=4),
    "doc": st.dictionaries(st.sampled_from(["a", "b", "_id"]), PLAIN.filter(
        lambda value: not isinstance(value, list)), max_size=3),
    "update": GOOD_UPDATE,
    "upsert": st.booleans(),
    "return_document": st.sampled_from(["after", "before"]),
    "ordered": st.booleans(),
    "array_filters": st.just([]),
}  # fmt: skip
GOOD["docs"] = st.lists(GOOD["doc"], min_size=1, max_size=4)
GOOD["replacement"] = GOOD["doc"]
NEEDED = ("filter", "doc", "docs", "update", "replacement", "field", "pipeline")


@st.composite
def bodies(
    draw: Any, operation: str, *, in_batch: bool = False, good: bool | None = None
) -> dict[str, Any]:
    """good: mostly what is accepted; else mostly what is not."""
    made: dict[str, Any] = {"op": operation} if in_batch else {}
    if good is None:
        good = draw(st.booleans())
    values = GOOD if good else ANY
    for alias, name in MEMBERS[operation].items():
        if alias == "operations":
            continue
        if name == "ops" or draw(st.booleans()) if name not in NEEDED else draw(st.integers(0, 9)):
            if name == "ops":
                made[alias] = [
                    draw(
                        bodies(
                            draw(st.sampled_from(sorted(BULK_OPERATIONS))), in_batch=True, good=good
                        )
                    )
                    for _ in range(draw(st.integers(0, 3)))
                ]
            elif alias == name or (not good and draw(st.integers(0, 9)) == 0):
                made[alias] = draw(values[name])
    if not good and draw(st.integers(0, 30)) == 0:
        made["extra"] = 1
    return made
