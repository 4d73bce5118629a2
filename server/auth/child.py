"""The process of a node that hashes passwords."""

from __future__ import annotations

import sys

from server.auth.hashsocket import socket_path
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
            late=True,  # until it is there, workers hash by themselves
            stop_seconds=5.0,
        )
    ]
