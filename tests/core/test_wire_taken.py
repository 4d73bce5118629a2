"""Connections that another process has accepted, and those that are not read for a while."""

import os
import socket

import pytest

from ichicore.live.wire import encode
from tests.core.talk import Echo, Talk, close_talks  # noqa: F401 - a fixture
from tests.oracle.websocket import CLOSE, TEXT, frame


def test_a_socket_with_a_request_that_was_read_already():
    echo = Echo()
    client, server = socket.socketpair()
    client.setblocking(False)
    server.setblocking(False)
    echo.wire.take(server.detach(), b"GET / HTTP/1.1\r\n\r\n" + frame(TEXT, b"early"))
    echo.wire.flush()
    assert client.recv(100).startswith(b"HTTP/1.1 101")
    assert echo.messages == [(b"early", True)]
    client.sendall(frame(TEXT, b"more"))
    echo.wire.ready()
    assert echo.messages[1:] == [(b"more", True)]
    for bad in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with pytest.raises(OSError):
            echo.wire.take(os.open("/dev/null", os.O_RDONLY), bad)  # and the descriptor is closed
    client.close()
    echo.wire.ready()
    assert echo.closes == [1006]
    assert not echo.wire.peers


def test_a_connection_that_has_ended_is_not_seen_again_though_another_process_has_it_too():
    talk, other = Talk(), Talk()
    client, server = socket.socketpair()
    server.setblocking(False)
    talk.echo.wire.take(os.dup(server.fileno()), b"GET / HTTP/1.1\r\n\r\n")
    client.sendall(frame(TEXT, b"a") + frame(TEXT, b"b"))
    talk.echo.wire.peers[-1].abort()
    for _ in range(3):
        talk.echo.wire.ready()
    assert not talk.echo.messages
    other.write(frame(TEXT, b"c"))
    client.close()
    server.close()


def test_what_is_held_is_not_read_until_it_goes_on():
    talk = Talk()
    talk.peer.hold()
    talk.write(frame(TEXT, b"late"))
    assert not talk.echo.messages
    talk.peer.send(encode(b"told"))  # it is still written to, also when it has to be waited for
    talk.turn()
    assert talk.frames() == [(TEXT, b"told")]
    talk.peer.go_on()
    talk.turn()
    assert talk.echo.messages == [(b"late", True)]
    talk.peer.hold()
    talk.peer.close(1000)
    talk.write(frame(CLOSE, b"\x03\xe8"))
    assert talk.ended  # a close is answered nevertheless


def test_a_request_that_is_held_is_answered_later_or_ends():
    class Slow(Echo):
        def request(self, peer, head):
            self.peer = peer
            peer.hold(20)

    echo = Slow(request_seconds=1)
    for answered in (True, False):
        client, server = socket.socketpair()
        client.setblocking(False)
        server.setblocking(False)
        now = echo.wire.now
        echo.wire.take(server.detach(), b"GET / HTTP/1.1\r\n\r\n")
        assert echo.peer.waiting
        echo.wire.sweep(now + 15, 0)
        assert echo.peer.waiting
        if answered:
            echo.peer.upgrade(b"HTTP/1.1 101 OK\r\n\r\n", echo)
            echo.wire.flush()
            assert client.recv(100).startswith(b"HTTP/1.1 101")
            client.sendall(frame(TEXT, b"a"))
            echo.wire.ready()
            assert echo.messages == [(b"a", True)]
        else:
            echo.wire.sweep(now + 40, 0)
            assert not echo.peer.waiting
            assert client.recv(100) == b""
        client.close()
