"""The control calls and what they promise."""

from __future__ import annotations

import http.client
import os
import time

import pytest


def test_a_file_goes_up_by_url_and_comes_back(files):
    data = b"hello" * 100
    minted = files.call("get-put-url", {
        "bucket": "notes", "path": "/a/hello.txt", "content_type": "text/plain",
        "content_length": len(data),
    })  # fmt: skip
    assert minted.status == 200, minted
    assert minted.json["expires_in"] == 300
    assert files.call("head", {"bucket": "notes", "path": "a/hello.txt"}).json == {"exists": False}
    done = files.send("PUT", minted.json["url"], data, {"content-type": "text/plain"})
    assert done.status == 200, done
    head = files.call("head", {"bucket": "notes", "path": "a/hello.txt"}).json
    assert head["exists"] is True
    assert (head["size"], head["content_type"]) == (500, "text/plain")
    assert head["etag"] == done.headers["etag"]
    got = files.send("GET", files.signed("notes", "a/hello.txt"))
    assert (got.status, got.body) == (200, data)
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["x-content-type-options"] == "nosniff"
    age = got.headers["cache-control"].removeprefix("private, max-age=")
    assert 50 <= int(age) <= 60


def test_the_public_bucket_is_read_by_anyone(files):
    assert files.put("public", "pics/logo.png", b"\x89PNG" * 300, "image/png").status == 200
    got = files.read("public/pics/logo.png")
    assert (got.status, got.body) == (200, b"\x89PNG" * 300)
    assert got.headers["access-control-allow-origin"] == "*"
    assert got.headers["cache-control"] == "public, max-age=60"
    assert files.signed("public", "pics/logo.png").endswith("/cdn/default/public/pics/logo.png")


def test_large_files_keep_their_bytes(files):
    data = bytes(range(256)) * 12_000 + b"end"
    assert files.put("public", "large.bin", data).status == 200
    assert files.read("public/large.bin").body == data
    got = files.read("public/large.bin", {"range": "bytes=100-2000099"})
    assert (got.status, got.body) == (206, data[100:2000100])
    assert files.upload("public", "large2.bin", data).status == 200
    assert files.read("public/large2.bin").body == data


def test_delete_frees_and_forgives(files):
    before = files.used()
    assert files.upload("bin", "x/1", b"1" * 700).status == 200
    assert files.used()["bytes"] == before["bytes"] + 700
    gone = files.call("delete", {"bucket": "bin", "path": "x/1"})
    assert gone.json == {"deleted": True, "bytes_freed": 700}
    again = files.call("delete", {"bucket": "bin", "path": "x/1"})
    assert (again.status, again.json) == (200, {"deleted": False, "bytes_freed": 0})
    assert files.used() == before


def test_a_folder_is_deleted_at_once(files):
    for name in ("f", "f/a", "f/b/c", "fg", "f0", "f-x"):
        assert files.upload("folders", name, b"12").status == 200
    done = files.call("delete", {"bucket": "folders", "path": "f/", "recursive": True})
    assert done.json == {"deleted": True, "bytes_freed": 6, "count": 3}
    left = files.call("list", {"bucket": "folders"}).json["objects"]
    assert [one["path"] for one in left] == ["f-x", "f0", "fg"]


def test_lists_are_paged_in_order_of_bytes(files):
    names = [*sorted(f"p/{n:02d}é" for n in range(25)), "q"]
    for name in names:
        assert files.upload("paged", name.replace("é", "%C3%A9"), b"x").status == 200
    found, cursor, pages = [], None, 0
    while True:
        body = {"bucket": "paged", "prefix": "p/", "limit": 10}
        if cursor:
            body["cursor"] = cursor
        page = files.call("list", body).json
        found += [one["path"] for one in page["objects"]]
        cursor, pages = page["cursor"], pages + 1
        if cursor is None:
            break
    assert (found, pages) == (names[:-1], 3)
    assert files.call("list", {"bucket": "none-here"}).json == {"objects": [], "cursor": None}


def test_move_keeps_the_file_and_replaces_the_target(files):
    before = files.used()
    files.upload("moves", "from", b"12345", "text/plain")
    files.upload("moves", "to", b"123")
    moved = files.call("move", {"bucket": "moves", "from": "from", "to": "to"})
    assert moved.json == {"moved": True, "size": 5}
    assert files.used()["bytes"] == before["bytes"] + 5
    got = files.send("GET", files.signed("moves", "to"))
    assert (got.body, got.headers["content-type"]) == (b"12345", "text/plain")
    assert files.send("GET", files.signed("moves", "from")).status == 404
    missing = files.call("move", {"bucket": "moves", "from": "from", "to": "b"})
    assert (missing.status, missing.code) == (404, "not_found")
    same = files.call("move", {"bucket": "moves", "from": "to", "to": "to"})
    assert same.json == {"moved": True, "size": 5}


def test_overwriting_counts_the_difference(files):
    before = files.used()["bytes"]
    files.put("over", "a", b"x" * 1000)
    files.put("over", "a", b"y" * 400)
    assert files.used()["bytes"] == before + 400
    files.put("over", "a", b"z" * 900)
    assert files.used()["bytes"] == before + 900
    assert files.used()["reserved"] == 0 or files.rows("select count(*) from storage.uploads")[0][0]


