"""Counts over several workers, and log lines."""

import io
import json
import os

from server.base.events import Events, Failed, Lost, Noted, Served
from server.base.logs import Logger
from server.base.metrics import Metrics, MetricsFile, clear, render


def test_the_workers_files_add_up(tmp_path):
    first, second = Metrics(), Metrics()
    for metrics in (first, second):
        metrics.route("postgres").observe(200, 0.003)
        metrics.count("ichibase_faults_total")
        metrics.gauges.append(lambda: [("ichibase_pool_waiting", (), 3)])
    second.route("postgres").observe(503, 7.0)
    MetricsFile(first, tmp_path).write()
    own = tmp_path / f"{os.getpid()}.json"
    own.rename(tmp_path / "999999999.json")  # a worker that has ended
    MetricsFile(second, tmp_path).write()
    (tmp_path / "1.json").write_text("{broken")
    text = render(tmp_path).decode()
    assert 'ichibase_requests_total{route="postgres",status="2xx"} 2' in text
    assert 'ichibase_requests_total{route="postgres",status="5xx"} 1' in text
    assert 'ichibase_request_seconds_bucket{route="postgres",le="0.005"} 2' in text
    assert 'ichibase_request_seconds_bucket{route="postgres",le="+Inf"} 3' in text
    assert 'ichibase_request_seconds_count{route="postgres"} 3' in text
    assert "ichibase_faults_total 2" in text
    assert "ichibase_pool_waiting 3" in text
    assert "# TYPE ichibase_request_seconds histogram" in text
    clear(tmp_path)
    assert "postgres" not in render(tmp_path).decode()


def test_a_file_is_written_only_when_something_changed(tmp_path):
    metrics = Metrics()
    file = MetricsFile(metrics, tmp_path / "deep")
    file.write()
    before = file.path.stat().st_mtime_ns, file.path.stat().st_ino
    file.write()
    assert (file.path.stat().st_mtime_ns, file.path.stat().st_ino) == before
    metrics.count("x")
    file.write()
    assert file.path.stat().st_ino != before[1]


def served(**changes):
    fields = {"id": "r1", "project": "shop", "route": "auth", "method": "GET", "path": "/auth/me",
              "status": 200, "seconds": 0.01, "peer": "10.0.0.1"}  # fmt: skip
    return Served(**(fields | changes))


def lines(access, format, *items):
    out = io.StringIO()
    events = Events()
    events.listeners.append(Logger(access, format, out))
    for event in items:
        events.emit(event)
    return out.getvalue().splitlines()


def test_which_requests_get_a_line():
    some = (served(), served(status=404), served(status=502), served(seconds=2.0))
    assert len(lines("off", "text", *some)) == 0
    assert len(lines("errors", "text", *some)) == 2
    assert len(lines("all", "text", *some)) == 4


def test_lines():
    (line,) = lines("all", "text", served(path="/auth/\r\nforged", error="x"))
    assert "shop auth GET /auth/\\x0d\\x0aforged 200 10.0ms 10.0.0.1 r1 x" in line
    (line,) = lines("all", "json", served(path="/auth/\r\nforged"))
    found = json.loads(line)
    assert found["event"] == "served"
    assert found["path"] == "/auth/\r\nforged"
    for event in (Failed("doing", "trace"), Lost("x", "y"), Noted("a", "b")):
        assert lines("off", "text", event)
        assert json.loads(lines("off", "json", event)[0])["level"]
