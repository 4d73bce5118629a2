"""The evaluator and a real server match the same documents, for random filters and documents.

The server here is the embedded one. It differs from MongoDB's documented way in three corners,
which these filters avoid: positions in paths compared with null ("a.0" of an empty array),
$elemMatch over arrays within arrays, and $all of an empty array, which it finds nowhere; there the
evaluator keeps to MongoDB.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson.decimal128 import Decimal128
from bson.objectid import ObjectId
from hypothesis import assume, given, settings
from pymongo.errors import PyMongoError

from ichicore.rules import Context, compile_match
from tests.oracle.rules_strategies import HEX, IDENTITIES, WORDS, expressions
from tests.ports import free_port

NAMES = ["a", "b", "c", "0", "1"]
PLAIN: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 0.5, 1.0, "", "x", "xy", "X", "anna", "ü", HEX,
    Decimal128("1.0"), Decimal128("0.5"), (1 << 53) + 1, float(1 << 53),
]  # fmt: skip


def made(chance: random.Random, depth: int, *, inside: bool = False) -> Any:
    draw = chance.random()
    if depth and draw < 0.25 and not inside:
        return [made(chance, depth - 1, inside=True) for _ in range(chance.randrange(4))]
    if depth and draw < 0.5:
        return {name: made(chance, depth - 1) for name in chance.sample(NAMES, chance.randrange(3))}
    return chance.choice(PLAIN)


def documents() -> list[dict[str, Any]]:
    chance = random.Random(20261126)
    found: list[dict[str, Any]] = [{"_id": ObjectId(HEX), "a": 1}, {"_id": HEX, "a": "x"}]
    for number in range(250):
        names = chance.sample(NAMES, chance.randrange(4))
        found.append({"_id": number, **{name: made(chance, 3) for name in names}})
    return found


DOCUMENTS = documents()


@pytest.fixture(scope="module")
def collection() -> Iterator[Any]:
    """A collection with the documents, on an embedded server."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-mongo-"))
    port = free_port()
    program = Path(sys.executable).with_name("secantusd-py")
    child = subprocess.Popen(
        [program, "--host", "127.0.0.1", "--port", str(port), "--storage-path", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client: Any = pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=20_000)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                client.admin.command("ping")
                break
            except PyMongoError:
                if time.monotonic() > until:
                    raise
        client.rules.documents.insert_many(DOCUMENTS)
        yield client.rules.documents
    finally:
        client.close()
        child.terminate()
        child.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _all_of_empty(value: Any) -> bool:
    """Whether a filter has an $all with an empty array as one of its values."""
    if isinstance(value, dict):
        wanted = value.get("$all")
        if isinstance(wanted, list) and [] in wanted:
            return True
        return any(map(_all_of_empty, value.values()))
    return isinstance(value, list) and any(map(_all_of_empty, value))


@settings(max_examples=400, deadline=None)
@given(expressions(True, WORDS), IDENTITIES)
def test_the_same_documents_match(collection, expression, identity):
    bound = compile_match(expression).bind(identity)
    if bound is None:
        return
    assume(not _all_of_empty(bound.filter))
    here = [document["_id"] for document in DOCUMENTS if bound.test(document)]
    there = [found["_id"] for found in collection.find(bound.filter, {"_id": 1})]
    assert set(map(repr, here)) == set(map(repr, there)), bound.filter


@pytest.mark.parametrize(
    "filter_",
    [
        {"a.0": 1}, {"a.0": {"$gt": 0}}, {"a.1": {"$exists": False}}, {"a.0": {"$size": 1}},
        {"a.0.b": {"$exists": True}}, {"a": {"$all": [[1]]}}, {"a": {"$gte": None}},
        {"a": {"$lt": None}}, {"a": {"$gt": []}}, {"a": {"$gt": {}}}, {"a": {"$lte": True}},
        {"a": {"$elemMatch": {"$ne": 1}}}, {"a": {"$elemMatch": {"$exists": False}}},
        {"a": {"$elemMatch": {"$not": {"$gt": 1}}}}, {"a": {"$not": {"$elemMatch": {"$gt": 0}}}},
        {"a": {"$in": [None, [], {}]}}, {"a": 1.0}, {"a": {"$gt": 1, "$lt": 1}}, False, True,
        {"b": {"$regex": "^x", "$options": "i"}}, {"_id": HEX}, {"_id": {"$ne": HEX}},
        {"_id": {"$in": [HEX, 1]}}, {"_id": {"$nin": [HEX, 1]}}, {"$not": {"a": 1}},
        {"$nor": [{"a": 1}], "$not": {"b": 1}}, {"a": {"$nin": [1, None]}},
    ],
    ids=str,
)  # fmt: skip
def test_corners(collection, filter_):
    bound = compile_match(filter_).bind(Context())
    assert bound is not None
    here = [document["_id"] for document in DOCUMENTS if bound.test(document)]
    there = [found["_id"] for found in collection.find(bound.filter, {"_id": 1})]
    assert set(map(repr, here)) == set(map(repr, there))
