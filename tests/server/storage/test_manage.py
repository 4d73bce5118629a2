"""Buckets and their rules, the command line, policies that refer to files, and what is counted."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request

import jwt
import pytest

from tests.process.running import wait_until
from tests.timing import slowness


def admin(files, method, path, body=None):
    token = (files.data_dir / "secrets" / "admin_token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{files.admin_port}/admin/v1/projects/default/storage{path}",
        data=None if body is None else json.dumps(body).encode(), method=method,
        headers={"authorization": f"Bearer {token}"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_buckets_rules(files):
    status, found = admin(files, "PUT", "/buckets/ruled", {
        "size_limit": 100, "allowed_types": ["image/*", "text/plain"],
    })  # fmt: skip
    assert status == 200
    assert found == {
        "name": "ruled", "public": False, "size_limit": 100, "cache_seconds": None,
        "allowed_types": ["image/*", "text/plain"], "files": 0, "bytes": 0,
    }  # fmt: skip
    for kind, size, status, code in (
        ("image/png", 100, 200, None), ("IMAGE/webp", 1, 200, None),
        ("text/plain; charset=utf-8", 5, 200, None), ("text/html", 5, 415, "content_type_refused"),
        ("imagex/png", 5, 415, "content_type_refused"), ("image/png", 101, 413, "file_too_large"),
    ):  # fmt: skip
        for answer in (files.put("ruled", "f", b"x" * size, kind),
                       files.upload("ruled", "f", b"x" * size, kind)):  # fmt: skip
            assert (answer.status, answer.code) == (status, code), (kind, size)
    assert admin(files, "DELETE", "/buckets/ruled")[1]["code"] == "bucket_not_empty"
    files.call("delete", {"bucket": "ruled", "path": "f"})
    assert admin(files, "DELETE", "/buckets/ruled") == (200, {"deleted": True})
    assert admin(files, "GET", "/buckets/ruled")[0] == 404
    assert files.upload("ruled", "f", b"made again on first use").status == 200


def test_rules_that_are_none(files):
    for body in ({"size_limit": 0}, {"allowed_types": ["nonsense"]}, {"allowed_types": []},
                 {"allowed_types": ["*/*"]}, {"cache_seconds": -1}, {"other": 1}):  # fmt: skip
        assert admin(files, "PUT", "/buckets/rules", body)[0] == 400, body
    for name in ("UP", "x", "a_b", "%2e%2e"):
        assert admin(files, "PUT", f"/buckets/{name}", {})[0] == 400
    assert admin(files, "DELETE", "/buckets/never-made")[0] == 404


def test_how_long_caches_keep_a_file(files):
    assert files.upload("public", "kept.txt", b"x", "text/plain").status == 200
    assert files.read("public/kept.txt").headers["cache-control"] == "public, max-age=60"

    def told():
        """By both workers."""
        return {files.read("public/kept.txt").headers["cache-control"] for _ in range(6)}

    admin(files, "PUT", "/buckets/public", {"cache_seconds": 3600})
    assert wait_until(lambda: told() == {"public, max-age=3600"})
    admin(files, "PUT", "/buckets/public", {})
    assert wait_until(lambda: told() == {"public, max-age=60"})


def test_the_projects_settings(files):
    settings = {"read_seconds": 7, "upload_seconds": 9, "file_size_limit": 50}
    files.inline("settings", "default", "set", "storage", json.dumps(settings))
    try:
        assert wait_until(lambda: files.put("set", "f", b"x" * 51).code == "file_too_large")
        minted = files.call("get-put-url", {
            "bucket": "set", "path": "f", "content_type": "a/b", "content_length": 5,
        }).json  # fmt: skip
        assert minted["expires_in"] == 9
        answer = files.call("get-url", {"bucket": "set", "path": "f"}).json
        assert 0 < answer["exp"] - time.time() <= 7
        for bad in ('{"read_seconds": 0}', '{"file_size_limit": "1"}', '{"x": 1}'):
            assert files.inline("settings", "default", "set", "storage", bad, ok=False).returncode
    finally:
        files.inline("settings", "default", "set", "storage", "{}")
        assert wait_until(lambda: files.put("set", "f", b"x" * 51).status == 200)


def test_the_command_line(files, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_text("first")
    (tree / "sub" / "b é.png").write_bytes(b"\x89PNG" * 100_000)
    (tree / "empty").write_bytes(b"")
    done = files.cli("storage", "cp", "-r", str(tree), "cli:up/")
    assert "copied 3 files" in done.stderr
    listed = json.loads(files.inline("storage", "ls", "cli:up", "--json").stdout)
    assert [(one["path"], one["content_type"]) for one in listed] == [
        ("up/a.txt", "text/plain"), ("up/empty", "application/octet-stream"),
        ("up/sub/b é.png", "image/png"),
    ]  # fmt: skip
    assert "up/sub/b é.png" in files.inline("storage", "ls", "cli:").stdout
    down = tmp_path / "down"
    files.inline("storage", "cp", "-r", "cli:up", str(down))
    for path in tree.rglob("*"):
        if path.is_file():
            assert (down / path.relative_to(tree)).read_bytes() == path.read_bytes()
    files.inline("storage", "cp", "cli:up/a.txt", str(tmp_path / "one.txt"))
    assert (tmp_path / "one.txt").read_text() == "first"
    files.inline("storage", "cp", str(tmp_path / "one.txt"), "cli:", "--type", "text/markdown")
    assert (
        files.call("head", {"bucket": "cli", "path": "one.txt"}).json["content_type"]
        == "text/markdown"
    )
    url = files.inline("storage", "sign", "cli:up/a.txt", "--seconds", "30").stdout.strip()
    assert files.send("GET", url).body == b"first"
    assert "deleted 1 file" in files.inline("storage", "rm", "cli:one.txt").stdout
    assert files.inline("storage", "rm", "cli:one.txt", ok=False).returncode == 1
    assert files.inline("storage", "rm", "-r", "cli:up", ok=False).returncode == 1
    assert "deleted 3 files" in files.inline("storage", "rm", "-r", "cli:up", "--yes").stdout
    assert files.inline("storage", "ls", "cli:", "--json").stdout.strip() == "[]"
    assert "cli" in files.inline("storage", "ls").stdout
    files.inline("storage", "buckets", "cli", "--size-limit", "2K", "--types", "text/plain")
    done = files.inline("storage", "cp", str(tree / "sub" / "b é.png"), "cli:x", ok=False)
    assert done.returncode == 1
    assert "413" in done.stderr or "file_too_large" in done.stderr or "at most" in done.stderr
    for text, shown in (("90", "90 s"), ("default", "by default")):
        changed = files.inline("storage", "buckets", "cli", "--cache-seconds", text)
        assert shown in changed.stdout
    assert "number of seconds" in files.inline(
        "storage", "buckets", "cli", "--cache-seconds", "soon", ok=False).stderr  # fmt: skip
    files.inline("storage", "buckets", "cli", "--delete")
    for wrong in (
        ("cp", "a", "b"), ("cp", "cli:a", "cli:b"), ("cp", "no-such", "cli:b"),
        ("cp", "cli:none", "x"), ("rm", "nothing"), ("cp", str(tree), "cli:x"),
    ):  # fmt: skip
        assert files.inline("storage", *wrong, ok=False).returncode == 1, wrong


USER = "11111111-1111-4111-8111-111111111111"
POLICY = """
create table if not exists posts (
  id int generated always as identity primary key, file uuid references storage.objects, path text
);
alter table posts enable row level security;
drop policy if exists with_file on posts;
create policy with_file on posts for select using (storage.object_exists('attach', path));
"""


def test_policies_and_rows_refer_to_files(files):
    files.sql(POLICY + "select 1")
    put = files.put("attach", "u/1/pic.png", b"data", "image/png", user_id=USER)
    assert put.status == 200, put
    files.sql(
        f"insert into posts (file, path) values ('{put.json['id']}', 'u/1/pic.png'),"
        " (null, 'u/none') returning id"
    )
    assert wait_until(lambda: files.send(
        "GET", "/postgres/posts?select=path", None, {"apikey": files.anon,
        "authorization": f"Bearer {files.anon}"}).status == 200)  # fmt: skip
    got = files.send("GET", "/postgres/posts?select=path", None,
                     {"authorization": f"Bearer {files.anon}"})  # fmt: skip
    assert got.json == [{"path": "u/1/pic.png"}]
    rows = files.sql(
        "select storage.foldername(path), storage.filename(path), storage.extension(path), owner_id"
        " from storage.objects where bucket = 'attach'"
    )
    assert rows == [["{u,1}", "pic.png", "png", USER]]
    # a file that a row refers to is kept, and so is its content
    kept = files.call("delete", {"bucket": "attach", "path": "u/1/pic.png"})
    assert (kept.status, kept.code) == (409, "conflict")
    assert files.put("attach", "u/1/pic.png", b"newer", "image/png").json["id"] == put.json["id"]
    files.sql("delete from posts returning id")
    assert files.call("delete", {"bucket": "attach", "path": "u/1/pic.png"}).json["deleted"]


def test_clients_see_only_their_own_files_in_sql(files):
    assert files.put("mine-only", "a", b"x", user_id=USER).status == 200
    claims = json.dumps({"sub": USER, "role": "authenticated"})
    query = "select count(*) from storage.objects where bucket = 'mine-only'"
    for role, who, count in (
        ("anon", "{}", "0"), ("authenticated", claims, "1"),
        ("authenticated", claims.replace("1111-", "2222-"), "0"), ("service_role", "{}", "1"),
    ):  # fmt: skip
        found = files.rows_as(role, who, query)
        assert str(found[0][0]) == count, role
    for role in ("anon", "authenticated"):
        for text in ("delete from storage.objects", "select * from storage.uploads",
                     "select storage.remove('mine-only', 'a', false, 0)",
                     "insert into storage.buckets (id) values ('hers')"):  # fmt: skip
            with pytest.raises(Exception, match="permission denied"):
                files.rows_as(role, claims, text)


def test_reads_and_bytes_are_counted(files):
    import psycopg

    listener = json.loads((files.data_dir / "run" / "node.json").read_text())

    def usage():
        with psycopg.connect(listener["config"]["control_dsn"]) as control:
            rows = control.execute(
                "select counter, sum(value)::bigint from usage u join projects p on p.id ="
                " u.project_id where p.slug = 'default' group by 1"
            ).fetchall()
        return {name: int(value) for name, value in rows}

    assert files.upload("public", "counted.txt", b"x" * 1000, "text/plain").status == 200
    assert files.upload("counted", "from", b"x" * 50).status == 200
    assert files.upload("counted", "to", b"x" * 300).status == 200
    time.sleep(4.5 * slowness())  # what came before is written
    before = {"storage_reads": 0, "egress_bytes": 0} | usage()
    for number in range(10):
        headers = {"range": "bytes=0-99"} if number % 2 else {}
        assert files.read("public/counted.txt", headers).status in (200, 206)
    assert wait_until(lambda: usage().get("storage_reads", 0) == before["storage_reads"] + 10)
    assert usage()["egress_bytes"] == before["egress_bytes"] + 5 * 1000 + 5 * 100
    if files.kind == "disk":  # of what the client of a large file did not wait for, nothing counts
        size = 40 << 20
        assert files.upload("public", "long.bin", bytes(size)).status == 200
        before |= {"egress_bytes": usage()["egress_bytes"]}
        peers = [socket.create_connection(("127.0.0.1", files.port)) for _ in range(8)]
        for peer in peers:
            peer.sendall(b"GET /cdn/default/public/long.bin HTTP/1.1\r\nhost: x\r\n\r\n")
        for peer in peers:
            assert peer.recv(100)
            peer.close()
        reads = before["storage_reads"] + 18
        assert wait_until(lambda: usage()["storage_reads"] == reads)
        most = before["egress_bytes"] + len(peers) * (size >> 1)
        assert wait_until(lambda: usage()["egress_bytes"] < most)
        assert usage()["egress_bytes"] > before["egress_bytes"]
        files.call("delete", {"bucket": "public", "path": "long.bin"})
    assert (
        files.call("delete", {"bucket": "public", "path": "counted.txt"}).json["bytes_freed"]
        == 1000
    )
    # what a move replaces is no more stored, and one onto itself changes nothing
    for target in ("to", "to"):
        moved = files.call("move", {"bucket": "counted", "from": "from", "to": target})
        assert moved.status in (200, 404)
    same = files.call("move", {"bucket": "counted", "from": "to", "to": "to"})
    assert same.json == {"moved": True, "size": 50}
    assert wait_until(lambda: usage()["storage_bytes"] == before["storage_bytes"] - 1300)
    assert usage()["storage_objects"] == before["storage_objects"] - 2


def test_an_unused_reservation_runs_out(files):
    import psycopg

    before = files.used()
    minted = files.call("get-put-url", {
        "bucket": "unused", "path": "f", "content_type": "a/b", "content_length": 5000,
    }).json  # fmt: skip
    assert files.used()["reserved"] == before["reserved"] + 5000
    with psycopg.connect(files.system_dsn(), autocommit=True) as connection:
        connection.execute(
            "update storage.uploads set expires_at = now() - interval '1s',"
            " url_until = now() - interval '1s' where bucket = 'unused'"
        )
    assert wait_until(lambda: files.used() == before)  # the sweep of a worker comes by
    answer = files.send("PUT", minted["url"], b"x" * 5000, {"content-type": "a/b"})
    assert (answer.status, answer.code) == (409, "upload_used")


def test_the_read_tokens_of_a_deleted_user_end(files):
    who, key = {"email": "f@example.com", "password": "tangerine lamp 41"}, {"apikey": files.anon}
    assert files.send("POST", "/auth/signup", who, key).status == 201
    user = files.send("POST", "/auth/login", who, key)
    assert user.status == 200, user
    token = user.json["access_token"]
    uid = jwt.decode(token, options={"verify_signature": False})["sub"]
    assert files.upload("ended", "f", b"data").status == 200
    url = files.signed("ended", "f", user_id=uid, ttl_seconds=600)
    other = files.signed("ended", "f", user_id=USER, ttl_seconds=600)
    assert files.send("GET", url).status == 200
    headers = {"apikey": files.anon, "authorization": f"Bearer {files.secret}"}
    done = files.send("DELETE", f"/auth/admin/users/{uid}", None, headers)
    assert done.status == 200, done
    assert wait_until(lambda: {files.send("GET", url).status for _ in range(6)} == {401})
    assert files.send("GET", other).status == 200


def test_a_deleted_projects_files_are_gone(files):
    files.inline("projects", "create", "doomed")
    key = files.project("doomed")["service_key"]
    headers = {"host": "doomed.localhost", "authorization": f"Bearer {key}"}
    assert wait_until(lambda: files.send(
        "PUT", "/storage/object/stuff/f", b"data", headers).status == 200)  # fmt: skip
    assert files.send("GET", "/storage/object/stuff/f", headers=headers).body == b"data"
    # its name need not be known on this machine
    shown = files.inline("storage", "ls", "stuff:", "--project", "doomed", "--json").stdout
    assert [one["path"] for one in json.loads(shown)] == ["f"]
    files.inline("projects", "delete", "doomed", "--yes")
    assert wait_until(
        lambda: files.send("GET", "/cdn/doomed/stuff/f", headers={}).status in (404, 503)
    )
