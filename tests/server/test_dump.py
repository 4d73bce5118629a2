"""How `ichibase dump` treats pg_dump; what it makes of a database is tested with a node."""

import io

import pytest

from server.backup import dump, tools
from server.cli.client import CommandError

URL = "postgres://ichi_abc_owner:secret@127.0.0.1:1/ichi_abc"


@pytest.fixture
def pg_dump(tmp_path, monkeypatch):
    """Puts a script in its place."""

    def make(script):
        path = tmp_path / "pg_dump"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(tools, "program", lambda name, options: str(path))

    return make


def test_warnings_without_end_do_not_stop_it(pg_dump):
    pg_dump("head -c 300000 /dev/zero >&2; echo 'CREATE SCHEMA public;'")
    out = io.BytesIO()
    dump._write(URL, out)
    assert out.getvalue() == b"CREATE SCHEMA IF NOT EXISTS public;\n"


def test_a_failure_tells_the_last_that_was_said(pg_dump):
    pg_dump("head -c 300000 /dev/zero | tr '\\0' 'a' >&2; echo ' the end' >&2; exit 1")
    with pytest.raises(CommandError) as told:
        dump._write(URL, io.BytesIO())
    assert str(told.value).endswith("aaa the end")
    assert len(str(told.value)) < 2_100


def test_nothing_goes_on_when_nobody_takes_it(pg_dump):
    pg_dump("echo a; exec sleep 600")
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        dump._write(URL, full)
