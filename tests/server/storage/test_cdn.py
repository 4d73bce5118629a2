"""A cache in front, configured as the documentation says: a real nginx over a running node."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.process.running import ROOT, wait_until
from tests.server.storage.node import Answer

pytestmark = pytest.mark.parametrize("files", ["disk"], indirect=True)  # as from any store
HOST = "cdn.localhost"


def documented(port: int, node: int, folder: Path) -> str:
    """The configuration that docs/storage.md prints, for this node."""
    text = (ROOT / "docs" / "storage.md").read_text()
    block = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)
    assert block
    return (
        block[1].replace("/var/cache/nginx", str(folder / "cache"))
        .replace("server_name cdn.example.com", f"listen 127.0.0.1:{port}; server_name {HOST}")
        .replace("127.0.0.1:8000", f"127.0.0.1:{node}")
    )  # fmt: skip


@pytest.fixture
def cdn(files, tmp_path):
    """GET by the cache: path and headers to (how nginx came by it, Answer)."""
    assert shutil.which("nginx"), "nginx is needed: apt-get install nginx-light"
    tmp_path.chmod(0o755)
    port = free_port()
    (tmp_path / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
  fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
  add_header X-Cache $upstream_cache_status always;
  {documented(port, files.port, tmp_path)}
}}
""")
    process = subprocess.Popen(
        ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"),
         "-e", f"{tmp_path}/error.log"]
    )  # fmt: skip

    def get(path: str, **headers: str) -> tuple[str | None, Answer]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers={"host": HOST, **headers})
        answer = connection.getresponse()
        found = Answer(answer.status, answer.getheaders(), answer.read())
        connection.close()
        return found.headers.get("x-cache"), found

    def up() -> bool:
        try:
            return get("/default/public/none")[1].status == 404
        except OSError:
            return False

    try:
        assert wait_until(up), (tmp_path / "error.log").read_text()
        yield get
    finally:
        process.terminate()
        process.wait(10)


def test_a_cache_in_front_keeps_public_files_alone(files, cdn):
    page = b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 5000
    assert files.upload("public", "cdn/a.svg", page, "image/svg+xml").status == 200
    first, second = cdn("/default/public/cdn/a.svg"), cdn("/default/public/cdn/a.svg")
    assert (first[0], second[0]) == ("MISS", "HIT")
    for _, got in (first, second):
        assert (got.status, got.body) == (200, page)
        assert "sandbox" in got.headers["content-security-policy"]
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["access-control-allow-origin"] == "*"
    how, got = cdn("/default/public/cdn/a.svg", range="bytes=5-9")
    assert (how, got.status, got.body) == ("HIT", 206, page[5:10])
    how, got = cdn("/default/public/cdn/a.svg", **{"if-none-match": got.headers["etag"]})
    assert (how, got.status, got.body) == ("HIT", 304, b"")
    # what is not there is not kept as missing
    assert cdn("/default/public/cdn/later")[1].status == 404
    assert files.upload("public", "cdn/later", b"now").status == 200
    assert wait_until(lambda: cdn("/default/public/cdn/later")[1].body == b"now")
    # private ones are kept by nobody, with or without their token
    assert files.upload("cdnpriv", "f", b"secret").status == 200
    path = "/default/cdnpriv/f?" + files.signed("cdnpriv", "f").partition("?")[2]
    assert [cdn(path)[0] for _ in range(3)] == ["MISS"] * 3
    assert cdn(path)[1].body == b"secret"
    assert cdn("/default/cdnpriv/f")[1].status == 401


def test_a_cache_in_front_asks_again_when_a_files_time_is_over(files, cdn):
    assert files.upload("public", "cdn/b", b"x" * 100_000).status == 200
    files.inline("storage", "buckets", "public", "--cache-seconds", "1")
    try:
        assert wait_until(lambda: "max-age=1" in str(cdn("/default/public/cdn/b")[1].pairs))
        time.sleep(2.1)
        how, got = cdn("/default/public/cdn/b")
        assert (how, got.status) == ("REVALIDATED", 200)
        assert got.body == b"x" * 100_000
        assert files.upload("public", "cdn/b", b"y" * 100_000).status == 200
        assert wait_until(lambda: cdn("/default/public/cdn/b")[1].body == b"y" * 100_000)
    finally:
        files.inline("storage", "buckets", "public", "--cache-seconds", "default")
