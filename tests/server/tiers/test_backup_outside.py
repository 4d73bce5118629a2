"""Backups where the node is a guest: a server outside with a manager that is no superuser, and an
object store."""

import asyncio

import psycopg
import pytest

from server.base.context import NodeConfig
from server.control.database import external_cluster, prepare
from tests.server.tiers.conftest import World
from tests.server.tiers.shop import Shop, databases, roles
from tests.servers import running_server


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    with running_server(outside=True) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(
                "create role manager login createdb createrole bypassrls password 'manager'"
            )
        cluster = external_cluster(f"postgresql://manager:manager@127.0.0.1:{server.port}/postgres")
        dsn = asyncio.run(prepare(cluster, "control password"))
        config = NodeConfig(data_dir=tmp_path_factory.mktemp("outside"), control_dsn=dsn)
        yield World(cluster, dsn, config)


def test_a_manager_that_is_no_superuser_backs_up_verifies_and_restores(outside):
    shop = Shop(outside, "guest")
    facts = shop.facts()
    backup = shop.backup()
    before = databases(shop), roles(shop)
    state, result, error = shop.job("verify", backup=backup)
    assert (state, error, result["warnings"]) == ("done", None, [])
    assert (databases(shop), roles(shop)) == before
    with shop.session() as owner:
        owner.execute("truncate notes cascade")
    state, result, error = shop.job("restore", backup=backup)
    assert (state, error, result["warnings"]) == ("done", None, [])
    assert shop.facts() == facts
    state, result, error = shop.job("restore", backup=backup, into="guest-two")
    assert (state, error, result["warnings"]) == ("done", None, [])
    assert shop.facts("guest-two")[0] == facts[0]


def test_backups_are_kept_in_an_object_store(outside, s3, monkeypatch):
    environment = s3.environment("backups")
    url = environment.pop("ICHIBASE_STORAGE_URL")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shop = Shop(outside, "remote", backup_url=url)
    facts = shop.facts()
    backup = shop.backup()
    assert not shop.folder(backup).exists()
    assert shop.job("verify", backup=backup)[0] == "done"
    with shop.session() as owner:
        owner.execute("truncate notes cascade")
    assert shop.job("restore", backup=backup)[0] == "done"
    assert shop.facts() == facts
    with psycopg.connect(outside.dsn, autocommit=True) as control:
        control.execute("delete from backups")
    assert shop.job("scan")[1]["found"] == [backup]
    assert shop.job("remove", backup=backup)[0] == "done"
    assert shop.job("scan")[1]["found"] == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another one")
    state, _, error = shop.job("backup", kind="manual")
    assert state == "failed"
    assert "cannot" in error
