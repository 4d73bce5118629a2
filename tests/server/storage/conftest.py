"""The whole suite runs on several stores: a folder and real object stores.

ICHIBASE_TEST_STORES names them, separated by commas: disk, s3, gcs, azure. By default those two
whose server the tests install themselves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.storage.azureserver import AzureServer
from tests.server.storage.gcsserver import GcsServer
from tests.server.storage.node import Files
from tests.server.storage.s3server import S3Server

STORES = os.environ.get("ICHIBASE_TEST_STORES", "disk,s3").split(",")
SERVERS: dict[str, Any] = {"s3": S3Server, "gcs": GcsServer, "azure": AzureServer}


@pytest.fixture(scope="session", params=STORES)
def files(request: pytest.FixtureRequest) -> Iterator[Files]:
    """A node of two workers whose default project keeps its files in the named store."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-files-"))
    folder.chmod(0o755)
    server = None if request.param == "disk" else SERVERS[request.param]()
    node = Files(folder, request.param, server.environment() if server else {})
    try:
        node.begin()
        yield node
    finally:
        node.end()
        if server:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
