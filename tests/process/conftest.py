"""Folders that every account can reach, whatever pytest does to its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.servers import running_server


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
    with running_server() as cluster:
        yield cluster
