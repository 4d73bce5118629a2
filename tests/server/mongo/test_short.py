"""What the short way keeps of an identity's reads, and what it does not."""

from types import SimpleNamespace

import bson
import msgspec
import pytest

from ichicore.mongo import Caps
from server.base.project import Identity
from server.mongo.rulebook import Book
from server.mongo.settings import MongoSettings
from server.mongo.short import Guide

BODY = b'{"filter":{"a":1}}'


def guide(entry, *, document_body=1 << 20):
    limits = SimpleNamespace(document_body=document_body, max_documents=1000, operation_ms=10_000)
    project = SimpleNamespace(limits=limits, tier="pro", settings={}, slug="p")
    book = Book(project)
    book.use(msgspec.convert({"rules": {"collections": {"notes": entry}}}, MongoSettings))
    store = SimpleNamespace(
        give_back=None,
        kept=None,
        known=object(),
        session=lambda: None,
        tail=bson.encode({"$db": "db"})[4:-1],
    )
    room = SimpleNamespace(caps=lambda book, privileged: Caps(), quota=None)
    return Guide(room, project, store, book)


def who(uid="u1"):
    return Identity("authenticated", uid, {"sub": uid, "role": "authenticated"}, b"{}")


def prepared(made, operation, body=BODY):
    place = made.place(f"/mongo/v1/{operation}/notes")
    made.prepare(place, body, who())
    return place.known


@pytest.mark.parametrize("operation", ["find", "findOne", "count"])
def test_plain_reads_are_kept(operation):
    assert prepared(guide({"read": {"filter": {"user_id": "${auth.uid}"}}}), operation) == 1
    assert prepared(guide({"read": True}), operation, b"{}") == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"read": {"filter": {"until": {"$gt": "${now}"}}}},
        {"read": [{"when": {"auth.claims.nbf": {"$lt": "${now}"}}}, {"filter": {"a": 1}}]},
        {"read": {"read_fields": {"deny": ["secret"]}}},
    ],
)
def test_rules_that_look_at_the_time_or_hide_fields_are_not(entry):
    assert prepared(guide(entry), "findOne") == 0


def test_other_members_and_operations_and_short_limits_are_not():
    entry = {"read": True, "write": True}
    assert prepared(guide(entry), "find", b'{"filter":{},"limit":1}') == 0
    assert prepared(guide(entry), "distinct", b'{"field":"a"}') == 0
    assert prepared(guide(entry), "deleteOne") == 0
    assert prepared(guide(entry, document_body=100), "findOne") == 0
