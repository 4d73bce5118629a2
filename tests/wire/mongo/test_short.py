"""The short way of documents: its answers must be those of the general way."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.wire.mongo.conftest import ANN, BOB, World

OWN = {"user_id": "${auth.uid}"}
GENERAL = {"x-request-id": "general"}  # a request with an id of its own takes the general way
BIG = "x" * 300_000
RULES = {
    "read": {"filter": OWN, "read_fields": {"deny": ["hidden"]}},
    "insert": {"set": OWN}, "update": {"filter": OWN},
    "delete": {"filter": OWN},
}  # fmt: skip


@pytest.fixture(scope="module")
def notes(world):
    world.rules({"short": RULES, "checked": {
        "read": True, "insert": True, "update": {"check": {"n": {"$lt": 5}}}}})  # fmt: skip
    world.service("deleteMany", "short", {"filter": {}})
    fresh = world.token
    world.token = functools.cache(fresh)  # a token that is not known yet takes the general way
    yield world
    world.token = fresh


def fill(world):
    """Six documents; and the host's lane is open, the users' tokens are known."""
    for uid in (ANN, BOB):
        world.call("count", "short", uid=uid, headers=GENERAL)
    world.service("deleteMany", "short", {"filter": {}})
    docs = [{"_id": n, "user_id": ANN, "n": n, "hidden": n, "t": ["a", {"b": n}]} for n in range(5)]
    docs.append({"_id": 9, "user_id": BOB, "n": 9})
    world.service("insertMany", "short", {"docs": docs})


def left(world):
    return world.service("find", "short", {"sort": {"_id": 1}}, headers=GENERAL)["docs"]


def is_short(answer):
    """Numbers of the short way are marked."""
    return "m" in answer.headers["x-request-id"]


READS = [
    ("findOne", {"filter": {"_id": 2}}), ("findOne", {"filter": {"_id": 9}}),
    ("findOne", {"filter": {}, "projection": {"t": 1}}), ("find", {"sort": {"_id": -1}}),
    ("find", {"filter": {"n": {"$gt": 1}}, "limit": 2, "skip": 1, "sort": {"_id": 1}}),
    ("find", {"filter": {"t": {"$elemMatch": {"b": 3}}}}), ("count", {}),
    ("count", {"filter": {"n": 99}}), ("distinct", {"field": "n"}),
    ("aggregate", {"pipeline": [{"$sort": {"_id": 1}}, {"$project": {"n": 1}}]}),
    ("aggregate", {"pipeline": [{"$group": {"_id": None, "s": {"$sum": "$n"}}}]}),
]  # fmt: skip
WRITES = [
    ("insertOne", {"doc": {"_id": "i", "a": 1.5}}),
    ("insertMany", {"docs": [{"_id": "j"}, {"_id": "k", "d": {"$date": "2026-01-01T00:00:00Z"}}]}),
    ("updateOne", {"filter": {"_id": 1}, "update": {"$inc": {"n": 1}}}),
    ("updateOne", {"filter": {"_id": 77}, "update": {"$inc": {"n": 1}}}),
    ("updateOne", {"filter": {"_id": 9}, "update": {"$inc": {"n": 1}}}),
    ("updateMany", {"filter": {}, "update": {"$set": {"x": 1}}}),
    ("updateMany", {"filter": {}, "update": {"$set": {"t.$[e].b": 1}},
                    "array_filters": [{"e.b": {"$gt": 2}}]}),
    ("updateOne", {"filter": {"_id": "u"}, "update": {"$set": {"n": 1}}, "upsert": True}),
    ("replaceOne", {"filter": {"_id": 1}, "replacement": {"n": 8, "user_id": ANN}}),
    ("deleteOne", {"filter": {"_id": 2}}), ("deleteMany", {"filter": {"n": {"$gte": 2}}}),
    ("deleteMany", {"filter": {"_id": 9}}),
]  # fmt: skip
REFUSED = [
    ("find", {"filter": {"hidden": 1}}, "policy_denied"),
    ("find", {"filter": {"$where": "1"}}, "operator_not_allowed"),
    ("find", {"nonsense": 1}, "bad_request"),
    ("aggregate", {"pipeline": [{"$out": "x"}]}, "stage_not_allowed"),
    ("updateOne", {"filter": {}, "update": {"$set": {"user_id": BOB}}}, "policy_denied"),
    ("updateOne", {"filter": {"_id": 1}, "update": {"$inc": {"t": 1}}}, "bad_request"),
    ("insertOne", {"doc": {"_id": 1}}, "duplicate_key"),
    ("insertMany", {"docs": [{"_id": "new"}, {"_id": 1}]}, "duplicate_key"),
    ("count", {"filter": {"$nosuch": 1}}, "operator_not_allowed"),
]  # fmt: skip


@pytest.mark.parametrize("request_", READS, ids=lambda one: f"{one[0]}-{json.dumps(one[1])[:40]}")
def test_both_ways_read_the_same(notes, request_):
    fill(notes)
    general = notes.call(*request_[:1], "short", request_[1], uid=ANN, headers=GENERAL)
    assert general.status == 200, general.text
    for _ in range(2):
        short = notes.call(request_[0], "short", request_[1], uid=ANN)
        assert is_short(short)
        assert (short.status, short.text) == (general.status, general.text)
        kept = {name: value for name, value in short.headers.items() if name != "x-request-id"}
        assert kept.keys() == general.headers.keys() - {"x-request-id"}


@pytest.mark.parametrize("request_", WRITES, ids=lambda one: f"{one[0]}-{json.dumps(one[1])[:40]}")
def test_both_ways_write_the_same(notes, request_):
    operation, body = request_
    seen = []
    for headers in (GENERAL, None, None):
        fill(notes)
        answer = notes.call(operation, "short", body, uid=ANN, headers=headers)
        assert answer.status == 200, answer.text
        assert is_short(answer) == (headers is None)
        seen.append((answer.text, left(notes)))
    assert seen[1] == seen[0] == seen[2]


@pytest.mark.parametrize("request_", REFUSED, ids=lambda one: f"{one[0]}-{one[2]}")
def test_both_ways_refuse_the_same(notes, request_):
    operation, body, code = request_
    seen = []
    for headers in (GENERAL, None):
        fill(notes)
        answer = notes.call(operation, "short", body, uid=ANN, headers=headers)
        assert (answer.code, answer.status < 500) == (code, True), answer.text
        seen.append((answer.status, answer.text, left(notes)))
    assert seen[0] == seen[1]


def test_what_is_not_one_command_takes_the_general_way(notes):
    fill(notes)
    for operation, collection, body in (
        ("bulkWrite", "short", {"ops": [{"op": "deleteOne", "filter": {"_id": 1}}]}),
        ("findOneAndUpdate", "short", {"filter": {"_id": 2}, "update": {"$set": {"x": 1}}}),
        ("updateOne", "checked", {"filter": {"_id": 1}, "update": {"$set": {"n": 4}}}),
    ):
        answer = notes.call(operation, collection, body, uid=ANN)
        assert (answer.status, is_short(answer)) == (200, False), answer.text


def test_users_see_their_own_on_one_connection(notes):
    fill(notes)
    for _ in range(3):
        for uid, ids in ((ANN, [0, 1, 2, 3, 4]), (BOB, [9])):
            answer = notes.call("find", "short", {"sort": {"_id": 1}}, uid=uid)
            assert is_short(answer)
            assert [doc["_id"] for doc in answer.json["docs"]] == ids
        assert notes.call("find", "short").code == "policy_denied"


def test_an_expired_revoked_or_foreign_token_is_refused(notes):
    assert notes.call("count", "short", uid=ANN).status == 200
    assert notes.call("count", "short", uid=ANN, exp=int(time.time()) - 31).code == "token_expired"
    forged = {"authorization": f"Bearer {notes.token(ANN)[:-3]}abc"}
    assert notes.call("count", "short", headers=forged).code == "invalid_token"
    assert notes.call("count", "short", headers={"apikey": "ich_pub_x"}).code == "invalid_api_key"


def test_listed_origins_go_the_short_way_with_their_headers(notes):
    cors = {"origins": ["https://app.example"]}
    asyncio.run(notes.projects.put_settings("default", "cors", cors))
    listed = {"origin": "https://app.example"}

    def named():
        answer = notes.call("count", "short", uid=ANN, headers=listed | GENERAL)
        return answer.headers.get("access-control-allow-origin")

    notes.until(named)
    try:
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            told = {"origin": origin}
            general = notes.call("count", "short", uid=ANN, headers=told | GENERAL)
            short = notes.call("count", "short", uid=ANN, headers=told)
            assert is_short(short)
            for answer in (general, short):
                found = answer.headers.get("access-control-allow-origin")
                assert found == (origin if allowed else None)
            assert short.headers.get("vary") == general.headers.get("vary")
    finally:
        asyncio.run(notes.projects.put_settings("default", "cors", {}))
        notes.until(lambda: not named())


def test_changed_rules_hold_at_once_on_the_short_way(notes):
    fill(notes)
    assert is_short(notes.call("count", "short", uid=ANN))
    for wanted in (403, 200):
        entry = {"short": RULES} if wanted == 200 else {"short": {"read": False}}
        notes.rules({**entry, "checked": {"read": True, "insert": True,
                                          "update": {"check": {"n": {"$lt": 5}}}}})  # fmt: skip
        for _ in range(3):
            assert notes.call("count", "short", uid=ANN).status == wanted


def test_large_answers_come_whole(notes):
    notes.service("deleteMany", "short", {"filter": {}})
    docs = [{"_id": n, "user_id": ANN, "big": BIG} for n in range(3)]
    notes.service("insertMany", "short", {"docs": docs})
    general = notes.call("find", "short", {"sort": {"_id": 1}}, uid=ANN, headers=GENERAL)
    short = notes.call("find", "short", {"sort": {"_id": 1}}, uid=ANN)
    assert is_short(short)
    assert len(short.text) > 900_000
    assert short.text == general.text


def test_a_body_that_breaks_off_does_nothing(notes):
    notes.service("deleteMany", "short", {"filter": {}})
    body = json.dumps({"doc": {"_id": "cut"}}).encode()
    head = "\r\n".join((
        "POST /mongo/v1/insertOne/short HTTP/1.1", f"host: 127.0.0.1:{notes.site.port}",
        f"apikey: {notes.records['default'].anon_key}", f"authorization: Bearer {notes.token()}",
        "content-type: application/json", f"content-length: {len(body)}", "", "",
    )).encode()  # fmt: skip
    for sent in (body[:8], body[:-1]):
        with socket.create_connection(("127.0.0.1", notes.site.port)) as peer:
            peer.sendall(head + sent)
    time.sleep(0.3)
    assert left(notes) == []
    with socket.create_connection(("127.0.0.1", notes.site.port)) as peer:
        peer.sendall(head + body)
        assert b" 200 " in peer.recv(4096)


def test_more_at_once_than_there_are_connections(notes):
    """They wait for their turn, on both ways at once, and none is lost or answered twice."""
    notes.service("deleteMany", "short", {"filter": {}})
    world = notes

    def sender(number):
        other = World.__new__(World)
        other.__dict__.update(world.__dict__)
        other.client = type(world.client)("127.0.0.1", world.site.port, timeout=60)
        made = []
        for n in range(12):
            headers = GENERAL if (n + number) % 3 == 0 else None
            doc = {"doc": {"number": number, "n": n}}
            answer = other.call("insertOne", "short", doc, uid=ANN, headers=headers)
            assert answer.status == 200, answer.text
            made.append(answer.json["insertedId"])
            one = other.call("findOne", "short", {"filter": {"_id": made[-1]}}, uid=ANN)
            assert (one.json["doc"]["number"], one.json["doc"]["n"]) == (number, n)
        other.client.close()
        return made

    with ThreadPoolExecutor(24) as pool:
        ids = [id for made in pool.map(sender, range(24)) for id in made]
    assert len(set(ids)) == 24 * 12
    assert notes.service("count", "short") == {"count": 24 * 12}


def test_a_client_that_leaves_ends_its_operation(notes):
    name = f"slow_{uuid.uuid4().hex[:6]}"
    notes.service("insertMany", name, {"docs": [{"n": n} for n in range(300)]})
    record = notes.records["default"]
    body = json.dumps({"pipeline": [{"$group": {"_id": None, "n": {"$sum": "$n"}}}]}).encode()
    head = "\r\n".join((
        f"POST /mongo/v1/aggregate/{name} HTTP/1.1", f"host: 127.0.0.1:{notes.site.port}",
        f"apikey: {record.service_key}", f"content-length: {len(body)}", "", "",
    )).encode()  # fmt: skip
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", notes.site.port)) as peer:
            peer.sendall(head + body)
    for _ in range(5):
        assert notes.call("count", name, service=True).json == {"count": 300}
