"""The embedded document servers with their manager, without a node around them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from server.mongo import embedded
from server.mongo.address import DocumentServer
from server.mongo.provision import Documents
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
PASSWORD = "a password of the tests"


@contextlib.contextmanager
def running_documents(root):
    """A manager with its files below `root`, as the administrator of its servers reaches it."""
    folder, password, desk = root / "mongo", root / "password", root / "documents.sock"
    password.write_text(PASSWORD)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "server.mongo.manager", str(folder), str(desk), str(port),
         str(password)],
        cwd=ROOT,
    )  # fmt: skip
    url = embedded.admin_url(port, PASSWORD)
    yield Documents(DocumentServer(
        kind="embedded", admin_url=url, address=embedded.address(port), folder=str(folder),
        desk=str(desk), port=port,
    ))  # fmt: skip
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # it ends what it computes first
        process.kill()
        process.wait()
