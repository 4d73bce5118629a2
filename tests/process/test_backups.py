"""Backups of a whole node in an object store: killed in the middle, shown on a terminal, and
restored on another machine."""

import contextlib
import json
import os
import pty
import signal
import subprocess

import obstore
import psutil
import pytest

from server.backup.store import PIECE
from tests.process.running import RunningNode, wait_until
from tests.server.storage.troubled import HANG

KEY = "a passphrase that nobody guesses\n"


def node_in(folder, s3, troubled, key):
    given = s3.environment("backups") | {"AWS_ENDPOINT_URL": troubled.url}
    url = given.pop("ICHIBASE_STORAGE_URL")  # files stay on the disk
    (folder / "key").write_text(key)
    (folder / "tiers.toml").write_text("[pro]\nbackup_hours = 0\n")  # none but the tests' own
    return RunningNode(folder, environment={
        **given, "ICHIBASE_BACKUP_URL": url,
        "ICHIBASE_BACKUP_KEY_FILE": str(folder / "key"), "ICHIBASE_MAINTENANCE_SECONDS": "0.3",
        "ICHIBASE_TIERS_FILE": str(folder / "tiers.toml"),
    })  # fmt: skip


@pytest.fixture(scope="module")
def node(module_folder, s3, troubled):
    running = node_in(module_folder, s3, troubled, KEY)
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def good(node):
    """A backup of a project with more than a piece of data."""
    node.cli("projects", "create", "yard")
    node.cli("sql", "yard", "-c", f"""create table logs as select gen_random_uuid() as a,
        gen_random_uuid() as b from generate_series(1, {PIECE // 32})""")  # fmt: skip
    return json.loads(node.cli("backups", "create", "yard", "--json").stdout)["backup"]


def listed(node):
    found = json.loads(node.cli("backups", "list", "yard", "--json").stdout)
    return {one["id"]: one for one in found}


def names(s3):
    found = []
    for batch in obstore.list(s3.store(), prefix="backups"):
        found += [one["path"] for one in batch]
    return found


def maintenance(node):
    for child in node.process_of().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "server.maintenance.main" in child.cmdline():
                return child
    return None


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_backup_killed_while_it_writes_leaves_nothing_in_the_store(
    node, s3, troubled, good, after
):
    troubled.begin(HANG, after)
    running = subprocess.Popen(
        **node.command("backups", "create", "yard"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert troubled.hung.wait(120)
    before = maintenance(node)
    os.kill(before.pid, signal.SIGKILL)
    troubled.end()
    out, error = running.communicate(timeout=120)
    assert (running.returncode, "interrupted" in error) == (1, True), (out, error)
    assert maintenance(node).pid != before.pid
    assert wait_until(lambda: all(good in name for name in names(s3)))
    assert s3.unfinished() == []
    (failed,) = [one for one in listed(node).values() if one["state"] == "failed"]
    assert (failed["code"], failed["error"]) == ("interrupted", "interrupted")
    assert f"{failed['id']} failed: interrupted" in node.cli("backups", "list", "yard").stderr
    made = json.loads(node.cli("backups", "create", "yard", "--json").stdout)["backup"]
    for one in (good, made):
        assert "good: " in node.cli("backups", "verify", one).stdout
    for one in (made, failed["id"]):
        node.cli("backups", "delete", one)
    assert list(listed(node)) == [good]


def test_on_a_terminal_a_bar_shows_how_far_it_is(node, good):
    seen, terminal = pty.openpty()
    with contextlib.closing(os.fdopen(seen, "rb", buffering=0)) as screen:
        given = node.command("backups", "verify", good)
        given["env"] = {**given["env"], "TERM": "xterm", "COLUMNS": "100"}
        running = subprocess.Popen(**given, stdout=subprocess.PIPE, stderr=terminal, text=True)
        os.close(terminal)
        drawn = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := screen.read(4096):
                drawn += piece
        assert "good: " in running.communicate(timeout=60)[0]
    assert running.returncode == 0
    text = drawn.decode("utf-8", "replace")
    for shown in ("verification: reading", "verification: checksums", "━", "MB"):
        assert shown in text, shown
