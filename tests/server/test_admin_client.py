"""What a command says when the node of its data folder is away, hangs or is about to answer."""

import fcntl
import http.server
import json
import socket
import threading
import time

import pytest

from server.cli import client
from server.cli.client import AdminClient, CommandError


@pytest.fixture
def folder(tmp_path):
    """A data folder whose node ended without tidying up."""
    (tmp_path / "run").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "admin_token").write_text("token\n")
    (tmp_path / "run" / "lock").touch()
    return tmp_path


@pytest.fixture
def held(folder):
    """The same while its node has the lock."""
    with (folder / "run" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def tell(folder, port):
    node = {
        "host": "127.0.0.1", "port": port, "config": {"admin_url": f"http://127.0.0.1:{port}"},
    }  # fmt: skip
    (folder / "run" / "node.json").write_text(json.dumps(node))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"path": "%b"}' % self.path.encode())

    def log_message(self, *_):
        pass


def serving(port):
    server = http.server.HTTPServer(("127.0.0.1", port), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_node_that_was_killed_is_known_at_once(folder):
    tell(folder, free_port())
    began = time.monotonic()
    with pytest.raises(CommandError, match=r"no node runs on .*; start one with: ichibase serve"):
        AdminClient(folder)
    assert time.monotonic() - began < 1


def test_a_node_that_hangs_is_told_soon_whatever_the_command_may_take(held, monkeypatch):
    monkeypatch.setattr(client, "ANSWER_WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tell(held, silent.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(CommandError, match=r"hangs: .*stop it and start it again"):
            AdminClient(held).call("GET", "/admin/v1/projects", seconds=3600)
        with pytest.raises(CommandError, match="hangs"):
            AdminClient(held).reach({"url": "http://127.0.0.1"})
    assert time.monotonic() - began < 3


def test_a_listener_that_is_not_there_yet_is_waited_for(held):
    port = free_port()
    tell(held, port)
    servers = []
    timer = threading.Timer(0.3, lambda: servers.append(serving(port)))
    timer.start()
    assert AdminClient(held).call("GET", "/somewhere") == {"path": "/somewhere"}
    timer.join()
    servers[0].shutdown()
    servers[0].server_close()


def test_nobody_listening_is_told_after_a_while(held, monkeypatch):
    monkeypatch.setattr(client, "START_WAIT", 0.2)
    tell(held, free_port())
    with pytest.raises(CommandError, match=r"does not answer at .*start it with"):
        AdminClient(held).call("GET", "/somewhere")


def test_no_proxy_of_the_environment_sees_the_token(held, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    server = serving(0)
    tell(held, server.server_port)
    assert AdminClient(held).call("GET", "/here") == {"path": "/here"}
    server.shutdown()
    server.server_close()
