"""Fixtures shared by all tests: a real PostgreSQL, started once a session."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from server.node.embedded_pg import EmbeddedPostgres, free_port
from tests.servers import server


@pytest.fixture(scope="session")
def pg_cluster() -> Iterator[EmbeddedPostgres]:
    """A running embedded cluster (superuser DSN: pg_cluster.dsn())."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-pg-"))
    folder.chmod(0o755)
    cluster = server(folder, free_port(), options={"fsync": "off", "max_connections": "300"})
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pg_database(pg_cluster: EmbeddedPostgres) -> Iterator[str]:
    """A new empty database; gives its superuser DSN."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
    yield pg_cluster.dsn(name)
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'drop database "{name}" with (force)')
