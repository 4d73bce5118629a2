"""Every method of the published client, with its options and refusals, on a node of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from server.functions.confine import deno_binary
from tests.process.running import RunningNode
from tests.servers import open_folder


def test_every_method_gives_what_the_client_expects():
    folder = os.environ.get("ICHIBASE_CLIENT")
    if not folder:
        pytest.skip("ICHIBASE_CLIENT names no checkout of the published client")
    with open_folder("ichi-node-") as data:
        node = RunningNode(data, environment={"ICHIBASE_DEFAULT_FLAVOR": "both"})
        node.start()
        try:
            told = json.loads(node.cli("status", "--json").stdout)
            (project,) = told["projects"]
            done = subprocess.run(
                [str(deno_binary()), "run", "--quiet", "--allow-all", "--unstable-sloppy-imports",
                 str(Path(__file__).parent / "ichibase.ts"), str(Path(folder) / "src"), node.url,
                 project["anon_key"], project["service_key"], told["admin_url"],
                 told["admin_token"]],
                capture_output=True, text=True, timeout=180,
            )  # fmt: skip
        finally:
            node.stop()
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert not found["failures"]
    assert found["done"] > 80
