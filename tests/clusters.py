"""The tests' own PostgreSQL as a cluster of projects."""

from __future__ import annotations

from server.control.database import Cluster
from server.node.embedded_pg import EmbeddedPostgres


def cluster_of(server: EmbeddedPostgres, database: str) -> Cluster:
    """database: of the control plane; each module of tests has its own."""
    return Cluster(
        kind="embedded", admin_dsn=server.dsn(), host="127.0.0.1", port=server.port,
        socket_dir=str(server.socket_dir), database=database,
    )  # fmt: skip
