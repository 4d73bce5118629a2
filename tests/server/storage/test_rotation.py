"""Another secret for the tokens of URLs, with and without an overlap."""

from __future__ import annotations

import json
import time

import msgspec
import psycopg
import pytest

from ichicore.errors import ApiError
from server.base.project import AcceptedSecret
from server.storage.tokens import Signer
from tests.server.auth.harness import make_project

PLAIN = {"content-type": "text/plain"}


def mint(files, path):
    answer = files.call("get-put-url", {
        "bucket": "rotate", "path": path, "content_type": "text/plain", "content_length": 4,
    })  # fmt: skip
    return answer.json["url"]


def rotate(files, *arguments):
    return json.loads(files.inline("storage", "rotate-secret", "--json", *arguments).stdout)


def read(files, url):
    """What each of the workers says: several requests reach both."""
    return {files.send("GET", url).status for _ in range(6)}


def secrets_of(files):
    """(the one that signs, the others that are accepted)."""
    signs, accepted = control(
        files, "select storage_secret, storage_accepted from projects where slug = 'default'"
    )[0]
    return signs, [one["secret"] for one in accepted]


def control(files, text, *params):
    listener = json.loads((files.data_dir / "run" / "node.json").read_text())
    dsn = listener["config"]["control_dsn"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        done = connection.execute(text, params)
        return done.fetchall() if done.description else []


@pytest.mark.parametrize("files", ["disk"], indirect=True)  # no store has a part in this
def test_urls_outlive_a_rotation_with_an_overlap_and_no_other(files):
    assert files.upload("rotate", "f", b"data").status == 200
    old, old_put = files.signed("rotate", "f", ttl_seconds=600), mint(files, "old")
    # one that broke off, after the next secret was told, has ended nothing
    stray = json.dumps([{"secret": "never used", "until": time.time() + 60}])
    control(files, "update projects set storage_accepted = %s::jsonb where slug = 'default'", stray)
    assert read(files, old) == {200}
    until = rotate(files)["accepted_until"]
    assert time.time() + 86_300 < until <= time.time() + 86_400
    new, new_put = files.signed("rotate", "f", ttl_seconds=600), mint(files, "new")
    assert read(files, old) == read(files, new) == {200}
    for url in (old_put, new_put):
        assert files.send("PUT", url, b"data", PLAIN).status == 200
    # a second one does not end what the first has left
    before = secrets_of(files)[0]
    done = files.inline("storage", "rotate-secret", "--overlap", "3600")
    newest, put = files.signed("rotate", "f", ttl_seconds=600), mint(files, "unused")
    assert read(files, old) == read(files, new) == read(files, newest) == {200}
    after, accepted = secrets_of(files)
    assert after != before
    assert before in accepted
    reserved = files.used()["reserved"]
    ended = files.inline("storage", "rotate-secret", "--overlap", "0")
    assert "have ended" in ended.stdout
    for url in (old, new, newest):
        assert read(files, url) == {401}
    answer = files.send("PUT", put, b"data", PLAIN)
    assert (answer.status, answer.code) == (401, "invalid_token")
    assert files.used()["reserved"] == reserved  # given back when the URL runs out
    assert read(files, files.signed("rotate", "f")) == {200}
    # nobody is told a secret
    noted = control(files, "select detail from audit where action = 'storage.rotate-secret'")
    shown = [done.stdout, done.stderr, ended.stdout, ended.stderr, files.log.read_text()]
    for text in [*shown, json.dumps(files.project()), json.dumps(noted)]:
        assert before not in text
        assert after not in text
    assert len(noted) == 3


@pytest.mark.parametrize("files", ["disk"], indirect=True)
@pytest.mark.parametrize("overlap", ["-1", "86401"])
def test_overlaps_that_are_none(files, overlap):
    done = files.inline("storage", "rotate-secret", "--overlap", overlap, ok=False)
    assert done.returncode == 1
    assert "invalid_body" in done.stderr


def test_a_secret_is_accepted_until_its_time_and_each_kind_stays_its_own():
    project = make_project("postgresql://nowhere")
    old = Signer(project)
    token, _, _ = old.read("b", "p", recursive=False, user_id=None, seconds=600)
    upload = old.upload("id", "b", "p", 4, "text/plain", 600)
    now = time.time()
    accepted = (
        AcceptedSecret("other", now + 500),
        AcceptedSecret(project.storage_secret, now + 60),
    )
    turned = msgspec.structs.replace(project, storage_secret="new", storage_accepted=accepted)
    signer = Signer(turned)
    assert signer.open_read(token, now).path == "p"
    assert signer.open_upload(upload, now).path == "p"
    for opened, given, moment in (
        (signer.open_read, token, now + 61), (signer.open_upload, upload, now + 61),
        (signer.open_read, upload, now), (signer.open_upload, token, now),
        (Signer(msgspec.structs.replace(turned, storage_accepted=())).open_read, token, now),
        (Signer(msgspec.structs.replace(turned, id="another")).open_read, token, now),
    ):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            opened(given, moment)
        assert caught.value.code == "invalid_token"
    mine, _, _ = signer.read("b", "p", recursive=False, user_id=None, seconds=600)
    with pytest.raises(ApiError):
        old.open_read(mine, now)  # what is signed now is signed with the new one
