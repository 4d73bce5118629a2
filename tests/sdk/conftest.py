"""A node and the clients that are called against it, made once for all of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.process.running import RunningNode
from tests.servers import open_folder

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """A folder with the clients, as the lock file pins them."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: apt-get install npm")
    folder = tmp_path_factory.mktemp("sdk")
    for path in (HERE / "package.json", HERE / "package-lock.json", *HERE.glob("*.mjs")):
        shutil.copy(path, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder,
                   check=True, capture_output=True)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def node():
    with open_folder("ichi-node-") as folder:
        running = RunningNode(folder)
        running.start()
        try:
            yield running
        finally:
            running.stop()
