"""What subscribers are told of a feed: when it begins, and in which order."""

import asyncio
import time

import pytest

from ichicore.live.change import Change, Publish
from server.base.events import Events
from server.realtime.feeds import Feeds
from server.realtime.pg_slot import FeedUnavailable
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
            hub.pump(1)
            waited += 1
        assert feeds.truncated("p1", "public.t")
        for group in groups:
            source.remove(next(iter(peer)), group)
        return waited

    assert one.call(work) >= 5
    assert [client.hear()["type"] for _ in range(3)] == ["change", "broadcast", "error"]
    client.silent()
