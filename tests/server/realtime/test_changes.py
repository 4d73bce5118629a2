"""The way to the realtime process: order, bounds, a peer that is away."""

import asyncio

import orjson
import pytest

from ichicore.errors import ApiError
from server.base import changes
from server.base.changes import ChangeSink, Unframer, framed


class Receiver(asyncio.Protocol):
    def __init__(self, answer=None):
        self.got = []
        self.answer = answer
        self.unframer = Unframer()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for text in self.unframer.feed(data):
            message = orjson.loads(text)
            self.got.append(message)
            if self.answer is not None and "id" in message:
                self.transport.write(framed({"id": message["id"], "delivered": self.answer}))


async def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_messages_sent_before_the_process_is_there_arrive_in_order(tmp_path):
    async def run():
        sink = ChangeSink(tmp_path / "s")
        for number in range(5):
            assert sink.send("p", "orders", [{"event": "insert", "record": {"n": number}}])
        assert sink.send("p", "orders", [])  # nothing to tell
        receiver = Receiver()
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: receiver, str(tmp_path / "s"))
        await wait_for(lambda: len(receiver.got) == 5)
        sink.send("p", "orders", [{"event": "delete", "record": b'{"_id":"a"}', "old": None}])
        await wait_for(lambda: len(receiver.got) == 6)
        await sink.stop()
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()
        return receiver.got

    got = asyncio.run(run())
    assert [m["events"][0]["record"] for m in got] == [*({"n": n} for n in range(5)), {"_id": "a"}]
    assert got[0] == {
        "kind": "mongo", "project": "p", "collection": "orders",
        "events": [{"event": "insert", "record": {"n": 0}, "old": None}],
    }  # fmt: skip


def test_a_publish_gets_its_answer_and_503_without_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "CONNECT_SECONDS", 1.2)

    async def run():
        sink = ChangeSink(tmp_path / "s")
        with pytest.raises(ApiError) as away:
            await sink.publish("p", ["a"], "e", b"1")
        receiver = Receiver(answer=7)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: receiver, str(tmp_path / "s"))
        delivered = await sink.publish("p", ["a"], "e", b'{"x":1}')
        await sink.stop()
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()
        return away.value.status, delivered, len(receiver.got)

    assert asyncio.run(run()) == (503, 7, 1)


def test_a_project_that_sends_too_many_is_told(tmp_path):
    class Refusing(Receiver):
        def data_received(self, data):
            for text in self.unframer.feed(data):
                number = orjson.loads(text)["id"]
                self.transport.write(framed({"id": number, "refused": True}))

    async def run():
        sink = ChangeSink(tmp_path / "s")
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Refusing, str(tmp_path / "s"))
        with pytest.raises(ApiError) as refused:
            await sink.publish("p", ["a"], "e", b"1")
        await sink.stop()
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()
        return refused.value.status, refused.value.headers

    assert asyncio.run(run()) == (429, (("retry-after", "1"),))


def test_what_waits_is_bounded_and_the_loss_counted(tmp_path):
    async def run():
        sink = ChangeSink(tmp_path / "s", buffer=1_000)
        results = [
            sink.send("p", "orders", [{"event": "insert", "record": {"text": "x" * 200}}])
            for _ in range(10)
        ]
        await sink.stop()
        return results, sink.dropped

    results, dropped = asyncio.run(run())
    assert results == [True] * 3 + [False] * 7
    assert dropped == 7


def test_a_stream_is_cut_into_messages_wherever_it_breaks():
    data = b"".join(framed({"n": n, "text": "ä" * n}) for n in range(20))
    for step in (1, 2, 3, 7, 1000):
        unframer = Unframer()
        found = []
        for start in range(0, len(data), step):
            found += unframer.feed(data[start : start + step])
        assert [orjson.loads(text)["n"] for text in found] == list(range(20))
    with pytest.raises(ValueError):
        Unframer(limit=10).feed(framed({"text": "longer than that"}))
