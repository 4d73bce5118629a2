"""The admin API's handlers over a real control database, and what a project's owner may not do."""

import asyncio
import json
import re
from urllib.parse import parse_qsl

import psycopg
import pytest

from ichicore.errors import ApiError
from server.base.context import NodeConfig
from server.control.api import AdminApi
from server.control.database import prepare
from server.control.projects import Projects
from server.control.routes import AdminRequest
from tests.clusters import cluster_of


@pytest.fixture(scope="module")
def api(pg_cluster, tmp_path_factory):
    cluster = cluster_of(pg_cluster, "control_test")
    dsn = asyncio.run(prepare(cluster, "control password"))
    config = NodeConfig(data_dir=tmp_path_factory.mktemp("data"), control_dsn=dsn)
    return AdminApi(Projects(dsn, {cluster.id: cluster}, config))


def call(api, method, path, body=None):
    path, _, query = path.partition("?")
    route, params = api.router.find(method, path)
    raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    request = AdminRequest(method, path, params, dict(parse_qsl(query)), raw)
    answer = asyncio.run(route.handler(request))
    return answer.status, json.loads(answer.body())


def refusal(api, method, path, body=None):
    with pytest.raises(ApiError) as caught:
        call(api, method, path, body)
    return caught.value.status, caught.value.code


@pytest.fixture(scope="module")
def shop(api):
    return call(api, "POST", "/admin/v1/projects", {"name": "shop"})[1]


def sql(api, text, project="shop"):
    return call(api, "POST", f"/admin/v1/projects/{project}/sql", {"sql": text})[1]["results"]


def test_a_project_is_made_listed_and_deleted(api, shop):
    assert shop["anon_key"].startswith("ich_pub_")
    assert shop["service_key"].startswith("ich_admin_")
    assert call(api, "GET", "/admin/v1/projects/shop")[1]["url"] == shop["url"]
    assert refusal(api, "POST", "/admin/v1/projects", {"name": "shop"}) == (409, "project_exists")
    call(api, "POST", "/admin/v1/projects", {"name": "brief"})
    status, answer = call(api, "DELETE", "/admin/v1/projects/brief")
    assert (status, answer["deleted"]) == (200, True)
    assert answer["kept_until"] > shop["created_at"]
    assert refusal(api, "POST", "/admin/v1/projects", {"name": "brief"})[1] == "project_exists"
    assert call(api, "DELETE", "/admin/v1/projects/brief?now=true") == (200, {"deleted": True})
    assert refusal(api, "GET", "/admin/v1/projects/brief") == (404, "project_not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [({"name": "Shop"}, "invalid_name"), ({"name": "www"}, "invalid_name"), ({}, "invalid_body"),
     ({"name": "x", "flavor": "y"}, "invalid_flavor"), ({"name": "x", "z": 1}, "invalid_body"),
     (b"{", "bad_request"), (b"[1]", "invalid_body"), (b"\xff", "bad_request")],
)  # fmt: skip
def test_bad_projects_are_refused(api, body, code):
    assert refusal(api, "POST", "/admin/v1/projects", body) == (400, code)


def test_settings_are_kept_and_checked(api, shop):
    path = "/admin/v1/projects/shop/settings/postgres"
    assert call(api, "GET", path)[1]["schemas"] == ["public"]
    assert call(api, "PUT", path, {"max_rows": 50})[1]["max_rows"] == 50
    assert call(api, "GET", path)[1]["max_rows"] == 50
    assert refusal(api, "PUT", path, {"maxrows": 1}) == (400, "invalid_settings")
    assert refusal(api, "GET", "/admin/v1/projects/shop/settings/x") == (404, "unknown_section")


