"""Reads: validators, ranges, headers, origins; the short way and the general way alike."""

from __future__ import annotations

import email.utils
import itertools
import time

import pytest

from tests.process.running import wait_until
from tests.timing import quickest, slowness

SMALL = bytes(range(256)) * 4
LARGE = bytes(range(251)) * 5_000


@pytest.fixture(scope="module", params=["small", "large"])
def stored(request, files):
    """(path, content) of a public file that fits into memory, and of one that does not."""
    data = SMALL if request.param == "small" else LARGE
    path = f"reads/{request.param}.bin"
    assert files.upload("public", path, data, "image/png").status == 200
    return f"public/{path}", data


@pytest.fixture(params=["fresh", "again"])
def read(request, files, stored):
    """Reads the file; "again" after it has been read, when the short way may answer."""
    if request.param == "again":
        for _ in range(3):
            files.read(stored[0])
    return lambda headers=None, method="GET", query="": files.read(
        stored[0] + query, headers, method
    )


def test_whole(read, stored):
    got = read()
    assert (got.status, got.body) == (200, stored[1])
    assert got.headers["content-length"] == str(len(stored[1]))
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "vary" not in got.headers
    assert "content-security-policy" not in got.headers


def test_head_is_get_without_a_body(read, stored):
    got, head = read(), read(method="HEAD")
    assert (head.status, head.body) == (200, b"")
    mine = {k: v for k, v in head.headers.items() if k not in ("date", "x-request-id")}
    assert mine == {k: v for k, v in got.headers.items() if k not in ("date", "x-request-id")}


def test_not_modified(read):
    whole = read()
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    earlier = email.utils.formatdate(email.utils.mktime_tz(email.utils.parsedate_tz(date)) - 1,
                                     usegmt=True)  # fmt: skip
    cases = [
        ({"if-none-match": tag}, 304), ({"if-none-match": f"W/{tag}"}, 304),
        ({"if-none-match": f'"x", {tag}'}, 304), ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, 200), ({"if-none-match": ""}, 200),
        ({"if-modified-since": date}, 304), ({"if-modified-since": later}, 304),
        ({"if-modified-since": earlier}, 200), ({"if-modified-since": "yesterday"}, 200),
        ({"if-none-match": '"x"', "if-modified-since": later}, 200),
        ({"if-none-match": tag, "range": "bytes=0-1"}, 304),
        ({"if-match": tag}, 200), ({"if-match": '"x"'}, 412), ({"if-match": f"W/{tag}"}, 412),
        ({"if-unmodified-since": earlier}, 412), ({"if-unmodified-since": later}, 200),
    ]  # fmt: skip
    for headers, status in cases:
        got = read(headers)
        assert got.status == status, headers
        if status == 304:
            assert got.body == b""
            assert got.headers["etag"] == tag
            assert "cache-control" in got.headers
            assert "content-type" not in got.headers


def test_one_range(read, stored):
    data = stored[1]
    size = len(data)
    cases = {
        "bytes=0-0": (0, 1), "bytes=0-": (0, size), "bytes=5-9": (5, 10),
        "bytes=-7": (size - 7, size),
        f"bytes=-{size * 2}": (0, size), f"bytes=10-{size * 9}": (10, size), "Bytes=1-1": (1, 2),
        "bytes= 1-3": (1, 4), f"bytes={size - 1}-": (size - 1, size), "bytes=1-2,3-4": (1, 5),
        "bytes=0-9,5-20": (0, 21),
    }  # fmt: skip
    for text, (start, end) in cases.items():
        got = read({"range": text})
        assert got.status == 206, text
        assert got.body == data[start:end], text
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert got.headers["content-length"] == str(end - start)


def test_ranges_that_are_none(read, stored):
    size = len(stored[1])
    for text in ("bytes=", "bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=1-2-3", "bytes=--1",
                 "bytes=١-٢".encode().decode("latin-1"), "bytes 1-2", "bytes=-"):  # fmt: skip
        assert read({"range": text}).status in (200, 416, 400), text
    for text in (f"bytes={size}-", f"bytes={size}-{size + 5}", "bytes=-0", "bytes=99999999-"):
        got = read({"range": text})
        assert (got.status, got.code) == (416, "range_not_satisfiable"), text
        assert got.headers["content-range"] == f"bytes */{size}"


def test_several_ranges(read, stored):
    data = stored[1]
    got = read({"range": "bytes=0-3, 100-109 ,-5"})
    assert got.status == 206
    kind, _, mark = got.headers["content-type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    parts = got.body.split(f"--{mark}".encode())
    assert (parts[0], parts[-1]) == (b"\r\n", b"--\r\n")
    size = len(data)
    for part, (start, end) in zip(parts[1:-1], [(0, 4), (100, 110), (size - 5, size)], strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert body == data[start:end] + b"\r\n"
        assert f"content-range: bytes {start}-{end - 1}/{size}".encode() in head
        assert b"content-type: image/png" in head
    assert len(got.body) == int(got.headers["content-length"])


def test_if_range(read, stored):
    whole = read()
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    for value, status in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200), (date, 206),
                          ("Thu, 01 Jan 2015 00:00:00 GMT", 200), ("nonsense", 200)):  # fmt: skip
        got = read({"range": "bytes=1-2", "if-range": value})
        assert got.status == status, value
        assert got.body == (stored[1][1:3] if status == 206 else stored[1])


