"""Folders that every account can reach, whatever pytest does to its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from server.node.embedded_pg import free_port
from tests.servers import server


def _folder():
    made = Path(tempfile.mkdtemp(prefix="ichi-node-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def folder():
    yield from _folder()


@pytest.fixture(scope="module")
def module_folder():
    yield from _folder()


@pytest.fixture(scope="module")
def postgres():
    """A database server that nodes may call their own: they choose the password of the role that
    is common to all control databases on it."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-pg-"))
    folder.chmod(0o755)
    cluster = server(folder, free_port(), options={"fsync": "off"})
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
