"""The node that the tests share which need nothing special of it."""

from __future__ import annotations

import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode
from tests.servers import open_folder


@pytest.fixture(scope="package")
def project():
    """The functions of its default project."""
    with open_folder("ichi-node-") as folder:
        running = RunningNode(folder)
        running.environment["ICHIBASE_PUBLIC_URL"] = running.url
        running.start()
        try:
            yield Project(running)
        finally:
            running.stop()