def test_downloads_have_a_name(files, stored, read):
    name = stored[0].rpartition("/")[2]
    got = read(query="?download")
    assert got.headers["content-disposition"] == f'attachment; filename="{name}"'
    got = read(query="?download=%E2%82%AC%20rates.png")
    assert got.headers["content-disposition"] == (
        "attachment; filename=\"_ rates.png\"; filename*=UTF-8''%E2%82%AC%20rates.png"
    )
    got = read(query="?download=a%22%0d%0ax-evil:1/..%5C.png")
    assert "x-evil" not in got.headers
    assert got.headers["content-disposition"] == 'attachment; filename="a___x-evil:1_.._.png"'


def test_any_page_may_read_public_files(files, read, stored):
    got = read({"origin": "https://anywhere.example"})
    assert got.headers["access-control-allow-origin"] == "*"
    assert "ETag" in got.headers["access-control-expose-headers"]
    got = files.read("public/none", {"origin": "https://anywhere.example"})
    assert (got.status, got.headers["access-control-allow-origin"]) == (404, "*")
    asked = {"origin": "https://anywhere.example", "access-control-request-method": "GET",
             "access-control-request-headers": "range"}  # fmt: skip
    got = files.read(stored[0], asked, "OPTIONS")
    assert (got.status, got.headers["access-control-allow-origin"]) == (204, "*")
    assert "range" in got.headers["access-control-allow-headers"]
    got = files.read("secret/file", asked, "OPTIONS")
    assert got.status == 204
    assert "access-control-allow-origin" not in got.headers


def test_private_files_are_for_listed_pages(files):
    files.inline("settings", "default", "set", "cors", '{"origins": ["https://app.example"]}')
    try:
        assert files.upload("cors", "x", b"1").status == 200
        url = files.signed("cors", "x")
        asked = {"origin": "https://app.example"}
        assert wait_until(lambda: files.all_workers(
            lambda: "access-control-allow-origin" in files.send("GET", url, headers=asked).headers
        ))  # fmt: skip
        got = files.send("GET", url, headers=asked)
        assert got.headers["access-control-allow-origin"] == "https://app.example"
        assert got.headers["vary"] == "Origin"
        got = files.send("GET", url, headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in got.headers
        asked = {"origin": "https://app.example", "access-control-request-method": "PUT",
                 "access-control-request-headers": "content-type"}  # fmt: skip
        got = files.send("OPTIONS", "/storage/put/token", headers=asked)
        assert (got.status, got.headers["access-control-allow-origin"]) == (204, asked["origin"])
        assert "PUT" in got.headers["access-control-allow-methods"]
        got = files.read("cors/x", asked, "OPTIONS")
        assert got.headers["access-control-allow-origin"] == "https://app.example"
    finally:
        files.inline("settings", "default", "set", "cors", '{"origins": []}')
        assert wait_until(
            lambda: files.all_workers(lambda: "vary" not in files.read("cors/x", asked).headers)
        )


def test_the_host_of_public_files(files):
    assert files.upload("public", "host.txt", b"by host", "text/plain").status == 200
    for _ in range(3):
        got = files.send("GET", "/default/public/host.txt", headers={"host": "cdn.localhost"})
        assert (got.status, got.body) == (200, b"by host")
    got = files.send("GET", "/default/public/host.txt")
    assert got.status == 404


def test_every_change_is_seen_at_once_by_all_workers(files):
    """Two workers: whichever answers, a change is seen within a second, and mostly at once."""
    versions = itertools.count()

    def changed():
        """The seconds until all read a new version."""
        body = f"version {next(versions)}".encode()
        assert files.upload("public", "changing.txt", body, "text/plain").status == 200
        began = time.monotonic()
        assert wait_until(
            lambda: {files.read("public/changing.txt").body for _ in range(6)} == {body}
        )
        return time.monotonic() - began

    def deleted():
        """The seconds until nobody reads it."""
        changed()
        files.call("delete", {"bucket": "public", "path": "changing.txt"})
        began = time.monotonic()
        assert wait_until(
            lambda: {files.read("public/changing.txt").status for _ in range(8)} == {404}
        )
        return time.monotonic() - began

    for _ in range(5):
        assert quickest(changed, 1.1) < 1.1
    assert quickest(deleted, 1.1) < 1.1


def test_a_deleted_folder_is_gone_from_every_worker(files):
    for name in ("a", "b"):
        files.upload("public", f"gone/{name}", b"x", "text/plain")
        for _ in range(6):
            assert files.read(f"public/gone/{name}").status == 200
    files.call("delete", {"bucket": "public", "path": "gone", "recursive": True})
    time.sleep(1.1 * slowness())
    for _ in range(8):
        assert files.read("public/gone/a").status == 404
        assert files.read("public/gone/b").status == 404


def test_the_secret_key_reads_everything(files):
    assert files.upload("vault", "k.txt", b"inside", "text/plain").status == 200
    bearer = {"authorization": f"Bearer {files.secret}"}
    got = files.send("GET", "/storage/object/vault/k.txt", headers=bearer)
    assert (got.status, got.body, got.headers["cache-control"]) == (200, b"inside", "no-store")
    got = files.send("GET", "/storage/object/vault/k.txt", headers={"apikey": files.anon})
    assert (got.status, got.code) == (403, "service_key_required")
    assert files.send("GET", "/storage/object/vault/none", headers=bearer).status == 404


def test_a_slow_reader_of_a_large_file_gets_it_whole(files):
    import socket

    data = LARGE * 5
    assert files.upload("public", "slow.bin", data).status == 200
    with socket.create_connection(("127.0.0.1", files.port), timeout=20) as peer:
        peer.sendall(
            b"GET /cdn/default/public/slow.bin HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        time.sleep(1)
        got = b""
        while piece := peer.recv(1 << 16):
            got += piece
            time.sleep(0.001)
    assert got.partition(b"\r\n\r\n")[2] == data
