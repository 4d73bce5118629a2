"""The node that the tests share which need nothing special of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode


@pytest.fixture(scope="package")
def project():
    """The functions of its default project."""
    folder = Path(tempfile.mkdtemp(prefix="ichi-node-"))
    folder.chmod(0o755)
    running = RunningNode(folder)
    running.environment["ICHIBASE_PUBLIC_URL"] = running.url
    running.start()
    try:
        yield Project(running)
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)
