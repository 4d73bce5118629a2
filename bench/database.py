"""A PostgreSQL of its own for a benchmark of the core alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from server.base.ports import free_port
from server.node.embedded_pg import EmbeddedPostgres


@contextmanager
def database(schema: str) -> Iterator[str]:
    """The superuser's connection string of a new cluster in which the schema has been made."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-bench-"))
    folder.chmod(0o755)
    cluster = EmbeddedPostgres(folder, free_port())
    try:
        cluster.start()
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute(schema)
        yield cluster.dsn()
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
