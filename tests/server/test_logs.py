"""Log lines: no secret gets into one."""

import io
import json

import pytest

from server.base.events import Failed, Lost, Served
from server.base.logs import Logger

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl-_x"


def logged(event, format="text"):
    out = io.StringIO()
    Logger("all", format, out)(event)
    return out.getvalue()


def served(path):
    return Served("r1", "shop", "storage", "PUT", path, 200, 1.5, "1.2.3.4")


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_token_of_a_path_is_logged(format):
    line = logged(served(f"/storage/put/{TOKEN}"), format)
    assert "/storage/put/(token)" in line
    assert "c2lnbmF0dXJl" not in line
    line = logged(served(f"/postgres/ich_admin_{TOKEN}/x"), format)
    assert "/postgres/(token)/x" in line
    if format == "json":
        assert json.loads(line)["path"] == "/postgres/(token)/x"


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_password_of_an_error_is_logged(format):
    trace = "OperationalError: host=db password=s3cret-x dbname=a at postgresql://ann:s3cret-x@db/a"
    for event in (Failed("reading", trace), Lost("the database", trace)):
        line = logged(event, format)
        assert "s3cret" not in line
        assert "password=(hidden) dbname=a at postgresql://ann:(hidden)@db/a" in line


def test_other_lines_stay_as_they_are():
    path = "/cdn/default/public/a@b/eyJ.png"
    assert f"PUT {path} 200" in logged(served(path))
