"""The functions process as a child of the node."""

from __future__ import annotations

import sys
from pathlib import Path

from server.base import unix
from server.base.context import NodeConfig
from server.base.functions import socket_path
from server.node.children import Child
from server.node.gateway_main import NODE_FILE
from server.node.settings import NodeSettings


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    """One process for the whole node; it ends after the workers, whose calls it serves."""
    path = socket_path(config.data_dir)
    return [
        Child(
            name="functions",
            command=[sys.executable, "-m", "server.functions.main"],
            environment={NODE_FILE: str(config.data_dir / "run" / "node.json")},
            order=20,
            ready=lambda: _answers(path),
            stop_seconds=10.0,
        )
    ]


def _answers(path: Path) -> bool:
    try:
        unix.connect(path).close()
    except OSError:
        return False
    return True
