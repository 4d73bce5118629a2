"""Requests put together at random: every answer is a success or a coded refusal, never a fault."""

from __future__ import annotations

import json
import random

from ichicore.mongo.grammar import ACCUMULATORS, EXPRESSIONS, QUERY, STAGES, UPDATE
from tests.wire.mongo.conftest import ANN

REQUESTS = 400
NAMES = ["a", "b", "a.b", "a.0", "_id", "items.$", "items.$[]", "items.$[x]", "user_id", "", ".",
         "a.", "$a", "__proto__", "\x00", "ü"]  # fmt: skip
LEAVES = [None, True, False, 0, 1, -1, 2**31, 2**53, 2**63 - 1, 1.5, 1e300, "", "x", "$a",
          "$$ROOT", "$$NOW", "65f000000000000000000001", [], {},
          {"$oid": "65f000000000000000000001"},
          {"$date": "2024-01-01T00:00:00Z"}, {"$date": 5}, {"$numberLong": "5"}, "(a+)+$",
          {"$numberDecimal": "1e6144"},
          {"$binary": {"base64": "AA==", "subType": "04"}}]  # fmt: skip
OPERATORS = sorted(QUERY | {"$and", "$or", "$nor", "$expr", "$where", "$options"})
OPERATIONS = ["find", "findOne", "count", "distinct", "aggregate", "insertOne", "insertMany",
              "updateOne", "updateMany", "replaceOne", "deleteOne", "findOneAndUpdate",
              "findOneAndDelete", "bulkWrite"]  # fmt: skip


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def value(self, depth=0):
        pick = self.random.random()
        if depth > 3 or pick < 0.6:
            return self.random.choice(LEAVES)
        if pick < 0.8:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        return {self.random.choice(NAMES): self.value(depth + 1) for _ in range(2)}

    def filter(self, depth=0):
        made = {}
        for _ in range(self.random.randrange(3)):
            key = self.random.choice([*NAMES, *OPERATORS[:8]])
            if key in ("$and", "$or", "$nor") and depth < 3:
                made[key] = [self.filter(depth + 1) for _ in range(2)]
            elif key == "$expr":
                made[key] = self.expression()
            elif self.random.random() < 0.6:
                operator = self.random.choice(OPERATORS)
                made[key] = {operator: self.value()}
            else:
                made[key] = self.value()
        return made

    def expression(self, depth=0):
        if depth > 3 or self.random.random() < 0.4:
            return self.value(2)
        name = self.random.choice(sorted(EXPRESSIONS))
        inner = [self.expression(depth + 1) for _ in range(self.random.randrange(1, 4))]
        return {name: inner if self.random.random() < 0.7 else inner[0]}

    def stage(self, depth=0):
        name = self.random.choice([*sorted(STAGES), "$out", "$lookup"])
        pick = self.random.random()
        if name == "$match":
            return {name: self.filter()}
        if name == "$group":
            accumulator = self.random.choice(sorted(ACCUMULATORS))
            return {name: {"_id": self.expression(), "x": {accumulator: self.expression()}}}
        if name == "$facet" and depth < 2:
            return {name: {"f": [self.stage(depth + 1)]}}
        if name in ("$limit", "$skip"):
            return {name: self.random.choice([0, 1, 5, -1, "x"])}
        if pick < 0.5:
            return {name: {self.random.choice(NAMES): self.expression()}}
        return {name: self.expression()}

    def update(self):
        return {
            self.random.choice([*sorted(UPDATE), "$foo"]): {
                self.random.choice(NAMES): self.value() for _ in range(self.random.randrange(1, 3))
            }
            for _ in range(self.random.randrange(1, 3))
        }

    def body(self, operation):
        body = {}
        if operation in ("insertOne",):
            body["doc"] = {self.random.choice(NAMES): self.value() for _ in range(2)}
        elif operation == "insertMany":
            body["docs"] = [{self.random.choice(NAMES): self.value()} for _ in range(2)]
        elif operation == "aggregate":
            body["pipeline"] = [self.stage() for _ in range(self.random.randrange(1, 3))]
        elif operation == "bulkWrite":
            ops = []
            for _ in range(3):
                op = self.random.choice(["insertOne", "updateOne", "replaceOne", "deleteMany"])
                ops.append({"op": op, **self.body(op)})
            body["ops"] = ops
        else:
            body["filter"] = self.filter()
        if "pdate" in operation:
            body["update"] = self.update()
            if self.random.random() < 0.3:
                body["upsert"] = True
        if operation == "replaceOne":
            body["replacement"] = {self.random.choice(NAMES): self.value()}
        if operation == "distinct":
            body["field"] = self.random.choice(NAMES)
        if operation in ("find", "findOneAndUpdate", "findOneAndDelete"):
            if self.random.random() < 0.3:
                body["sort"] = {self.random.choice(NAMES): self.random.choice([1, -1, 0, "x"])}
            if self.random.random() < 0.3:
                body["projection"] = {self.random.choice(NAMES): self.random.choice(LEAVES)}
        return body


def test_random_requests_are_served_or_refused(world):
    own = {"filter": {"user_id": "${auth.uid}"}}
    stamp = {"set": {"user_id": "${auth.uid}"}}
    world.rules({"fuzz": {"read": own, "insert": stamp, "update": own, "delete": own},
                 "free": {"read": True, "write": True}})  # fmt: skip
    seed = random.randrange(2**32)
    maker = Maker(seed)
    for name in ("fuzz", "free"):
        docs = [{"_id": n, "a": {"b": n}, "items": [n], "user_id": ANN} for n in range(5)]
        world.service("insertMany", name, {"docs": docs})
    for _ in range(REQUESTS):
        operation = maker.random.choice(OPERATIONS)
        body = maker.body(operation)
        answer = world.call(operation, maker.random.choice(["fuzz", "free"]), body, uid=ANN)
        told = (seed, operation, json.dumps(body), answer.status, answer.text[:300])
        assert answer.status == 200 or 400 <= answer.status < 500, told
        if answer.status != 200:
            assert isinstance(answer.json["code"], str), told
            assert isinstance(answer.json["detail"], str), told
    stray = world.service("find", "fuzz", {"filter": {"user_id": {"$ne": ANN}}})
    assert stray["docs"] == [], seed
    world.service("deleteMany", "free", {"filter": {}})
    world.settings()
