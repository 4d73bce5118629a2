"""The process of a node that hashes passwords."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from server.auth.hashsocket import reachable, socket_path
from server.base.context import NodeConfig
from server.node.children import Child
from server.node.settings import NodeSettings


def children(settings: NodeSettings, config: NodeConfig) -> list[Child]:
    path = socket_path(config.data_dir)
    return [
        Child(
            name="passwords",
            command=[sys.executable, "-m", "server.auth.main", str(path)],
            # A hash walks 19 MiB at random: huge pages save a twentieth of its time.
            environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
            ready=lambda: _listens(path),
            stop_seconds=5.0,
        )
    ]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, reachable(path) as short:
        try:
            probe.connect(short)
        except OSError:
            return False
    return True
