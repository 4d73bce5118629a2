"""A control database of its own and the projects in it."""

from __future__ import annotations

import asyncio

import pytest

from server.base.context import NodeConfig
from server.control.database import Cluster, prepare
from server.control.projects import Projects
from tests.clusters import cluster_of
from tests.server.tiers.shop import Shop, run


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


@pytest.fixture(scope="module")
def shop(world, tmp_path_factory):
    made = Shop(world, "shop", data_dir=tmp_path_factory.mktemp("plain"))
    yield made
    run(made.projects().delete("shop"))


@pytest.fixture(scope="module")
def sealed(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    key = folder / "key"
    key.write_text("a passphrase that nobody guesses\n")
    made = Shop(world, "sealed", data_dir=folder, backup_key_file=key)
    yield made
    run(made.projects().delete("sealed"))


@pytest.fixture(scope="module")
def backup(shop):
    return shop.backup()


@pytest.fixture(scope="module")
def sealed_backup(sealed):
    return sealed.backup()
