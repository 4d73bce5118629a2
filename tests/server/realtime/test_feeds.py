"""What subscribers are told of a feed: when it begins, and in which order."""

import asyncio
import time

import pytest

from ichicore.live.change import Change, Publish
from server.base.events import Events
from server.realtime.feeds import Feeds
from server.realtime.pg_slot import FeedUnavailable
from server.realtime.streams import DocumentFeeds
from tests.server.realtime.world import SECRET, project

RULES = {"tables": {"t": {"rule": True}}, "channels": {"c": {"subscribe": True}}}


class Waiting:
    """A feed that begins when `began` is set."""

    def __init__(self):
        self.began = asyncio.Event()
        self.complains = False

    def state(self, table):
        return None

    async def ready(self, table):
        if self.complains:
            await asyncio.sleep(0.05)
            raise FeedUnavailable("a reason for the log")
        await self.began.wait()
        return "all"


@pytest.fixture
def one(world):
    made = world(project(SECRET, RULES))

    def prepare():
        feeds = Feeds(made.process, "node", "", list, Events())
        feed = Waiting()
        feeds.wanted = lambda tenant: feed
        made.process.feeds = feeds
        return feed

    made.feed = made.call(prepare)
    yield made
    made.process.feeds = None


def test_subscribed_is_told_when_changes_are_read(one):
    client = one.connect()
    client.say(type="subscribe", ref="1", kind="postgres", table="t")
    client.silent()
    one.call(one.feed.began.set)
    assert client.hear() == {
        "type": "subscribed", "ref": "1", "kind": "postgres", "table": "public.t",
    }  # fmt: skip


def test_what_was_taken_back_is_not_subscribed(one):
    client = one.connect()
    for ref in ("1", "2"):
        client.say(type="subscribe", ref=ref, kind="postgres", table="t")
    assert client.ask(type="unsubscribe", ref="1") == {"type": "unsubscribed", "ref": "1"}
    client.say(type="unsubscribe", ref="2")
    client.say(type="subscribe", ref="2", kind="broadcast", channel="c")
    assert client.hear() == {"type": "unsubscribed", "ref": "2"}
    assert client.hear()["kind"] == "broadcast"
    one.call(one.feed.began.set)
    client.silent()


def test_who_waits_in_vain_is_told_once_and_subscribed_later(one):
    one.feed.complains = True
    client, gone = one.connect(), one.connect()
    for each in (client, gone):
        each.say(type="subscribe", ref="1", kind="postgres", table="t")
    assert gone.ask(type="unsubscribe", ref="1") == {"type": "unsubscribed", "ref": "1"}
    answer = client.hear()
    assert (answer["code"], answer["ref"]) == ("feed_unavailable", "1")
    assert "reason" not in answer["detail"]
    time.sleep(0.2)
    client.silent()
    gone.silent()
    one.feed.complains = False
    one.call(one.feed.began.set)
    assert client.hear()["type"] == "subscribed"
    gone.silent()


def test_messages_and_truncations_come_after_the_changes_before_them(one):
    """Also when a change has reached some of its receivers only."""
    one.call(one.feed.began.set)
    client = one.connect()
    client.ask(type="subscribe", ref="1", kind="postgres", table="t")
    client.ask(type="subscribe", ref="2", kind="broadcast", channel="c")
    hub = one.process.tenants["p1"].hub
    feeds = one.process.feeds

    def work():
        peer = next(iter(hub.sources["postgres", "public.t"].groups.values())).members
        source = hub.sources["postgres", "public.t"]
        groups = [source.add(next(iter(peer)), n, 7) for n in range(5)]
        hub.put(Change("postgres", "public.t", "INSERT", record={"id": 1}))
        message = Publish("c", "e", b"1")
        waited = 0
        while not feeds.publish("p1", message):
            assert not feeds.truncated("p1", "public.t")
            assert not feeds.notice("p1", "feed_gap", "")
            hub.pump(1)
            waited += 1
        assert feeds.truncated("p1", "public.t")
        assert feeds.notice("p1", "feed_gap", "")
        for group in groups:
            source.remove(next(iter(peer)), group)
        return waited

    assert one.call(work) >= 5
    frames = [client.hear() for _ in range(4)]
    assert [frame["type"] for frame in frames] == ["change", "broadcast", "error", "error"]
    assert [frame["code"] for frame in frames[2:]] == ["table_truncated", "feed_gap"]
    client.silent()


class Stream:
    """A document stream that never comes to read anything."""

    made: list = []

    def __init__(self, tenant, process, events, place=None):
        self.names = frozenset(tenant.rules.collections)
        self.project = tenant.project
        self.place = None
        self.owed = []
        self.answered = False
        Stream.made.append(self)

    def same(self, tenant):
        return frozenset(tenant.rules.collections) == self.names

    def acknowledge(self, session, subscription, told):
        self.owed.append((session, subscription, told))

    def cancel(self):
        pass

    def answer(self):
        self.answered = True

    async def stop(self):
        pass


def test_who_waits_for_a_stream_waits_for_the_next_one(world, monkeypatch):
    """The settings have changed before the first one was read."""
    monkeypatch.setattr("server.realtime.mongo_feed.DocumentFeed", Stream)
    monkeypatch.setattr(Stream, "made", [])

    def having(*names, documents="stream"):
        rules = {"documents": documents, "collections": {name: {"rule": True} for name in names}}
        return project(SECRET, rules, mongo_url="mongodb://nowhere.invalid")

    one = world(having("a"))

    def begin():
        one.process.streams = DocumentFeeds(one.process, one.events)

    one.call(begin)
    client = one.connect()
    client.say(type="subscribe", ref="1", kind="mongo", collection="a")
    client.silent()
    one.call(lambda: one.directory.set("default", having("a", "b")))
    first, second = Stream.made
    assert [told["ref"] for _, _, told in second.owed] == ["1"]
    assert second.owed == first.owed
    assert not second.answered
    one.call(lambda: one.directory.set("default", having("a", documents="gateway")))
    assert second.answered
    assert not first.answered