def test_empty_files_only_with_the_key(files):
    assert files.upload("empty", "none", b"", headers={"content-length": "0"}).status == 200
    got = files.send("GET", files.signed("empty", "none"))
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")
    assert (
        files.send("GET", files.signed("empty", "none"), headers={"range": "bytes=0-"}).status
        == 416
    )


@pytest.mark.parametrize("name", ["get-url", "get-put-url", "delete", "head", "list", "move"])
def test_only_the_secret_key_may_call(files, name):
    for key, status, code in (
        (None, 401, "missing_api_key"),
        (files.anon, 403, "service_key_required"),
    ):
        answer = files.call(name, {"bucket": "b1", "path": "p"}, key=key)
        assert (answer.status, answer.code) == (status, code)
    answer = files.send("GET", f"/storage/{name}", None, {"apikey": files.secret})
    assert (answer.status, answer.code) == (405, "method_not_allowed")


def test_a_user_token_may_not_call(files):
    import jwt

    secret = files.project()["jwt_secret"]
    claims = {"sub": "11111111-1111-4111-8111-111111111111", "role": "authenticated",
              "aud": "authenticated", "exp": int(time.time()) + 600}  # fmt: skip
    token = jwt.encode(claims, secret, "HS256")
    answer = files.call("get-url", {"bucket": "b1", "path": "p"}, key=token)
    assert (answer.status, answer.code) == (403, "service_key_required")
    claims["role"] = "service_role"
    answer = files.call(
        "get-url", {"bucket": "b1", "path": "p"}, key=jwt.encode(claims, secret, "HS256")
    )
    assert answer.status == 401


CASES = [
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "a/b"},
     "body must have required property 'content_length'"),
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "a/b", "content_length": 0},
     "body/content_length must be >= 1"),
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "a/b", "content_length": "7"},
     "body/content_length must be integer"),
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "a/b", "content_length": 1.5},
     "body/content_length must be integer"),
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "nonsense", "content_length": 7},
     "body/content_type must be a media type"),
    ("get-put-url", {"bucket": "abc", "path": "p", "content_type": "a/b\r\nx: y", "content_length": 7},  # noqa: E501
     "body/content_type must be a media type"),
    ("get-url", {"path": "p"}, "body must have required property 'bucket'"),
    ("get-url", {"bucket": "abc", "path": 7}, "body/path must be string"),
    ("get-url", {"bucket": "abc", "path": "p", "ttl_seconds": 86_401},
     "body/ttl_seconds must be <= 86400"),
    ("get-url", {"bucket": "abc", "path": "p", "recursive": "yes"},
     "body/recursive must be boolean"),
    ("list", {"bucket": "abc", "limit": 1001}, "body/limit must be <= 1000"),
    ("list", {"bucket": "abc", "limit": 0}, "body/limit must be >= 1"),
    ("list", {"bucket": "abc", "cursor": "§"}, "body/cursor must be a cursor of an earlier answer"),
    ("delete", ["no"], "body must be object"),
    ("move", {"bucket": "abc", "from": "a", "to": "../b"},
     'body/to must not have segments "." or ".."'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "message"), CASES)
def test_what_a_call_refuses(files, name, body, message):
    answer = files.call(name, body)
    assert answer.status == 400
    assert answer.json == {
        "statusCode": 400, "code": "FST_ERR_VALIDATION", "error": "Bad Request",
        "message": message,
    }  # fmt: skip


def test_a_folder_token_opens_what_is_below(files):
    for path in ("docs/a.txt", "docs/sub/b.txt", "docs", "docsx.txt"):
        assert files.upload("shelf", path, b"text").status == 200
    url = files.signed("shelf", "docs/", recursive=True)
    base, _, token = url.partition("?token=")
    assert base.endswith("/cdn/default/shelf/docs")
    for path, status in (("docs/a.txt", 200), ("docs/sub/b.txt", 200), ("docs", 200),
                         ("docsx.txt", 403), ("other", 403), ("docs/none", 404)):  # fmt: skip
        assert files.read(f"shelf/{path}?token={token}").status == status, path


def test_tokens_say_who_and_how_long(files):
    import jwt

    answer = files.call("get-url", {
        "bucket": "who", "path": "x", "user_id": "someone", "ttl_seconds": 5,
    }).json  # fmt: skip
    claims = jwt.decode(answer["url"].partition("?token=")[2], options={"verify_signature": False})
    assert claims["iss"] == "storage"
    assert (claims["prj"], claims["b"], claims["p"], claims["r"]) == ("default", "who", "x", False)
    assert (claims["sub"], claims["jti"], claims["exp"]) == (
        "someone",
        answer["jti"],
        answer["exp"],
    )
    assert claims["exp"] - claims["iat"] == 5


def test_a_connection_goes_on_after_an_upload(files):
    """Whatever its size: the body has been read to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", files.port, timeout=30)
    bearer = {"authorization": f"Bearer {files.secret}"}
    ports = set()
    for size in (0, 1, 8192, 300_000, 5_000_000):
        body = os.urandom(size)
        for method, data in (("PUT", body), ("GET", None)):
            connection.request(method, "/storage/object/same/line", data, bearer)
            ports.add(connection.sock.getsockname()[1])
            answer = connection.getresponse()
            got = answer.read()
            assert answer.status == 200, got
        assert got == body
    assert len(ports) == 1
    connection.close()
