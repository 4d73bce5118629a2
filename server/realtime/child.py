"""The realtime process as a child of the node."""

from __future__ import annotations

import sys

from server.base.context import NodeConfig
from server.node.children import Child, answers
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
            ready=lambda: answers(host, port),
            stop_seconds=10,
        )
    ]
