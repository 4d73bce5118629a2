"""A worker killed at any step loses no file that was answered for and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import psycopg
import pytest

from server.storage import sweep
from server.storage.disk import DiskStore
from server.storage.reconcile import reconcile
from tests.server.storage import inside
from tests.server.storage.crash import STEPS

CASES = [(action, step) for action, steps in STEPS.items() for step in steps]


def execute(files, text):
    with psycopg.connect(files.system_dsn(), autocommit=True) as connection:
        connection.execute(text)


def recover(files):
    """What a later moment brings: the dead upload's time runs out, the grace ends, the sweep
    comes by. Gives what is wrong then, which must be nothing."""
    execute(files, "update storage.uploads set expires_at = now() - interval '1 second'")
    execute(files, "update storage.garbage set due_at = now()")

    async def run():
        async with inside.worker(files.data_dir) as (room, tenant):
            await sweep.sweep(room, tenant)
            connection = await psycopg.AsyncConnection.connect(
                tenant.project.system_dsn, autocommit=True, cursor_factory=psycopg.AsyncRawCursor
            )
            async with connection:
                return await reconcile(connection, room.store, tenant.project.id, mend=False)

    with inside.environment(files):
        return asyncio.run(run())


def check(files):
    """What the command line says."""
    done = files.inline("storage", "reconcile", "--json", ok=False)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("action", "step"), CASES, ids=[f"{a}: {s}" for a, s in CASES])
def test_killed_at_a_step(files, action, step):
    if (step == "sent") if files.kind == "disk" else action != "upload":
        return  # a step of object stores alone; one that is the same for both
    assert files.upload("crash", "old", b"old content", "text/plain").status == 200
    if action == "sweep":
        assert files.upload("crash", "old", b"another one", "text/plain").status == 200
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.storage.crash", str(files.data_dir), action, step],
        env=files.environment, cwd=files.root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    found = recover(files)
    if action == "mend":  # which is begun anew
        assert not found.clean
        assert found.orphans == 0  # what was noted is swept
        files.inline("storage", "reconcile", "--mend")
        found = recover(files)
    assert found.clean, found
    assert found.counted["reserved"] == 0
    assert found.blobs == found.files
    old = files.call("head", {"bucket": "crash", "path": "old"}).json["exists"]
    new = files.call("head", {"bucket": "crash", "path": "new"}).json["exists"]
    assert old is (step not in ("removed", "moved"))
    assert new is (step == "recorded")
    if old:
        got = files.send("GET", files.signed("crash", "old"))
        assert got.body == (b"another one" if action == "sweep" else b"old content")
    if new:
        got = files.send("GET", files.signed("crash", "new"))
        assert got.body == b"x" * 100_000 + b"y" * 100_000
    for path in ("old", "new", "to"):
        files.call("delete", {"bucket": "crash", "path": path})


def test_reconcile_mends_both_sides(files):
    """Blobs without a record, records without a blob or with half of one, and wrong counters."""
    recover(files)
    for name in ("keep", "lost", "cut"):
        assert files.upload("both", name, name.encode() * 50, "text/plain").status == 200
    assert files.upload("both", "wide", bytes(100_000)).status == 200

    async def damage():
        async with inside.worker(files.data_dir) as (room, tenant):
            rows = await tenant.database._pools.system(tenant.project).fetch(
                "select path, version from storage.objects where bucket = 'both'"
            )
            versions = dict(rows)
            store, project = room.store, tenant.project.id
            await store.delete(project, [versions[name] for name in ("lost", "cut", "wide")])
            for version, data in ((versions["cut"], b"half"), ("ab" * 16, b"orphan")):
                sink = store.sink(project, version, len(data))
                sink.write([data])
                await sink.commit()
            if isinstance(store, DiskStore):  # an upload under way in a process that is gone
                store.sink(project, "cd" * 16, 100).write([b"part"])

    with inside.environment(files):
        asyncio.run(damage())
    execute(files, "update storage.usage set bytes = bytes + 7, objects = objects + 1")
    found = check(files)
    orphans = 2 if files.kind == "disk" else 1
    assert found["orphans"] == orphans
    assert [(one["bucket"], one["path"]) for one in found["missing_files"]] == [
        ("both", "cut"), ("both", "lost"), ("both", "wide"),
    ]  # fmt: skip
    for name in ("lost", "wide"):
        assert files.send("GET", files.signed("both", name)).code == "content_missing"
    assert found["counted"] != found["actual"]
    assert not found["mended"]
    assert check(files)["missing"] == 3  # looking changes nothing
    done = files.inline("storage", "reconcile", "--mend")
    assert "mended" in done.stdout
    found = check(files)
    assert (found["orphans"], found["missing"]) == (0, 0)
    assert found["counted"] == found["actual"]
    assert files.send("GET", files.signed("both", "keep")).body == b"keep" * 50
    assert files.call("head", {"bucket": "both", "path": "lost"}).json == {"exists": False}
    assert files.call("delete", {"bucket": "both", "path": "keep"}).json["deleted"]


def test_reconcile_does_not_empty_a_project_whose_store_is_the_wrong_one(files):
    for number in range(30):
        assert files.upload("wrong", f"f{number}", b"data").status == 200
    execute(files, "update storage.objects set version = 'x' || version where bucket = 'wrong'")
    done = files.inline("storage", "reconcile", "--mend", "--json", ok=False)
    assert done.returncode == 1
    assert "is this the right store" in done.stdout
    assert len(files.call("list", {"bucket": "wrong"}).json["objects"]) == 30
    done = files.inline("storage", "reconcile", "--mend", "--force", "--json")
    assert files.call("list", {"bucket": "wrong"}).json["objects"] == []
    assert check(files)["counted"] == check(files)["actual"]
