"""The client over unix sockets, against answers of every framing in pieces of every size."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from server.base.functions import Functions
from server.base.unixhttp import HIGH_WATER, BadAnswer, PeerClosed, Pool

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@asynccontextmanager
async def serving(answer):
    """A socket that answers each request head by `await answer(reader, writer)`."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-uds-"))

    async def talk(reader, writer):
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(talk, str(folder / "s"))
    pool = Pool(str(folder / "s"))
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        await asyncio.sleep(0)
        shutil.rmtree(folder)


def pieces(raw, cuts):
    marks = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return [raw[a:b] for a, b in itertools.pairwise(marks)]


async def whole(pool):
    connection = pool.idle() or await pool.connect()
    answer = await connection.request(REQUEST)
    if answer.body is not None:
        return answer, answer.body
    return answer, b"".join([part async for part in answer.stream])


def framed(kind, body):
    head = b"HTTP/1.1 200 OK\r\nX-A: b\r\n"
    if kind == "length":
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    if kind == "chunked":
        parts = [body[i : i + 7] for i in range(0, len(body), 7)]
        chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
        return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-trailer: 1\r\n\r\n"
    return b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"content-length: 0\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["length", "chunked", "none"]),
    body=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 250), max_size=12),
)
def test_any_framing_in_any_pieces(kind, body, cuts):
    async def answer(reader, writer):
        for piece in pieces(framed(kind, body), cuts):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async def run():
        async with serving(answer) as pool:
            for _ in range(2):  # the second on the connection of the first
                found, text = await whole(pool)
                assert found.status == 200
                assert ("x-a", "b") in found.headers
                assert text == (b"" if kind == "none" else body)
            kept = pool.idle()
            assert kept is not None
            assert pool.idle() is None

    asyncio.run(run())


@pytest.mark.parametrize(
    "raw",
    [b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"nonsense\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"x" * 70_000],
)  # fmt: skip
def test_what_is_no_answer_is_refused(raw):
    async def answer(reader, writer):
        writer.write(raw)

    async def run():
        async with serving(answer) as pool:
            with pytest.raises((BadAnswer, PeerClosed)):
                await whole(pool)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raw", "begun"),
    [(b"", False), (b"HTTP/1.1 2", True),
     (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", True),
     (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", True),
     (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab", True)],
)  # fmt: skip
def test_an_answer_that_breaks_off_is_told(raw, begun):
    async def answer(reader, writer):
        writer.write(raw)
        await writer.drain()
        writer.close()

    async def run():
        async with serving(answer) as pool:
            with pytest.raises(PeerClosed) as caught:
                await whole(pool)
            assert caught.value.begun == begun
            assert pool.idle() is None

    asyncio.run(run())


def test_a_reader_that_waits_holds_up_the_sender():
    sent = 0

    async def answer(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(400):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def run():
        async with serving(answer) as pool:
            connection = await pool.connect()
            found = await connection.request(REQUEST)
            await asyncio.sleep(0.2)
            assert sent < HIGH_WATER + (2 << 20)
            size = 0
            async for part in found.stream:
                size += len(part)
            assert size == 400 * 65536
            found = await (await pool.connect()).request(REQUEST)
            await found.stream.aclose()

    asyncio.run(run())


def test_a_free_connection_that_the_peer_closes_is_no_failure_of_the_next_call(tmp_path):
    """Each connection answers one request, and ends when another comes."""
    path = str(tmp_path / "s")
    seen, ended = [], []

    async def serve(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        await reader.read(1)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.append(writer)

    class OneLease:
        pool = Pool(path)

    async def go():
        server = await asyncio.start_unix_server(serve, path)
        functions = Functions(tmp_path)
        try:
            for number in range(3):
                answer = await functions.send(OneLease, b"GET /%d HTTP/1.1\r\n\r\n" % number)
                assert (answer.status, answer.body) == (200, b"ok")
        finally:
            OneLease.pool.close()
            server.close()
            while len(ended) < len(seen):
                await asyncio.sleep(0.01)

    asyncio.run(go())
    assert [head.split()[1] for head in seen] == [b"/0", b"/1", b"/2"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("dies", "taken"),
    [("before", False), ("unseen", False), ("waiting", False), ("unread", False), ("read", True),
     ("large", True)],
)  # fmt: skip
def test_it_is_known_whether_a_peer_that_ends_has_read_of_the_request(tmp_path, loop, dies, taken):
    """A request may be sent again to another process when it has not."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(8)

    async def go():
        pool = Pool(str(tmp_path / "s"))
        connection = await pool.connect()
        peer = None if dies == "waiting" else listener.accept()[0]
        if dies in ("before", "unseen"):
            peer.close()
            if dies == "unseen":
                await asyncio.sleep(0)
        answer = connection.request(REQUEST if dies != "large" else REQUEST + b"x" * 10_000)
        await asyncio.sleep(0.02)
        if dies == "waiting":
            listener.close()
        elif dies in ("unread", "read", "large"):
            if dies != "unread":
                peer.recv(100)
            peer.close()
        with pytest.raises(PeerClosed) as caught:
            await asyncio.wait_for(answer, 10)
        assert (caught.value.begun, caught.value.taken) == (False, taken)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(go())
    listener.close()
