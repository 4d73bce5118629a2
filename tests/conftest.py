"""Fixtures shared by all tests: a real PostgreSQL, started once a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from server.node.embedded_pg import EmbeddedPostgres
from tests.server.storage.s3server import S3Server
from tests.server.storage.troubled import Troubled
from tests.servers import running_server

# How long an example takes says as much about the machine as about the code.
settings.register_profile(
    "tests", settings.default, deadline=None,
    suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("tests")


@pytest.fixture(scope="session")
def pg_cluster() -> Iterator[EmbeddedPostgres]:
    """A running embedded cluster (superuser DSN: pg_cluster.dsn())."""
    with running_server(max_connections="300") as cluster:
        yield cluster


@pytest.fixture
def pg_database(pg_cluster: EmbeddedPostgres) -> Iterator[str]:
    """A new empty database; gives its superuser DSN."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
    yield pg_cluster.dsn(name)
    with psycopg.connect(pg_cluster.dsn(), autocommit=True) as admin:
        admin.execute(f'drop database "{name}" with (force)')


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A real object store."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def troubled(s3: S3Server) -> Iterator[Troubled]:
    """Stands in front of it, and does what it is told to."""
    between = Troubled(s3.url)
    yield between
    between.stop()
