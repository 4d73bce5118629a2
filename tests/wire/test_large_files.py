"""Large files over a real socket: their bytes, what slow readers cost, clients that leave."""

import asyncio
import http.client
import os
import random
import socket
import time

import psutil
import pytest

from server.control.lifecycle import Lifecycle
from server.gateway import largefile
from tests.wire.test_gateway import until

SIZE = 48 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(random.Random(1).randbytes(1 << 20) * (SIZE >> 20) + b"end")
    return path


def ask(path, offset, length, version="1.1"):
    return f"GET /storage/piece/{offset}/{length}?{path} HTTP/{version}\r\nHost: a\r\n\r\n".encode()


def worker(echo):
    """The process that serves."""
    return max(
        psutil.Process(echo.process.pid).children(recursive=True),
        key=lambda process: process.memory_info().rss,
    )


def body(peer, length, pause=0.0):
    """Reads an answer off the connection."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += peer.recv(1 << 16)
    head, _, got = got.partition(b"\r\n\r\n")
    assert f"content-length: {length}\r\n".encode() in head.lower() + b"\r\n"
    parts, held = [got], len(got)
    while held < length:
        piece = peer.recv(1 << 20)
        if not piece:
            break
        parts.append(piece)
        held += len(piece)
        time.sleep(pause)
    return b"".join(parts)


def test_this_system_tells_how_far_a_connection_is():
    assert largefile.works()
    assert largefile.Flow.of("127.0.0.1:1") is None  # nobody has that address
    assert largefile.Flow.of("unix") is None
    assert largefile.Flow.of("[::1%eth0]:70000") is None


def test_pieces_one_after_the_other_on_one_connection(echo, large):
    data = large.read_bytes()
    ends = [
        (0, len(data)),
        (7, len(data) - 7),
        (12_345, 4 << 20),
        (0, 100),
        (len(data) - 5_000_000, 5_000_000),
    ]
    with socket.create_connection(("127.0.0.1", echo.port), timeout=20) as peer:
        for offset, length in ends:
            peer.sendall(ask(large, offset, length))
            assert body(peer, length) == data[offset : offset + length]


def test_a_slow_reader_gets_it_whole_and_costs_no_memory(echo, large):
    process = worker(echo)
    before = process.memory_info().rss
    peers = [socket.create_connection(("127.0.0.1", echo.port), timeout=20) for _ in range(50)]
    length = SIZE + 3
    for peer in peers:
        peer.sendall(ask(large, 0, length))
    time.sleep(1.5)
    assert process.memory_info().rss - before < 40 << 20
    assert body(peers[0], length, 0.002) == large.read_bytes()
    assert process.memory_info().rss - before < 40 << 20
    for peer in peers:
        peer.close()


def test_what_a_client_leaves_behind_is_closed(echo, large):
    process = worker(echo)

    def held():
        return [file for file in process.open_files() if file.path == str(large)]

    until(lambda: not held())
    peer = socket.create_connection(("127.0.0.1", echo.port), timeout=20)
    peer.sendall(ask(large, 0, SIZE))
    peer.recv(1000)
    until(held)
    peer.close()
    until(lambda: not held())


def test_a_file_that_became_shorter_breaks_off(echo, large, tmp_path):
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(5 << 20))
    with socket.create_connection(("127.0.0.1", echo.port), timeout=20) as peer:
        peer.sendall(ask(path, 0, 6 << 20))
        assert len(body(peer, 6 << 20)) == 5 << 20
    assert echo.call("GET", "/healthz").status == 200


def test_one_that_is_gone_is_not_found(echo, tmp_path):
    connection = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=20)
    connection.request("GET", f"/storage/piece/0/{8 << 20}?{tmp_path}/none", headers={"host": "a"})
    answer = connection.getresponse()
    assert answer.status == 404
    connection.close()


def test_without_the_kernels_word_the_server_sends_it(large, monkeypatch):
    sent = []

    class Protocol:
        def response_file_range(self, *what):
            sent.append(what)

    monkeypatch.setattr(largefile.Flow, "of", lambda client: None)
    descriptors = len(os.listdir("/proc/self/fd"))
    asyncio.run(largefile.send(Protocol(), 200, [], (str(large), 5, 10), "127.0.0.1:9"))
    assert sent == [(200, [], str(large), 5, 15)]
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture(scope="module")
def metered(control, echo):
    """A project of which a worker passes on ten megabytes a second."""
    control.make("metered")
    change = {"limits": {"traffic": 10_000_000}}
    asyncio.run(Lifecycle(control.projects).change("metered", change, "test"))
    until(lambda: echo.call("GET", "/storage/x", host="metered.localhost").status == 200)
    time.sleep(0.5)
    return "metered.localhost"


def spends(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.mark.parametrize("length", [8 << 20, 1 << 20])
def test_files_of_a_metered_project_leave_at_its_rate(echo, large, metered, length):
    data = large.read_bytes()

    def get(host):
        peer = socket.create_connection(("127.0.0.1", echo.port), timeout=30)
        with peer:
            for offset in range(0, 8 << 20, length):
                head = ask(large, offset, length)
                peer.sendall(head.replace(b"Host: a", f"Host: {host}".encode()))
                assert body(peer, length) == data[offset : offset + length]

    took = spends(lambda: get(metered))
    assert took >= 0.35  # of 0.8 s a quarter is let through at once, and one piece is ahead
    get("127.0.0.1")  # others are not held up by it


def test_a_metered_client_that_leaves_is_forgotten(echo, large, metered):
    process = worker(echo)
    peers = []
    for _ in range(270):  # more than may be slowed at once
        peer = socket.create_connection(("127.0.0.1", echo.port), timeout=20)
        head = ask(large, 0, SIZE)
        peer.sendall(head.replace(b"Host: a", f"Host: {metered}".encode()))
        peers.append(peer)
    peers[0].recv(1000)
    for peer in peers:
        peer.close()
    until(lambda: not [file for file in process.open_files() if file.path == str(large)])


def test_bodies_of_a_metered_project_are_read_at_its_rate(echo, metered):
    content = b"x" * 90_000

    def post():
        for _ in range(100):
            answer = echo.call("POST", "/storage/x", body=content, host=metered)
            assert answer.json["length"] == len(content)

    time.sleep(0.3)
    assert spends(post) >= 0.55
