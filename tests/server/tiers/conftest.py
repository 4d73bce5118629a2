"""A control database of its own and the projects in it."""

from __future__ import annotations

import asyncio

import pytest

from server.base.context import NodeConfig
from server.control.database import Cluster, prepare
from server.control.projects import Projects
from tests.clusters import cluster_of


class World:
    """A control database on the session's cluster. fresh(): as another process sees it."""

    def __init__(self, cluster: Cluster, dsn: str, config: NodeConfig) -> None:
        self.cluster = cluster
        self.dsn = dsn
        self.config = config

    def fresh(self) -> Projects:
        return Projects(self.dsn, {self.cluster.id: self.cluster}, self.config)


@pytest.fixture(scope="session")
def world(pg_cluster, tmp_path_factory):
    cluster = cluster_of(pg_cluster, "control_tiers")
    dsn = asyncio.run(prepare(cluster, "control password"))
    return World(cluster, dsn, NodeConfig(data_dir=tmp_path_factory.mktemp("d"), control_dsn=dsn))
