"""Document servers of projects without a node around them."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from server.mongo import embedded
from server.mongo.folders import Folders
from server.mongo.instances import Instances

PASSWORD = "a password of the tests"


@pytest.fixture(scope="module")
def loop():
    """Runs coroutines, all in the same event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A prepared folder of the servers' root folder."""
    root = tmp_path_factory.mktemp("template")
    with open(root / "log", "wb") as log:
        embedded.prepare(root / "template", PASSWORD, log.fileno())
    return root / "template"


@pytest.fixture(scope="module")
def servers(loop, template, tmp_path_factory):
    """A manager's servers, at most three at once; idle ones end soon."""
    folders = Folders(tmp_path_factory.mktemp("servers"))
    folders.tidy()
    folders.template = template
    log = os.open(folders.root / "mongo.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    made = Instances(folders, log, most=3, idle_seconds=0.3)
    loop(made.start())
    yield SimpleNamespace(all=made, folders=folders, log=log)
    loop(made.stop())
    os.close(log)
