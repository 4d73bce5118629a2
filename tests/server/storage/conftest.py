"""The whole suite runs on both stores: a folder, and a real object store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.storage.node import Files
from tests.server.storage.s3server import S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["disk", "s3"])
def files(request: pytest.FixtureRequest) -> Iterator[Files]:
    """A node of two workers whose default project keeps its files in the named store."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-files-"))
    folder.chmod(0o755)
    environment = {}
    if request.param == "s3":
        environment = request.getfixturevalue("s3").environment()
    node = Files(folder, request.param, environment)
    try:
        node.begin()
        yield node
    finally:
        node.end()
        shutil.rmtree(folder, ignore_errors=True)
