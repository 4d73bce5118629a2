"""The command line with wrong input of every kind: a line that says what to do, never a trace."""

from __future__ import annotations

import pytest

from server.cli.main import main

HELLO = "Deno.serve(() => new Response('hello'));"


@pytest.fixture
def run(project, capsys):
    """(exit code, what was said) of `ichibase functions ...`, run in this process."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main(["functions", *arguments, "--data-dir", str(project.node.data_dir)])
        except SystemExit as error:
            code = error.code
        told = capsys.readouterr()
        return code, told.err + told.out

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder of functions, and how one is written there."""
    there = tmp_path / "functions"
    there.mkdir()

    def write(name, **files):
        (there / name).mkdir()
        for file, content in files.items():
            raw = content if isinstance(content, bytes) else content.encode()
            (there / name / file.replace("__", ".")).write_bytes(raw)

    return there, write


NAMES = ["Hello", "a b", "../x", "_x", "x" * 64, "", "é"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("action", ["new", "deploy", "versions", "rollback", "delete"])
def test_names_that_are_none(run, action, name):
    code, said = run(action, name)
    assert code == 1
    assert "choose one such as send-mail" in said


WRONG = [
    (["deploy", "missing"], "ichibase functions new missing"),
    (["deploy", "--dir", "/no/such/place"], "ichibase functions new NAME"),
    (["new", "x", "--dir", "/proc"], "name another folder by --dir"),
    (["rollback", "missing"], "ichibase functions list"),
    (["versions", "missing"], "ichibase functions list"),
    (["delete", "missing", "--yes"], "ichibase functions list"),
    (["delete", "missing"], "say --yes"),
    (["rollback", "x", "--version", "-1"], ">= 1"),
    (["rollback", "x", "--version", "99999999999999999999"], "<= 2147483647"),
    (["rollback", "x", "--version", "one"], "invalid int value"),
    (["list", "--project", "nosuch"], "ichibase projects list"),
    (["logs", "--limit", "-1"], "limit is a number from 0 to 1000"),
    (["secrets", "set"], "ichibase functions secrets set NAME=VALUE"),
    (["secrets", "set", "1A=x"], "ichibase functions secrets set NAME=VALUE"),
    (["secrets", "set", "ICHIBASE_X=1"], "reserved"),
    (["secrets", "set", "--env-file", "/no/such/place"], "No such file or directory; name a file"),
    (["secrets", "set", "--env-file", "/"], "Is a directory; name a file"),
    (["secrets", "unset", "NOPE"], "ichibase functions secrets list"),
    (["invoke", "missing"], "ichibase functions list"),
    (["invoke", "missing", "-H", "bad"], "a header is written 'NAME: VALUE'"),
    (["invoke", "missing", "-H", "a b: c"], "a header is written 'NAME: VALUE'"),
    (["invoke", "missing", "-H", "a: b\nc"], "a header is written 'NAME: VALUE'"),
    (["invoke", "missing", "-X", "A B"], "one is such as GET or POST"),
    (["serve", "missing"], "ichibase functions new missing"),
    (["serve", "--project", "nosuch"], "ichibase projects list"),
    (["nonsense"], "choose from"),
    ([], "ACTION"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "wanted"), WRONG)
def test_wrong_arguments(run, tmp_path, monkeypatch, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    code, said = run(*arguments)
    assert code in (1, 2)
    assert wanted in said
    assert "Traceback" not in said
    assert "internal" not in said


CONFIGS = [
    ("{", "is not valid JSON"), ("[]", "is an object, such as"),
    ('{"ichibase": {"x": 1}}', "`ichibase` takes auth, outbound, schedule, entrypoint"),
    ('{"ichibase": []}', "`ichibase` takes auth, outbound, schedule, entrypoint"),
    ('{"ichibase": {"auth": "no"}}', "auth is one of key, user, none"),
    ('{"ichibase": {"auth": 3}}', 'auth is "key", "user" or "none"'),
    ('{"ichibase": {"outbound": "a.b"}}', "outbound is a list of hosts"),
    ('{"ichibase": {"outbound": ["http://a.b"]}}', "such as api.example.com"),
    ('{"ichibase": {"schedule": 5}}', 'schedule is such as "0 7 * * *"'),
    ('{"ichibase": {"schedule": "soon"}}', "such as 'every 10 minutes'"),
    ('{"ichibase": {"entrypoint": 7}}', "entrypoint is the file to start with"),
    ('{"ichibase": {"entrypoint": "x.ts"}}', "There is no file 'x.ts'"),
    ('{"imports": 5}', "imports is an object"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "wanted"), CONFIGS)
def test_settings_that_cannot_be_used(run, folder, config, wanted):
    there, write = folder
    write("wrong", index__ts=HELLO, deno__json=config)
    code, said = run("deploy", "wrong", "--dir", str(there))
    assert (code, said.count("\n")) == (1, 1)
    assert wanted in said


def test_folders_that_cannot_be_deployed(run, folder, tmp_path):
    there, write = folder

    def refused(name, wanted):
        code, said = run("deploy", name, "--dir", str(there))
        assert code == 1
        assert wanted in said
        assert "Traceback" not in said

    write("empty")
    refused("empty", "is empty; write ")
    write("other", readme__md="x")
    refused("other", "Name the entrypoint")
    write("odd", index__ts=HELLO)
    (there / "odd" / "a b.ts").write_text("x")
    refused("odd", "letters, digits and . _ - only")
    write("big", index__ts=HELLO, data__bin=bytes(13 << 20))
    refused("big", "move data to storage")
    write("linked", index__ts=HELLO)
    (tmp_path / "private").write_text("mine")
    (there / "linked" / "key.txt").symlink_to(tmp_path / "private")
    refused("linked", "outside of")
    write("bare", index__ts="import x from 'lodash'; Deno.serve(() => new Response(x));")
    refused("bare", 'write "npm:lodash"')
    write("out", index__ts="import '../bare/index.ts';" + HELLO)
    refused("out", "out of the function's folder and of _shared")


def test_a_key_is_not_taken_to_where_an_answer_leads(run, project):
    project.deploy("leads", """Deno.serve((r) => r.url.endsWith("x")
      ? new Response("followed") : Response.redirect(r.url + "/x", 302));""")  # fmt: skip
    code, said = run("invoke", "leads", "-X", "GET")
    assert code == 0
    assert "followed" not in said
