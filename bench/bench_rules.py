"""Access rules and the document API's compiled core, by themselves.

Processor time of one call in microseconds, the median of rounds; where there are two sides they
take turns. Prints a table, or JSON with --json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import bson
from bson.int64 import Int64
from bson.objectid import ObjectId

from bench.report import arguments, run_parts, show
from ichicore.mongo import Caps, apply, parse, reply
from ichicore.mongo.splice import both
from ichicore.rules import Context, compile_match, compile_policy

ANNA = Context("authenticated", "anna", "anna@example.com", {"teams": ["red", "blue"]})
RULE = {"user_id": "${auth.uid}", "status": {"$in": ["open", "done"]}, "n": {"$gt": 3}}
DOCUMENT = {"user_id": "anna", "status": "done", "n": 4, "title": "a note", "tags": ["a", "b"]}
OWN = {"collections": {"notes": {"read": {"filter": {"user_id": "${auth.uid}"}}}}}
HEX = "65f000000000000000000001"
ROUNDS = 9


def taking(work: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / calls * 1e6


def compare(calls: int, **works: Callable[[], object]) -> dict[str, float]:
    """Median microseconds of each, in turns, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            found[name].append(taking(work, calls))
    return {name: statistics.median(rounds[1:]) for name, rounds in found.items()}


def evaluate() -> dict[str, Any]:
    match = compile_match(RULE)
    bound = match.bind(ANNA)
    assert bound is not None
    assert bound.test(DOCUMENT)
    figures: dict[str, Any] = compare(
        20_000,
        bound_test_us=lambda: bound.test(DOCUMENT),
        bind_and_test_us=lambda: match.test(DOCUMENT, ANNA),
    )
    return {**figures, "goal": "three clauses < 1.5 us"}


def merge() -> dict[str, Any]:
    """What a request pays for its policy's filter: bound to the identity and ANDed in BSON."""
    match = compile_match(RULE)
    own = bson.encode({"tags": "a", "stars": {"$lt": 100}})

    def merged() -> bytes:
        bound = match.bind(ANNA)
        assert bound is not None
        return both(own, bound.bson)

    assert bson.decode(merged())["user_id"] == {"$eq": "anna"}
    return {**compare(20_000, merge_us=merged), "goal": "< 2 us"}


def load() -> dict[str, Any]:
    rules = json.dumps(
        {"collections": {f"c{number}": {"read": {"filter": RULE}} for number in range(10_000)}}
    )
    took = [taking(lambda: compile_policy(rules), 1) / 1e6 for _ in range(3)]
    return {"seconds": statistics.median(took), "rules": 10_000, "goal": "< 1 s"}


def request() -> dict[str, Any]:
    """A findOne by id under an ownership rule: body to plan."""
    policy = compile_policy(OWN)
    body = json.dumps({"filter": {"_id": HEX}}).encode()
    update = json.dumps(
        {"filter": {"_id": HEX}, "update": {"$set": {"title": "x" * 30, "n": 5}, "$inc": {"v": 1}}}
    ).encode()
    caps = Caps()
    parsed = parse("findOne", body, caps)
    return compare(
        10_000,
        parse_us=lambda: parse("findOne", body, caps),
        parse_update_us=lambda: parse("updateOne", update, caps),
        decide_us=lambda: policy.decide("findOne", "notes", ANNA),
        decide_and_apply_us=lambda: apply(parsed, policy.decide("findOne", "notes", ANNA)),
    )


def documents() -> list[dict[str, Any]]:
    return [
        {
            "_id": ObjectId(),
            "user_id": "anna",
            "title": f"note number {number}",
            "body": "some words of a note " * 5,
            "n": number,
            "price": number * 1.25,
            "done": number % 2 == 0,
            "at": datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
            "tags": ["a", "b", "c"],
            "meta": {"lang": "en", "stars": number % 5},
        }
        for number in range(100)
    ]


def plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def encode() -> dict[str, Any]:
    """A find's reply of 100 documents as JSON, against PyMongo's decoding and json.dumps."""
    raw = bson.encode(
        {"cursor": {"firstBatch": documents(), "id": Int64(0), "ns": "a.b"}, "ok": 1.0}
    )

    def dumped() -> bytes:
        docs = bson.decode(raw)["cursor"]["firstBatch"]
        return json.dumps({"docs": docs, "count": len(docs)}, default=plain).encode()

    figures = compare(
        100, reply_us=lambda: reply.find_reply([raw], 100), decode_and_dumps_us=dumped
    )
    times = figures["decode_and_dumps_us"] / figures["reply_us"]
    return {**figures, "times": times, "goal": "times > 1"}


def insert() -> dict[str, Any]:
    """A body of 1,000 documents to BSON, against json.loads and PyMongo's encoding."""
    body = json.dumps(
        {
            "docs": [
                {"a": n, "b": "hello world", "c": [1, 2, 3], "d": {"x": 1.5}} for n in range(1000)
            ]
        }
    ).encode()

    def encoded() -> list[bytes]:
        return [bson.encode({"_id": ObjectId(), **doc}) for doc in json.loads(body)["docs"]]

    caps = Caps()
    figures = compare(
        10, parse_us=lambda: parse("insertMany", body, caps), loads_and_encode_us=encoded
    )
    return {**figures, "times": figures["loads_and_encode_us"] / figures["parse_us"]}


PARTS = {
    "evaluate": evaluate,
    "merge": merge,
    "load": load,
    "request": request,
    "encode": encode,
    "insert": insert,
}


def main() -> None:
    options = arguments(__doc__, PARTS).parse_args()
    show(run_parts(PARTS, options.only), as_json=options.json)


if __name__ == "__main__":
    main()
