"""A node and the clients that are called against it, made once for all of them."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.process.running import RunningNode

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
    folder = Path(tempfile.mkdtemp(prefix="ichi-node-"))
    folder.chmod(0o755)
    running = RunningNode(folder)
    running.start()
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)