def test_sql_answers_rows_with_types_and_errors_with_their_place(api, shop):
    rows = sql(api, "select 1 as a, 'x' as b, 12345678901234567890::numeric, null")[0]
    assert rows["columns"][0] == {"name": "a", "type": "int4"}
    assert rows["rows"] == [[1, "x", "12345678901234567890", None]]
    with pytest.raises(ApiError) as caught:
        sql(api, "select 1;\nselect nope")
    assert caught.value.code == "sql_error"
    assert caught.value.details["sqlstate"] == "42703"
    assert caught.value.details["line"] == 2


def test_a_migration_runs_once_and_must_not_change(api, shop):
    path = "/admin/v1/projects/shop/migrations"
    first = {"name": "001_a.sql", "sql": "create table migrated (id int)"}
    assert call(api, "POST", path, first)[1]["applied"] is True
    assert call(api, "POST", path, first)[1]["applied"] is False
    assert refusal(api, "POST", path, {**first, "sql": "select 1"}) == (409, "migration_changed")
    bad = {"name": "002_b.sql", "sql": "create table half (id int); select nope"}
    assert refusal(api, "POST", path, bad) == (400, "sql_error")
    assert sql(api, "select to_regclass('half')")[0]["rows"] == [[None]]
    assert refusal(api, "POST", path, {"name": "../x", "sql": ""}) == (400, "invalid_name")


@pytest.mark.parametrize(
    "attempt",
    [
        "create role r superuser", "alter role current_user createrole",
        "copy (select 1) to program 'id'", "select * from pg_authid",
        "select pg_read_file('/etc/passwd')", "copy public.migrated from '/etc/passwd'",
        "create extension file_fdw", "create function f() returns int language c as 'x'",
        "alter system set log_statement = 'all'", "set role postgres",
        "select lo_import('/etc/passwd')", "drop schema auth cascade",
        "create function auth.uid() returns uuid language sql as 'select null::uuid'",
    ],
)  # fmt: skip
def test_an_owner_cannot_leave_the_project(api, shop, attempt):
    assert refusal(api, "POST", "/admin/v1/projects/shop/sql", {"sql": attempt})[0] == 400


def test_an_owner_cannot_enter_another_project(api, shop):
    other = call(api, "POST", "/admin/v1/projects", {"name": "other"})[1]
    database = other["database_url"].rsplit("/", 1)[1]
    foreign = shop["database_url"].rsplit("/", 1)[0] + "/" + database
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        psycopg.connect(foreign)
    for name in ("postgres", "control_test"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(shop["database_url"].rsplit("/", 1)[0] + "/" + name)


def test_new_tables_are_open_to_the_roles_and_row_security_decides(api, shop):
    sql(api, "create table t1 (id int, owner uuid default auth.uid());"
             "alter table t1 enable row level security;"
             "create policy own on t1 using (owner = (select auth.uid()))")  # fmt: skip
    uid = "00000000-0000-4000-8000-000000000001"
    claims = json.dumps({"sub": uid, "role": "authenticated", "email": "a@b.c"})
    results = sql(
        api,
        f"begin; set local role authenticated; set local request.jwt.claims = '{claims}';"
        "insert into t1 (id) values (1); select owner, auth.role(), auth.email() from t1;"
        "set local request.jwt.claims = ''; select count(*), auth.uid() from t1; rollback",
    )
    assert results[4]["rows"] == [[uid, "authenticated", "a@b.c"]]
    assert results[6]["rows"] == [[0, None]]


def test_the_document_names_every_route_and_its_types(api, shop):
    document = call(api, "GET", "/admin/v1/openapi.json")[1]
    assert document["openapi"].startswith("3.1")
    assert {route.pattern for route in api.router.routes} == set(document["paths"])
    schemas = document["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))) <= set(schemas)
    project = schemas["ShownProject"]
    assert set(call(api, "GET", "/admin/v1/projects/shop")[1]) == set(project["properties"])
    settings = document["paths"]["/admin/v1/projects/{project}/settings/{section}"]["put"]
    shapes = settings["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert {"$ref": "#/components/schemas/Cors"} in shapes
