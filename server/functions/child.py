"""The functions process as a child of the node."""

from __future__ import annotations

import sys

from server.base.context import NodeConfig
from server.node.children import Child
from server.node.gateway_main import NODE_FILE
from server.node.settings import NodeSettings


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """One process for the whole node; it ends after the workers, whose calls it serves and which
    try again for a while when it is not there yet."""
    return [
        Child(
            name="functions",
            command=[sys.executable, "-m", "server.functions.main"],
            environment={NODE_FILE: str(config.data_dir / "run" / "node.json")},
            order=20,
            late=True,
            stop_seconds=10.0,
        )
    ]
