"""Where the embedded PostgreSQL finds what it loads, and how many it lets in."""

import os
import pwd
import stat

import pytest

from server.base.context import MAX_ENGINES
from server.node import embedded_pg
from server.node.embedded_pg import EmbeddedPostgres
from server.node.supervisor import OWNERS_CONNECTIONS, SPARE_CONNECTIONS, connections


def test_the_module_is_built_where_the_headers_are():
    assert embedded_pg.pace() is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the server runs as another account")
def test_a_module_that_the_account_cannot_read_is_brought_to_it(tmp_path, monkeypatch):
    nobody = pwd.getpwnam("nobody")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "pace.so").write_bytes(b"one")
    monkeypatch.setattr(embedded_pg, "pace", lambda: closed / "pace.so")
    server = EmbeddedPostgres(tmp_path / "data", 1)
    server.data_dir.mkdir()
    assert server._module(None) == closed / "pace.so"
    copy = server._module(nobody)
    assert copy == server.data_dir / "pace.so"
    found = copy.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (nobody.pw_uid, 0o600)
    (closed / "pace.so").write_bytes(b"two")
    assert server._module(nobody) == copy
    assert copy.read_bytes() == b"two"
    monkeypatch.setattr(embedded_pg, "pace", lambda: None)
    assert server._module(nobody) is None


@pytest.mark.parametrize(("workers", "pooled"), [(1, 1), (1, 60), (8, 60), (64, 200)])
def test_neither_the_node_nor_the_owners_are_kept_out_by_the_other(workers, pooled):
    options = {name: int(value) for name, value in connections(workers, pooled).items()}
    node = workers * (pooled + MAX_ENGINES) + SPARE_CONNECTIONS
    most, reserved = options["max_connections"], options["reserved_connections"]
    assert most - node - OWNERS_CONNECTIONS >= reserved  # an owner still comes in
    assert reserved >= node  # what owners leave, when they have come first
    assert options["max_locks_per_transaction"] * most >= 15_000
