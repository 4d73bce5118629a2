"""Bad input and attacks: each is refused with a coded 4xx, stores nothing and costs no quota."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from urllib.parse import quote

import pytest

from tests.process.running import wait_until

PLAIN = {"content-type": "text/plain"}


def mint(files, bucket, path, size, kind="text/plain", **more):
    answer = files.call("get-put-url", {
        "bucket": bucket, "path": path, "content_type": kind, "content_length": size, **more,
    })  # fmt: skip
    assert answer.status == 200, answer
    return answer.json["url"]


def settled(files, before):
    """Whether nothing is stored or reserved that was not before."""
    return wait_until(lambda: files.used() == before)


def spend(files, url, size):
    """Uses up a URL, so that it reserves nothing any more, and deletes what it made."""
    assert files.send("PUT", url, b"x" * size, PLAIN).status == 200


@pytest.fixture
def unchanged(files):
    """After the test the same bytes are stored and reserved as before it."""
    before = files.used()
    yield
    assert settled(files, before), (before, files.used())


TRAVERSALS = [
    "..", "../x", "a/../b", "a/..", "./a", "a/./b", "a//b", "a/", "", "/", "//a", "a\\..\\b",
    "..\\x", "a\x00b", "\x00", "a\nb", "a\r\nx: y", "\x1b[2J", "\x7f", "a\u202egpj.exe", "\u2066x",
    "a\ufeffb", "x\uffff", "\U0010ffff", "a\u2028b",
]  # fmt: skip


OVER_LONG = ["x" * 1025, "é" * 513, "a/" * 600 + "a"]


@pytest.mark.parametrize("path", TRAVERSALS, ids=range(len(TRAVERSALS)))
def test_path_traversal_nul_and_control_characters(files, unchanged, path):
    refused_everywhere(files, path)


@pytest.mark.parametrize("path", OVER_LONG, ids=range(len(OVER_LONG)))
def test_over_long_names(files, unchanged, path):
    refused_everywhere(files, path)


def refused_everywhere(files, path):
    for name, body in (
        ("get-url", {"path": path}), ("delete", {"path": path}), ("head", {"path": path}),
        ("get-put-url", {"path": path, "content_type": "a/b", "content_length": 3}),
        ("move", {"from": path, "to": "x"}), ("move", {"from": "x", "to": path}),
    ):  # fmt: skip
        answer = files.call(name, {"bucket": "public", **body})
        assert (answer.status, answer.code) == (400, "FST_ERR_VALIDATION"), name
    # a slash in front is dropped, and an empty path ends at the bucket
    escaped = quote(path, safe="")
    for url in (f"public/{escaped}", f"private/{escaped}?token=x"):
        answer = files.read(url)
        assert answer.status in (400, 414), (url, answer)
    answer = files.upload("public", escaped, b"abc")
    assert answer.status in (400, 414)


def test_traversal_in_every_encoding(files, unchanged):
    secret = "superuser"
    for path in (
        "/cdn/default/public/../../../" + secret, "/cdn/default/public/%2e%2e/%2e%2e/" + secret,
        "/cdn/default/public/..%2f..%2f" + secret, "/cdn/default/public/%2e%2e%2f" + secret,
        "/cdn/default/public/..%5c..%5c" + secret, "/cdn/default/..%2f..%2f" + secret,
        "/cdn/../data/" + secret, "/cdn/default/public/%00", "/cdn/default/public/a%00.png",
        "/cdn/default/public/%c0%ae%c0%ae/x", "/cdn/default/public/%e0%80%ae/x",
        "/cdn/default/public/%ff%fe", "/cdn/default/public/%252e%252e%252f" + secret,
        "/cdn/default/public/%u002e%u002e/x", "/cdn/default/public/....//....//x",
        "/cdn/default/public/．．/x", "/cdn/default/public/..;/x",
        "/cdn/default/public/x%0d%0aset-cookie:%20a=b", "/cdn/default/%70ublic/../x",
    ):  # fmt: skip
        answer = files.send("GET", quote(path, safe="/%.;:"))
        assert 400 <= answer.status < 500, (path, answer)
        assert answer.code
        assert "set-cookie" not in answer.headers


def test_look_alikes_are_other_files(files):
    """What merely looks like a dot or a slash is a character like any other."""
    for path in ("．．/x", "a∕b", "a／b", "․․/y", "раураl", "%2e%2e%2fz"):
        assert files.upload("looks", quote(path, safe=""), path.encode()).status == 200
        got = files.send("GET", files.signed("looks", path))
        assert got.body == path.encode()
    listed = files.call("list", {"bucket": "looks"}).json["objects"]
    assert len(listed) == 6
    assert (
        files.call("delete", {"bucket": "looks", "path": "x", "recursive": True}).json["count"] == 0
    )


def test_one_file_has_one_path_however_it_is_composed(files):
    composed, decomposed = "caf\u00e9.txt", "cafe\u0301.txt"
    before = files.used()["objects"]
    assert files.upload("norm", quote(decomposed), b"1").status == 200
    assert files.upload("norm", quote(composed), b"22").status == 200
    assert files.used()["objects"] == before + 1
    token = files.signed("norm", decomposed).partition("?")[2]
    for path in (composed, decomposed):
        assert files.read(f"norm/{quote(path)}?{token}").body == b"22"
    paths = [one["path"] for one in files.call("list", {"bucket": "norm"}).json["objects"]]
    assert paths == [composed]


@pytest.mark.parametrize("bucket", [
    "", "a", "-a", "A", "Public", "pub lic", "public\n", "public/", "../x", ".", "..", "a_b", "a.b",
    "x" * 64, "ａbc", "public\x00", "пublic", "%70ublic",
])  # fmt: skip
def test_bucket_tricks(files, unchanged, bucket):
    for name, body in (
        ("get-url", {"path": "p"}), ("list", {}), ("head", {"path": "p"}),
        ("get-put-url", {"path": "p", "content_type": "a/b", "content_length": 3}),
    ):  # fmt: skip
        answer = files.call(name, {"bucket": bucket, **body})
        assert (answer.status, answer.code) == (400, "FST_ERR_VALIDATION"), name
    answer = files.read(f"{quote(bucket, safe='')}/p")
    assert 400 <= answer.status < 500
    if not bucket.endswith("/"):  # whose slash is one of the URL's
        answer = files.upload(quote(bucket, safe=""), "p", b"abc")
        assert 400 <= answer.status < 500


def test_only_the_public_bucket_is_public(files):
    assert files.upload("publicx", "a", b"1").status == 200
    for path in ("publicx/a", "PUBLIC/a", "public/../publicx/a", "public%2f..%2fpublicx/a"):
        assert files.read(path).status in (400, 401), path
    answer = files.read("publicx/a")
    assert (answer.status, answer.code) == (401, "missing_token")
    answer = files.read("publicx/none")
    assert (answer.status, answer.code) == (401, "missing_token")  # says nothing of what is there


@pytest.fixture(scope="module")
def other(files):
    """Another project of the same node: (its Host header, its secret key)."""
    files.inline("projects", "create", "other")
    key = files.project("other")["service_key"]
    host = {"host": "other.localhost"}
    bearer = {"authorization": f"Bearer {key}"}
    wait_until(lambda: files.send("POST", "/storage/head", {"bucket": "bb", "path": "p"},
                                  {**host, **bearer}).status == 200)  # fmt: skip
    return host, key


def test_a_token_of_another_project(files, other):
    host, key = other
    headers = {**host, "authorization": f"Bearer {key}"}
    put = files.send("PUT", "/storage/object/mine/a", b"theirs", headers)
    assert put.status == 200
    assert files.upload("mine", "a", b"ours").status == 200
    theirs = files.send("POST", "/storage/get-url", {"bucket": "mine", "path": "a"}, headers)
    url = theirs.json["url"]
    assert files.send("GET", url).body == b"theirs"
    token = url.partition("?")[2]
    answer = files.read(f"mine/a?{token}")
    assert (answer.status, answer.code) == (401, "invalid_token")
    # a key of the other project is none here
    answer = files.call("head", {"bucket": "mine", "path": "a"}, key=key)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    minted = files.send("POST", "/storage/get-put-url", {
        "bucket": "mine", "path": "a", "content_type": "text/plain", "content_length": 4,
    }, headers).json["url"]  # fmt: skip
    token = minted.rpartition("/")[2]
    answer = files.send("PUT", f"/storage/put/{token}", b"evil", PLAIN)
    assert (answer.status, answer.code) == (401, "invalid_token")
    assert files.send("GET", files.signed("mine", "a")).body == b"ours"


def test_a_token_of_another_bucket_or_path(files):
    for bucket, path in (("one", "f"), ("two", "f"), ("one", "g"), ("one", "f/x")):
        assert files.upload(bucket, path, b"data").status == 200
    token = files.signed("one", "f").partition("?")[2]
    assert files.read(f"one/f?{token}").status == 200
    for path in ("two/f", "one/g", "one/f/x", "one/fx", "one/F"):
        answer = files.read(f"{path}?{token}")
        assert (answer.status, answer.code) == (403, "forbidden"), path


def test_a_folder_token_is_no_prefix_of_letters(files):
    for path in ("a", "a/x", "ab", "ab/x", "a-b", "a0", "a.txt"):
        assert files.upload("prefix", path, b"data").status == 200
    token = files.signed("prefix", "a", recursive=True).partition("?")[2]
    opened = [path for path in ("a", "a/x", "ab", "ab/x", "a-b", "a0", "a.txt")
              if files.read(f"prefix/{path}?{token}").status == 200]  # fmt: skip
    assert opened == ["a", "a/x"]
    assert files.read(f"prefix/a/../ab/x?{token}").status == 400
    assert files.read(f"prefix/a%2f..%2fab/x?{token}").status == 400


def test_an_expired_token(files):
    assert files.upload("late", "f", b"data").status == 200
    for _ in range(3):  # a busy machine may not come to it in a second
        url = files.signed("late", "f", ttl_seconds=1)
        first = files.send("GET", url).status
        if first == 200:
            break
    assert first == 200
    time.sleep(1.2)
    answer = files.send("GET", url)
    assert (answer.status, answer.code) == (401, "token_expired")


def test_altered_tokens(files):
    assert files.upload("alter", "f", b"data").status == 200
    url = files.signed("alter", "f")
    base, _, token = url.partition("?token=")
    head, payload, mark = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

    def encoded(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    none = encoded({"alg": "none", "typ": "JWT"})
    wider = encoded({**claims, "p": "", "r": True})
    longer = encoded({**claims, "exp": claims["exp"] + 10_000})
    for bad in (
        f"{head}.{wider}.{mark}", f"{head}.{longer}.{mark}", f"{none}.{payload}.",
        f"{none}.{wider}.", f"{head}.{payload}.{mark[:-2]}", f"{head}.{payload}.",
        f"{head}.{payload}", "x", "..", "a.b.c",
        token + "x", "é", "%00", "x" * 9000, files.anon, files.anon.removeprefix("ich_pub_"),
        files.secret, files.secret.removeprefix("ich_admin_"),
    ):  # fmt: skip
        answer = files.send("GET", f"{base}?token={quote(bad)}")
        assert (answer.status, answer.code) == (401, "invalid_token"), bad


def test_one_kind_of_token_is_not_the_other(files):
    read = files.signed("kinds", "f").partition("?token=")[2]
    url = mint(files, "kinds", "f", 4)
    upload = url.rpartition("/")[2]
    answer = files.send("PUT", f"/storage/put/{read}", b"data", PLAIN)
    assert (answer.status, answer.code) == (401, "invalid_token")
    answer = files.read(f"kinds/f?token={upload}")
    assert (answer.status, answer.code) == (401, "invalid_token")
    for service in ("/auth/me", "/postgres/x"):
        headers = {"apikey": files.anon, "authorization": f"Bearer {read}"}
        answer = files.send("GET", service, headers=headers)
        assert answer.status == 401
    assert files.send("PUT", url, b"data", PLAIN).status == 200


def test_a_replayed_upload_url(files):
    url = mint(files, "replay", "f", 4)
    assert files.send("PUT", url, b"good", PLAIN).status == 200
    answer = files.send("PUT", url, b"evil", PLAIN)
    assert (answer.status, answer.code) == (409, "upload_used")
    files.call("delete", {"bucket": "replay", "path": "f"})
    answer = files.send("PUT", url, b"evil", PLAIN)
    assert (answer.status, answer.code) == (409, "upload_used")
    assert files.call("head", {"bucket": "replay", "path": "f"}).json == {"exists": False}


def test_an_altered_upload_url(files, unchanged):
    url = mint(files, "altered", "f", 4)
    base, _, token = url.rpartition("/")
    head, payload, mark = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    for change in ({"n": 5}, {"p": "g"}, {"b": "public"}, {"exp": claims["exp"] + 999}):
        text = base64.urlsafe_b64encode(json.dumps({**claims, **change}).encode()).decode()
        answer = files.send("PUT", f"{base}/{head}.{text.rstrip('=')}.{mark}", b"12345", PLAIN)
        assert (answer.status, answer.code) == (401, "invalid_token"), change
    spend(files, url, 4)
    files.call("delete", {"bucket": "altered", "path": "f"})


def test_two_uploads_to_one_url_at_once(files):
    url = mint(files, "twice", "f", 8)
    path = url[url.index("/storage") :]
    head = f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 8\r\n"
    with socket.create_connection(("127.0.0.1", files.port), timeout=10) as first:
        first.sendall(head.encode() + b"connection: close\r\n\r\n1234")
        assert wait_until(lambda: files.rows(
            "select 1 from storage.uploads where path = 'f' and bucket = 'twice'"
            " and version is not null"))  # fmt: skip
        answer = files.send("PUT", url, b"evilevil", PLAIN)
        assert (answer.status, answer.code) == (409, "upload_in_progress")
        first.sendall(b"5678")
        got = b""
        while piece := first.recv(4096):
            got += piece
    assert got.startswith(b"HTTP/1.1 200")
    assert files.send("GET", files.signed("twice", "f")).body == b"12345678"


def test_the_wrong_length(files, unchanged):
    url = mint(files, "length", "f", 10)
    for body in (b"x" * 9, b"x" * 11, b""):
        answer = files.send("PUT", url, body, {**PLAIN, "content-length": str(len(body))})
        assert (answer.status, answer.code) == (400, "content_length_mismatch")
    answer = files.send("PUT", url, iter([b"x" * 10]), {**PLAIN, "transfer-encoding": "chunked"})
    assert (answer.status, answer.code) == (411, "length_required")
    spend(files, url, 10)
    assert files.call("delete", {"bucket": "length", "path": "f"}).json["bytes_freed"] == 10


def cut(files, head, body):
    """Sends part of a body, then leaves."""
    with socket.create_connection(("127.0.0.1", files.port), timeout=10) as peer:
        peer.sendall(head + body)
        time.sleep(0.1)


@pytest.mark.parametrize("sent", [0, 1, 70_000, 299_999])
def test_a_cut_upload_leaves_nothing(files, unchanged, sent):
    url = mint(files, "cut", "f", 300_000)
    path = url[url.index("/storage") :]
    head = (f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n"
            "content-length: 300000\r\n\r\n")  # fmt: skip
    cut(files, head.encode(), b"x" * sent)
    assert wait_until(lambda: not files.rows(
        "select 1 from storage.uploads where bucket = 'cut' and version is not null"))  # fmt: skip
    assert files.call("head", {"bucket": "cut", "path": "f"}).json == {"exists": False}
    # the client may try again while the URL lasts
    assert files.send("PUT", url, b"y" * 300_000, PLAIN).status == 200
    files.call("delete", {"bucket": "cut", "path": "f"})
    direct = (f"PUT /storage/object/cut/g HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n"
              f"authorization: Bearer {files.secret}\r\n\r\n")  # fmt: skip
    cut(files, direct.encode(), b"x" * sent)
    assert wait_until(lambda: not files.rows("select 1 from storage.uploads where bucket = 'cut'"))
    assert files.call("head", {"bucket": "cut", "path": "g"}).json == {"exists": False}


def test_lying_about_the_type(files, unchanged):
    url = mint(files, "lies", "f", 3, "image/png")
    for kind in ("text/html", "image/svg+xml", "", "image/png2"):
        answer = files.send("PUT", url, b"abc", {"content-type": kind})
        assert (answer.status, answer.code) == (415, "content_type_mismatch"), kind
    assert files.send("PUT", url, b"abc", {"content-type": "Image/PNG; x=1"}).status == 200
    got = files.send("GET", files.signed("lies", "f"))
    assert got.headers["content-type"] == "image/png"  # what was signed, whatever was sent
    assert got.headers["x-content-type-options"] == "nosniff"
    files.call("delete", {"bucket": "lies", "path": "f"})


PAGE = b"<script>fetch('/auth/me')</script>"


@pytest.mark.parametrize("kind", [
    "text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/xml",
    "application/xml", "text/javascript", "application/x-shockwave-flash", "text/xsl", "x/unknown",
    "multipart/x-mixed-replace; boundary=x", "message/rfc822",
])  # fmt: skip
def test_pages_in_the_public_bucket_run_nothing(files, kind):
    assert files.upload("public", "page", PAGE, kind).status == 200
    for _ in range(2):
        for headers in ({}, {"range": "bytes=0-"}):
            got = files.read("public/page", headers)
            policy = got.headers["content-security-policy"]
            assert "sandbox" in policy.split("; ")
            assert "default-src 'none'" in policy
            assert "script-src" not in policy
            assert "allow-scripts" not in policy
            assert got.headers["x-content-type-options"] == "nosniff"
    answer = files.read("public/page", {"service-worker": "script"})
    assert (answer.status, answer.code) == (403, "forbidden")


def test_huge_range_lists(files):
    assert files.upload("public", "ranges", bytes(1000)).status == 200
    for text in (
        "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 500, 2)), "bytes=" + "0-," * 5000,
        "bytes=" + "0-1," * 16 + "0-1", "bytes=" + "," * 3000,
    ):  # fmt: skip
        answer = files.read("public/ranges", {"range": text})
        assert (answer.status, answer.code) == (416, "too_many_ranges")
    got = files.read("public/ranges", {"range": "bytes=" + ",".join(["0-999"] * 16)})
    assert (got.status, len(got.body)) == (206, 1000)  # overlapping ones are sent once


def test_checksums(files, unchanged):
    data = b"the content"
    right = hashlib.sha256(data).hexdigest()
    url = mint(files, "sums", "f", len(data), sha256=right)
    answer = files.send("PUT", url, b"other bytes", PLAIN)
    assert (answer.status, answer.code) == (400, "checksum_mismatch")
    assert files.call("head", {"bucket": "sums", "path": "f"}).json == {"exists": False}
    done = files.send("PUT", url, data, PLAIN)
    assert (done.status, done.json["sha256"]) == (200, right)
    told = files.call("head", {"bucket": "sums", "path": "f"}).json
    assert (told["sha256"], told["etag"]) == (right, done.headers["etag"])
    same = files.upload("sums", "f", data)  # nobody states it: the same etag, and no SHA-256
    assert (same.headers["etag"], same.json["sha256"]) == (done.headers["etag"], None)
    assert files.call("head", {"bucket": "sums", "path": "f"}).json["sha256"] is None
    assert files.upload("sums", "f", data + b"!").headers["etag"] != done.headers["etag"]
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    wrong = base64.b64encode(bytes(32)).decode()
    for headers, status in (
        ({"content-digest": f"sha-256=:{digest}:"}, 200), ({"content-md5": md5}, 200),
        ({"content-digest": f"sha-256=:{wrong}:"}, 400), ({"content-md5": "AAAA"}, 400),
        ({"content-digest": f"sha-512=:x:, sha-256=:{digest}:"}, 200),
    ):  # fmt: skip
        assert files.upload("sums", "f", data, headers=headers).status == status, headers
    files.call("delete", {"bucket": "sums", "path": "f"})


def test_uploads_with_the_key_are_checked_too(files, unchanged):
    for headers, status in (
        ({"content-encoding": "gzip"}, 415), ({"content-range": "bytes 0-2/9"}, 400),
        ({"content-type": "no type"}, 400),
    ):  # fmt: skip
        assert files.upload("bad", "f", b"abc", headers=headers).status == status, headers
    answer = files.send("PUT", "/storage/object/bad/f", iter([b"abc"]), {
        "authorization": f"Bearer {files.secret}", "transfer-encoding": "chunked",
    })  # fmt: skip
    assert (answer.status, answer.code) == (411, "length_required")
    answer = files.send("PUT", "/storage/object/bad/f", b"abc", {"apikey": files.anon})
    assert (answer.status, answer.code) == (403, "service_key_required")
    assert files.send("PUT", "/storage/object/bad/f", b"abc").status == 401


def test_bodies_that_are_none(files):
    bearer = {"authorization": f"Bearer {files.secret}", "content-type": "application/json"}
    for body in (b"", b"null", b"[]", b"7", b"{", b"\xff", b'{"bucket": "\\ud800"}', b"{}",
                 b"[" * 100_000, b'{"bucket":"abc","bucket":["x"]}'):  # fmt: skip
        answer = files.send("POST", "/storage/head", body, bearer)
        assert answer.status in (400, 413), body[:20]
        assert answer.code
    for path in ("/storage/", "/storage", "/storage/put", "/storage/nothing", "/storage/object/"):
        answer = files.send("POST", path, {}, bearer)
        assert answer.status in (404, 405), path


def test_the_quota_is_exact_and_restored(files, other):
    host, key = other
    headers = {**host, "authorization": f"Bearer {key}"}

    def call(name, **body):
        return files.send("POST", f"/storage/{name}", body, headers)

    def room():
        """What still fits: the answer to a mint that is too large says it."""
        answer = call("get-put-url", bucket="quota", path="probe", content_type="a/b",
                      content_length=5 << 40)  # fmt: skip
        assert (answer.status, answer.code) == (413, "storage_quota_exceeded")
        return int(answer.json["detail"].split("at most ")[1].split(" ")[0])

    left = room()
    minted = call("get-put-url", bucket="quota", path="big", content_type="text/plain",
                  content_length=left)  # fmt: skip
    assert minted.status == 200
    assert room() == 0
    put = files.send("PUT", "/storage/object/quota/small", b"x", headers)
    assert (put.status, put.code) == (413, "storage_quota_exceeded")
    # a refused upload to the URL gives nothing back: it is still open
    answer = files.send("PUT", minted.json["url"], b"x", {**PLAIN, **host})
    assert (answer.status, answer.code) == (400, "content_length_mismatch")
    assert room() == 0
