"""The realtime process as a child of the node."""

from __future__ import annotations

import sys

from server.base.context import NodeConfig
from server.node.children import Child, answers
from server.node.files import DataDir
from server.node.gateway_main import NODE_FILE
from server.node.ports import kept_port
from server.node.settings import NodeSettings

LISTEN = "ICHIBASE_REALTIME_LISTEN"  # host and port, with a space between them


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """One process of a node serves all its sockets."""
    data = DataDir(settings.data_dir)
    host = settings.realtime_host
    port = settings.realtime_port or kept_port(data, "realtime", host, seconds=5)
    return [
        Child(
            name="realtime",
            command=[sys.executable, "-m", "server.realtime.main"],
            environment={NODE_FILE: str(data.node_file), LISTEN: f"{host} {port}"},
            order=30,
            ready=lambda: answers(host, port),
            stop_seconds=10,
        )
    ]
