"""The realtime process as a child of the node."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from server.base.context import NodeConfig
from server.node.children import Child
from server.node.embedded_pg import free_port
from server.node.files import DataDir
from server.node.gateway_main import NODE_FILE
from server.node.settings import NodeSettings

LISTEN = "ICHIBASE_REALTIME_LISTEN"  # host and port, with a space between them


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """One process of a node serves all its sockets."""
    data = DataDir(settings.data_dir)
    port = settings.realtime_port or data.number("realtime_port", free_port)
    host = settings.realtime_host
    return [
        Child(
            name="realtime",
            command=[sys.executable, "-m", "server.realtime.main"],
            environment={NODE_FILE: str(data.node_file), LISTEN: f"{host} {port}"},
            order=30,
            ready=lambda: _answers(host, port),
            stop_seconds=10,
        )
    ]


def _answers(host: str, port: int) -> bool:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    try:
        with urllib.request.urlopen(f"http://{shown}:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
