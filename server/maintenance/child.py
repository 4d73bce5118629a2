"""The maintenance as a process of the node."""

from __future__ import annotations

import sys

from server.base.context import NodeConfig
from server.node.children import Child
from server.node.gateway_main import NODE_FILE
from server.node.settings import NodeSettings


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """Starts after the listeners: nobody waits for it."""
    return [
        Child(
            name="maintenance",
            command=[sys.executable, "-m", "server.maintenance.main"],
            environment={NODE_FILE: str(config.data_dir / "run" / "node.json")},
            order=50,
        )
    ]
