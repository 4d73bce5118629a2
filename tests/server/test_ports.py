"""Ports that a node chooses for its own listeners."""

import socket

import pytest

from server.base.ports import PortTakenError
from server.node.files import DataDir
from server.node.ports import check_port, kept_port


@pytest.fixture
def data(tmp_path):
    found = DataDir(tmp_path)
    found.prepare()
    return found


def listening(port):
    return socket.create_server(("127.0.0.1", port))


def test_a_port_is_chosen_once_and_kept_until_somebody_else_has_it(data):
    first = kept_port(data, "realtime")
    assert kept_port(data, "realtime") == first
    with listening(first):
        other = kept_port(data, "realtime")
        assert other != first
    assert kept_port(data, "realtime") == other


def test_a_broken_file_is_written_anew(data):
    (data.run / "mongo_port").write_text("")
    port = kept_port(data, "mongo")
    assert (data.run / "mongo_port").read_text() == f"{port}\n"


def test_two_listeners_of_a_node_are_not_given_the_same_port(data, monkeypatch):
    given = iter([20001, 20001, 20002])
    monkeypatch.setattr("server.node.ports.free_port", lambda: next(given))
    assert kept_port(data, "mongo") == 20001
    assert kept_port(data, "postgres") == 20002


def test_a_port_that_stays_taken_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        clock = iter(range(0, 100, 3))
        monkeypatch.setattr("server.node.ports.time.monotonic", lambda: next(clock))
        with pytest.raises(PortTakenError, match=f"127.0.0.1:{port} is in use"):
            check_port("127.0.0.1", port)
