"""Folders that every account can reach, whatever pytest does to its own."""

from __future__ import annotations

import pytest

from tests.servers import open_folder, running_server


@pytest.fixture
def folder():
    with open_folder("ichi-node-") as made:
        yield made


@pytest.fixture(scope="module")
def module_folder():
    with open_folder("ichi-node-") as made:
        yield made


@pytest.fixture(scope="module")
def postgres():
    """A database server that nodes may call their own: they choose the password of the role that
    is common to all control databases on it."""
    with running_server(outside=True) as cluster:
        yield cluster
