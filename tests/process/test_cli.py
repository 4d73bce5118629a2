"""The command line against a running node."""

import json
import re
import subprocess
import sys

import pytest

from tests.process.running import RunningNode, wait_until


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder)
    try:
        running.start()
        yield running
    finally:
        running.end()


def test_the_first_start_prints_commands_that_work_when_pasted(node):
    assert wait_until(lambda: "read it:" in node.log.read_text())
    printed = node.log.read_text()
    service_key = re.search(r"service key  in (\S+)", printed)[1]
    assert node.project()["service_key"] not in printed
    with open(service_key) as file:
        assert file.read().strip() == node.project()["service_key"]
    for line in re.findall(r"^  (\S+ .*)$", printed, re.MULTILINE):
        if line.startswith(("ichibase", "curl", sys.executable)):
            done = subprocess.run(
                line, shell=True, capture_output=True, text=True, env=node.environment,
                cwd=node.folder,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stderr)
    assert json.loads(done.stdout) == [{"id": 1, "title": "hello"}]


def test_help_comes_quickly_and_names_the_exit_codes(node):
    assert "Exit codes" in node.cli("--help").stdout
    for words in (["serve"], ["status"], ["projects", "create"], ["sql"], ["migrate"],
                  ["settings"]):  # fmt: skip
        assert "usage: ichibase" in node.cli(*words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["projects"], 2, "projects --help"),
        (["projects", "create", "x", "--tier", "gold"], 2, "create --help"),
        (["tiers", "x"], 2, "ichibase --help"),
        (["usage", "nobody"], 1, "ichibase projects list"),
        (["projects", "create", "default"], 1, "choose another name"),
        (["projects", "create", "a--b"], 1, "two hyphens in a row"),
        (["projects", "create", "x", "--tier", "free", "--flavor", "both"], 1, "another --tier"),
        (["projects", "change", "default", "--limits", '{"conections": 1}'], 1, "ichibase tiers"),
        (["projects", "undelete", "nobody"], 1, "projects list --deleted"),
        (["projects", "change", "default"], 1, "--tier, --owner or --limits"),
        (["owners", "delete", "nobody"], 1, "ichibase owners list"),
        (["owners", "delete", "local"], 1, "projects change PROJECT --owner"),
        (["backups", "create", "nobody"], 1, "ichibase projects list"),
        (["backups", "restore", "nothing", "--yes"], 1, "ichibase backups list"),
        (["backups", "restore", "nothing"], 1, "ichibase backups list"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_next_step(node, words, code, said):
    done = node.cli(*words, ok=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_tiers_are_shown(node):
    assert json.loads(node.cli("tiers", "--json").stdout)["free"]["connections"] == 10
    line = next(x for x in node.cli("tiers").stdout.splitlines() if x.startswith("database_bytes"))
    assert line.split()[1:] == ["500,000,000", "20,000,000,000", "200,000,000,000"]


def test_sql_shows_tables_and_says_where_an_error_is(node, tmp_path):
    shown = node.cli("sql", "default", "-c", "select 1 as one, null as none; create table z ()")
    assert "one" in shown.stdout
    assert "CREATE TABLE" in shown.stdout
    assert node.sql("select '{\"a\":1}'::json") == [[{"a": 1}]]
    done = node.cli("sql", "default", "-", input="select 2 as two")
    assert "two" in done.stdout
    done = node.cli("sql", "default", "--timeout", "5", "-", input="select 2 as two")
    assert "two" in done.stdout
    for words in (["-c", "select 1", "-f", "x"], ["-c", "select 1", "-"], ["--nope"], ["x"]):
        assert node.cli("sql", "default", *words, ok=False).returncode == 2
    file = tmp_path / "bad.sql"
    file.write_text("select 1;\nselect  nope;\n")
    done = node.cli("sql", "default", "-f", str(file), ok=False)
    assert done.returncode == 1
    assert f"{file}:2:9: " in done.stderr
    assert "42703" in done.stderr
    done = node.cli("sql", "default", "--timeout", "0.2", "-c", "select pg_sleep(9)", ok=False)
    assert "statement_timeout" in done.stderr


def test_migrations_are_applied_once_and_in_order(node, tmp_path):
    (tmp_path / "001_first.sql").write_text("create table m (id int);")
    (tmp_path / "002_second.sql").write_text("alter table m add column t text;")
    first = node.cli("migrate", "default", str(tmp_path)).stdout.split()
    assert first == ["applied", "001_first.sql", "applied", "002_second.sql"]
    again = json.loads(node.cli("migrate", "default", str(tmp_path), "--json").stdout)
    assert [one["applied"] for one in again] == [False, False]
    (tmp_path / "003_bad.sql").write_text("create table half (id int);\n\nselect * from nowhere;")
    done = node.cli("migrate", "default", str(tmp_path), ok=False)
    assert done.returncode == 1
    assert f"{tmp_path / '003_bad.sql'}:3:15: " in done.stderr
    assert node.sql("select to_regclass('half')") == [[None]]
    (tmp_path / "001_first.sql").write_text("create table other (id int);")
    assert "migration_changed" in node.cli("migrate", "default", str(tmp_path), ok=False).stderr


def test_settings_are_read_set_and_imported(node, tmp_path):
    node.cli("settings", "default", "set", "cors", '{"origins": ["https://a.example"]}')
    found = json.loads(node.cli("settings", "default", "get", "--json", "cors").stdout)
    assert found == {"origins": ["https://a.example"]}
    assert "https://a.example" in node.cli("settings", "default", "get").stdout
    file = tmp_path / "all.json"
    file.write_text('{"postgres": {"max_rows": 7}}')
    node.cli("settings", "default", "import", str(file))
    found = json.loads(node.cli("settings", "default", "get", "--json").stdout)
    assert found["postgres"]["max_rows"] == 7
    for words in (["set", "cors", '{"orgins": []}'], ["set", "nowhere", "{}"], ["set", "cors"],
                  ["set", "cors", "[]"], ["import", "/nowhere"], ["get", "x/../y"],
                  ["get", "cors", "{}"]):  # fmt: skip
        done = node.cli("settings", "default", *words, ok=False)
        assert (done.returncode, done.stderr.startswith("ichibase: ")) == (1, True), words


def test_a_project_is_reached_at_its_own_host_and_deleted(node):
    made = json.loads(node.cli("projects", "create", "shop", "--json").stdout)
    assert made["url"] == f"http://shop.localhost:{node.port}"
    node.cli("sql", "shop", "-c", "create table t (id int); insert into t values (5)")
    headers = {"host": f"shop.localhost:{node.port}"}
    given = headers | {"authorization": f"Bearer {made['anon_key']}"}
    assert node.get("/postgres/t", given) == (200, b'[{"id":5}]')
    assert node.get("/postgres/t", {"authorization": given["authorization"]})[0] == 401
    done = node.cli("projects", "create", "shop", ok=False)
    assert (done.returncode, "project_exists" in done.stderr) == (1, True)
    assert "--yes" in node.cli("projects", "delete", "shop", ok=False, input="").stderr
    node.cli("projects", "delete", "shop", "--yes")
    assert node.get("/postgres/t", given)[0] == 404
    assert "default_project" in node.cli("projects", "delete", "default", "--yes", ok=False).stderr


def test_the_admin_listener_describes_itself_and_counts(node):
    admin = json.loads(node.cli("status", "--json").stdout)

    def get(path, token=admin["admin_token"]):
        return node.get(path, {"authorization": f"Bearer {token}"}, admin=True)

    status, document = get("/admin/v1/openapi.json")
    assert (status, json.loads(document)["openapi"]) == (200, "3.1.0")
    status, metrics = get("/metrics")
    assert (status, b"ichibase_requests_total" in metrics) == (200, True)
    assert get("/readyz", "wrong")[0] == 200
    assert get("/admin/v1/projects", "wrong")[0] == 401


def test_targets_that_clients_do_not_encode_reach_a_project(node):
    key = node.project()["anon_key"]
    got = node.get('/postgres/nothing?a->>b=eq."x"', {"authorization": f"Bearer {key}"})
    assert (got[0], json.loads(got[1])["code"]) == (404, "PGRST205")
