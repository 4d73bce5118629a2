"""What clients notice of a node that is changed, and killed in parts and as a whole, under traffic
on tables, documents, files, functions and a socket: nothing that was confirmed is lost, and what
fails fails in the documented way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from tests.process.functions_node import Project
from tests.process.running import RunningNode, wait_until
from tests.process.traffic import ANSWER, SETUP, Listener, Traffic
from tests.timing import within

# While a part of the node is away: 503 of requests, an answer that does not come.
AWAY = {0, 502, 503, 504}


@pytest.fixture(scope="module")
def node(module_folder):
    environment = {"ICHIBASE_DEFAULT_FLAVOR": "both", "ICHIBASE_MAINTENANCE_SECONDS": "0.5",
                   "ICHIBASE_ACCESS_LOG": "errors"}  # fmt: skip
    disk = module_folder / "disk"  # a small one, where it may be mounted
    disk.mkdir()
    if os.geteuid() == 0:
        mount = ["mount", "-t", "tmpfs", "-o", "size=600m,mode=755", "none", str(disk)]
        subprocess.run(mount, check=True)
    running = RunningNode(module_folder, data_dir=disk / "data", environment=environment)
    running.environment["ICHIBASE_PUBLIC_URL"] = running.url
    try:
        running.start()
        Project(running).deploy("ok", ANSWER)
        settings = {"tables": {"public.kept": {"rule": True}}}
        running.sql(SETUP)
        running.cli("settings", "default", "set", "realtime", json.dumps(settings))
        yield running
    finally:
        running.end()
        if disk.is_mount():
            subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def traffic(node):
    running = Traffic(node)
    running.ask("DELETE", "/postgres/kept?id=gt.0")
    running.ask("POST", "/mongo/v1/deleteMany/kept", '{"filter": {}}')
    return running


def change(node, **wanted):
    token = (node.data_dir / "secrets" / "admin_token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.admin_port}/admin/v1/projects/default", method="PATCH",
        data=json.dumps(wanted).encode(), headers={"authorization": f"Bearer {token}"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def shown(node, name):
    """A limit as the project's owner finds it in a session that begins now."""
    return node.sql(f"show {name}")[0][0]


def many(traffic, count):
    """Status of a document operation that the free tier refuses beyond 1,000."""
    body = json.dumps({"docs": [{"a": 1}] * count})
    return traffic.ask("POST", "/mongo/v1/insertMany/many", body)[0]


def test_a_tier_changes_under_traffic_and_nobody_notices(node, traffic):
    own = {"flavors": 2, "requests_per_second": 0, "projects": 5}
    with Listener(node.url, traffic.project["anon_key"]) as listener, traffic:
        traffic.go_on()
        for tier, work in (("free", "4MB"), ("pro", "16MB"), ("free", "4MB"), ("business", "32MB"),
                           ("free", "4MB"), ("pro", "16MB")):  # fmt: skip
            change(node, tier=tier, limits=own)
            assert shown(node, "work_mem") == work
            expected = 413 if tier == "free" else 200
            assert wait_until(lambda status=expected: many(traffic, 1_001) == status, 3.0)
            traffic.go_on()
        change(node, limits={})
        traffic.go_on()
        told = traffic.acked["tables"][-1]
        assert wait_until(lambda: listener.ids and listener.ids[-1] >= told)
    assert traffic.failures() == {}
    assert traffic.lost() == {}
    assert listener.ends == 0
    assert listener.ids == sorted(set(listener.ids))
    assert set(traffic.acked["tables"]) >= set(listener.ids[:-5])
    assert set(range(listener.ids[0], told)) <= set(listener.ids)
    assert within(max(traffic.longest.values()), 2.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_writes_and_they_go_on_when_there_is_room(node, traffic):
    filler = node.data_dir.parent / "filler"
    try:
        with traffic:
            traffic.go_on()
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"x" * (1 << 20)):
                    pass
            refused = {"tables": {503}, "files": {503, 507}}
            assert wait_until(lambda: traffic.failures().keys() >= refused.keys())
            for path in ("/postgres/kept?limit=1", "/cdn/default/public/kept/1", "/auth/health"):
                assert traffic.ask("GET", path)[0] in (200, 404), path
            with ThreadPoolExecutor(4) as many:  # clients that send all before they read
                large = list(many.map(traffic.large, range(40)))
            assert set(large) <= {503, 507}, large
            said = node.cli("projects", "create", "more", ok=False).stderr
            assert "insufficient_storage" in said or "No space left" in said, said
            time.sleep(1.0)
            filler.unlink()
            assert within(traffic.go_on(), 10.0)
    finally:
        filler.unlink(missing_ok=True)
    for kind, failures in traffic.failures().items():
        assert {status for status, _ in failures} <= {503, 507}, (kind, failures)
    assert traffic.lost() == {}
    token = Project(node).token
    assert b"ichibase" in node.get("/metrics", {"authorization": f"Bearer {token}"}, admin=True)[1]


def killed(*processes):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def judge(traffic, *kinds):
    """Only these kinds had failures, each of a documented kind, and nothing confirmed is lost."""
    for kind, failures in traffic.failures().items():
        assert kind in kinds, failures
        assert {status for status, _ in failures} <= AWAY, failures
    assert wait_until(lambda: traffic.ask("GET", "/postgres/kept?limit=1")[0] == 200)
    assert traffic.lost() == {}


def test_the_database_is_killed_under_traffic(node, traffic):
    with traffic:
        traffic.go_on()
        killed(node.postmaster())
        time.sleep(0.2)
        took = traffic.go_on()
    assert within(took, 10.0)
    judge(traffic, "tables", "files", "functions", "documents")


def documents_processes(node):
    found = []
    for process in node.process_of().children(recursive=True):
        with suppress(psutil.Error):
            if "secantus" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_the_document_server_is_killed_under_traffic(node, traffic):
    with traffic:
        traffic.go_on()
        killed(*documents_processes(node))
        time.sleep(0.2)
        took = traffic.go_on()
    assert within(took, 10.0)
    judge(traffic, "documents")


def counted(node):
    """Requests of today, as they are written down."""
    return Project(node).admin("GET", "/usage")[1]["today"].get("requests", 0)


def test_the_node_is_killed_under_traffic(node, traffic):
    with traffic:
        traffic.go_on()
        assert wait_until(lambda: counted(node) > 0)
        before = counted(node)
        node.kill()
        seconds = node.start()
        took = traffic.go_on()
    assert within(seconds + took, 20.0)
    judge(traffic, *traffic.kinds)
    assert counted(node) >= before
