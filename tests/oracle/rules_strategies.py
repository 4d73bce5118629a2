"""Random documents, identities and match expressions, small enough to meet each other often."""

from __future__ import annotations

from typing import Any

from bson.decimal128 import Decimal128
from bson.objectid import ObjectId
from hypothesis import strategies as st

from ichicore.rules import Context

HEX = "65f000000000000000000001"
NAMES = st.sampled_from(["a", "b", "c", "0", "1"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(".".join)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([0.5, 1.0, -0.0, 2.0, float(1 << 53)])
    | st.sampled_from([(1 << 53) + 1, (1 << 63) - 1])
    | st.sampled_from(["", "x", "xy", "X", "anna", "ü", HEX])
)
DECIMALS = st.sampled_from([Decimal128("1.0"), Decimal128("0.5"), Decimal128("7")])


@st.composite
def short(draw: Any, inside: Any) -> Any:
    """The same strategy with a short name: Hypothesis warns of long ones."""
    return draw(inside())


def nested(scalars: Any, leaves: int) -> Any:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=leaves,
    )


VALUES = nested(PLAIN | DECIMALS, 6)
DOCUMENTS = st.builds(
    lambda members, key: {"_id": key, **members},
    st.dictionaries(NAMES, VALUES, max_size=4),
    st.sampled_from([HEX, ObjectId(HEX), ObjectId("65f000000000000000000002"), 1, "x"]),
)
LITERALS = nested(PLAIN, 4)
VARIABLES = st.sampled_from(
    ["${auth.uid}", "$auth.uid", "u:${auth.uid}", "${auth.claims.n}", "${auth.claims.list}",
     "${auth.claims.o}", "${auth.claims.none}", "$${x}", "$5", "${auth.email}"]
)  # fmt: skip
LISTS = st.sampled_from(["${auth.claims.list}", "${auth.claims.none}", "${auth.claims.n}"])
IDENTITIES = st.sampled_from(
    [
        Context(),
        Context("authenticated", "anna", "a@x", {"n": 1, "list": ["x", 1, None], "o": {"a": 1}}),
        Context("authenticated", "x", None, {"n": 0.5, "list": [], "o": {}}),
        Context("authenticated", HEX, "", {"n": True, "list": [[1]], "o": [{"b": "x"}]}),
    ]
)
PATTERNS = st.sampled_from(["x", "^x", "y$", "[a-n]+", "^an?", "X|ü", ".y", "\\d{2}"])


def operators(values: Any, lists: Any) -> Any:
    return st.one_of(
        st.fixed_dictionaries({"$eq": values}),
        st.fixed_dictionaries({"$ne": values}),
        *[st.fixed_dictionaries({name: values}) for name in ("$gt", "$gte", "$lt", "$lte")],
        st.fixed_dictionaries({"$gt": values, "$lte": values}),
        st.fixed_dictionaries({"$in": st.lists(values, max_size=3) | lists}),
        st.fixed_dictionaries({"$nin": st.lists(values, max_size=3) | lists}),
        st.fixed_dictionaries({"$exists": st.booleans()}),
        st.fixed_dictionaries({"$size": st.integers(0, 3)}),
        st.fixed_dictionaries({"$all": st.lists(values, max_size=2) | lists}),
        st.fixed_dictionaries({"$regex": PATTERNS}),
        st.fixed_dictionaries({"$regex": PATTERNS, "$options": st.sampled_from(["", "i", "s"])}),
    )


def conditions(values: Any, lists: Any, paths: Any) -> Any:
    plain = operators(values, lists)
    return values | st.one_of(
        plain,
        plain,
        st.fixed_dictionaries({"$not": plain}),
        st.fixed_dictionaries({"$elemMatch": operators(values, lists)}),
        st.fixed_dictionaries(
            {"$elemMatch": st.dictionaries(paths, plain, min_size=1, max_size=2)}
        ),
        st.fixed_dictionaries(
            {"$all": st.lists(st.fixed_dictionaries({"$elemMatch": plain}), min_size=1, max_size=2)}
        ),
    )


def expressions(variables: bool, paths: Any = PATHS) -> Any:
    """Match expressions; `variables`: with names of the identity in them."""
    values = (LITERALS | VARIABLES) if variables else LITERALS
    lists = LISTS if variables else st.nothing()
    one = conditions(values, lists, paths)
    several = st.dictionaries(paths | st.just("_id"), one, max_size=3)
    fields = short(lambda: several)
    return st.recursive(
        fields,
        lambda inner: st.one_of(
            st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"$nor": st.lists(inner, min_size=1, max_size=2)}),
            st.fixed_dictionaries({"$not": inner}),
            st.builds(lambda a, b: {**a, "$or": [b]}, fields, inner),
        ),
        max_leaves=3,
    )
