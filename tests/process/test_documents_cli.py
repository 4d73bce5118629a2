"""Documents of a running node: the command line, the admin port, and a server of one's own."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from tests.process.running import RunningNode

RULES = {"version": 1, "collections": {"notes": {
    "read": {"filter": {"user_id": "${auth.uid}"}}, "insert": {"set": {"user_id": "${auth.uid}"}},
    "update": {"filter": {"user_id": "${auth.uid}"}}}}}  # fmt: skip
ANN = "11111111-1111-4111-8111-111111111111"


@pytest.fixture(scope="module")
def node(module_folder):
    running = RunningNode(module_folder, environment={"ICHIBASE_DEFAULT_FLAVOR": "both"})
    try:
        running.start()
        deadline = time.monotonic() + 180
        while send(running, "count", "x", {})[0] != 200:
            assert time.monotonic() < deadline, running.log.read_text()
            time.sleep(0.1)
        yield running
    finally:
        running.end()


def send(node, operation, collection, body):
    """(status, answer) of a request with the secret key."""
    request = urllib.request.Request(
        f"{node.url}/mongo/v1/{operation}/{collection}", json.dumps(body).encode(),
        {"apikey": node.project()["service_key"], "content-type": "application/json"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def cli(node, *arguments, **options):
    return json.loads(node.cli(*arguments, "--json", **options).stdout)


def test_collections_with_a_schema(node, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"required": ["title"], "properties": {
        "title": {"bsonType": "string"}}}))  # fmt: skip
    made = cli(node, "mongo", "create", "books", "--schema", str(schema))
    assert made["schema"]["required"] == ["title"]
    assert node.cli("mongo", "create", "books", ok=False).returncode == 1
    status, told = send(node, "insertOne", "books", {"doc": {"n": 1}})
    assert (status, told["code"]) == (400, "schema_violation")
    assert send(node, "insertOne", "books", {"doc": {"title": "a"}})[0] == 200
    status, told = send(
        node, "updateOne", "books", {"filter": {}, "update": {"$set": {"title": 1}}}
    )
    assert (status, told["code"]) == (400, "schema_violation")
    listed = cli(node, "mongo", "collections")
    assert [(c["name"], c["documents"]) for c in listed if c["name"] == "books"] == [("books", 1)]
    assert "books" in node.cli("mongo", "collections").stdout
    assert cli(node, "mongo", "schema", "books", "--remove")["schema"] is None
    assert send(node, "insertOne", "books", {"doc": {"n": 1}})[0] == 200
    refused = node.cli("mongo", "schema", "books", "-", ok=False, input='{"required": "x"}')
    assert "schema.required: a list of names is expected" in refused.stderr
    cli(node, "mongo", "drop", "books", "--yes")
    assert not [c for c in cli(node, "mongo", "collections") if c["name"] == "books"]
    assert node.cli("mongo", "drop", "books", "--yes", ok=False).returncode == 1
    assert "invalid_collection" in node.cli("mongo", "create", "system.x", ok=False).stderr


def test_indexes(node):
    assert send(node, "insertMany", "people", {"docs": [{"mail": "a"}, {"mail": "b"}]})[0] == 200
    made = cli(node, "mongo", "indexes", "people", "--create", "mail:1", "--unique")
    assert (made["name"], made["unique"]) == ("mail_1", True)
    status, told = send(node, "insertOne", "people", {"doc": {"mail": "a"}})
    assert (status, told["code"]) == (409, "duplicate_key")
    assert "mail_1" in told["detail"]
    cli(node, "mongo", "indexes", "people", "--create", "at:1", "--expire-after", "60")
    cli(node, "mongo", "indexes", "people", "--create", "a:1,b:-1", "--name", "ab",
        "--partial", '{"a": {"$gt": 1}}')  # fmt: skip
    found = {i["name"]: i for i in cli(node, "mongo", "indexes", "people")}
    assert found["at_1"]["expire_after_seconds"] == 60
    assert found["ab"]["keys"] == [["a", 1], ["b", -1]]
    assert found["ab"]["partial"] == {"a": {"$gt": 1}}
    assert "mail:1" in node.cli("mongo", "indexes", "people").stdout
    cli(node, "mongo", "indexes", "people", "--drop", "mail_1")
    assert send(node, "insertOne", "people", {"doc": {"mail": "a"}})[0] == 200
    assert "index_not_found" in node.cli(
        "mongo", "indexes", "people", "--drop", "mail_1", ok=False
    ).stderr  # fmt: skip


def test_import_and_export_keep_every_value(node, tmp_path):
    lines = tmp_path / "in.jsonl"
    docs = [{"_id": n, "when": {"$date": "2024-01-01T00:00:00Z"}, "id": {"$oid": f"{n:024x}"},
             "big": {"$numberLong": "9007199254740993"}, "d": {"$numberDecimal": "1.10"}}
            for n in range(1200)]  # fmt: skip
    lines.write_text("\n".join(map(json.dumps, docs)) + "\n\n")
    assert cli(node, "mongo", "import", "facts", str(lines)) == {"documents": 1200}
    out = tmp_path / "out.jsonl"
    assert cli(node, "mongo", "export", "facts", str(out)) == {"documents": 1200}
    assert cli(node, "mongo", "import", "copies", str(out)) == {"documents": 1200}
    again = tmp_path / "again.jsonl"
    cli(node, "mongo", "export", "copies", str(again))
    assert again.read_text() == out.read_text()
    assert json.loads(out.read_text().splitlines()[1])["big"] == {"$numberLong": "9007199254740993"}
    refused = node.cli("mongo", "import", "facts", str(lines), ok=False)
    assert refused.returncode == 1
    assert "document 1:" in refused.stderr
    cli(node, "mongo", "import", "facts", str(lines), "--upsert")
    assert send(node, "count", "facts", {}) == (200, {"count": 1200})
    lines.write_text('{"_id": 1}\n{"_id": \n')
    refused = node.cli("mongo", "import", "facts", str(lines), "--drop", ok=False)
    assert "document 2" in refused.stderr
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"_id": 1}, {"_id": 2}]))
    done = cli(node, "mongo", "import", "facts", str(array), "--drop")
    assert done == {"documents": 2}
    shown = node.cli("mongo", "export", "facts", "--filter", '{"_id": 2}').stdout
    assert json.loads(shown) == {"_id": {"$numberInt": "2"}}
    done = node.cli("mongo", "import", "facts", "-", input='{"_id": 3}\n')
    assert "1 documents imported" in done.stdout


def test_rules_are_checked_saved_explained_and_restored(node, tmp_path):
    file = tmp_path / "rules.json"
    file.write_text(
        json.dumps({"collections": {"notes": {"read": {"filter": {"a": {"$foo": 1}}}}}})
    )
    done = node.cli("rules", "check", str(file), ok=False)
    assert done.returncode == 1
    assert "rules.collections.notes.read.filter.a.$foo: unknown operator" in done.stderr
    refused = node.cli("rules", "set", str(file), ok=False)
    assert "$foo" in refused.stderr
    file.write_text(json.dumps(RULES))
    assert "no mistake" in node.cli("rules", "check", str(file)).stdout
    assert cli(node, "rules", "set", str(file)) == RULES
    assert cli(node, "rules", "get") == RULES

    body = '{"filter": {"title": "x"}}'
    found = cli(node, "rules", "explain", "find", "notes", "--as", ANN, "--body", body)
    assert found["allow"] is True
    assert found["rule"] == "rules.collections.notes.read"
    assert found["commands"][0]["filter"] == {"title": "x", "user_id": {"$eq": ANN}}
    found = cli(node, "rules", "explain", "find", "notes")
    assert (found["allow"], found["filter"]) == (False, None)
    assert "denied" in node.cli("rules", "explain", "deleteMany", "notes", "--as", ANN,
                                "--body", '{"filter": {}}').stdout  # fmt: skip
    found = cli(node, "rules", "explain", "find", "notes", "--rules", str(file), "--as", ANN)
    assert found["allow"] is True
    refused = node.cli("rules", "explain", "find", "notes", "--body", '{"filter": {"$where": "1"}}',
                       ok=False)  # fmt: skip
    assert "operator_not_allowed" in refused.stderr

    other = tmp_path / "other.json"
    other.write_text('{"version": 1, "collections": {}}')
    cli(node, "rules", "set", str(other))
    history = cli(node, "rules", "history")
    assert [v["rules"] for v in history[:2]] == [{"version": 1, "collections": {}}, RULES]
    cli(node, "rules", "restore", str(history[1]["revision"]))
    assert cli(node, "rules", "get") == RULES
    assert "revision_not_found" in node.cli("rules", "restore", "999", ok=False).stderr


def test_cases_of_rules(node, tmp_path):
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(RULES))
    cases = tmp_path / "cases.json"
    documents = [{"_id": 1, "user_id": ANN}, {"_id": 2, "user_id": "other"}, {"_id": 3}]
    listed = [
        {"name": "own notes alone", "as": {"uid": ANN}, "collection": "notes",
         "documents": documents, "visible": [1]},
        {"name": "nobody reads", "collection": "notes", "expect": "deny"},
        {"name": "no deletions", "as": {"uid": ANN}, "collection": "notes",
         "operation": "deleteMany", "body": {"filter": {}}, "expect": "deny"},
    ]  # fmt: skip
    cases.write_text(json.dumps({"cases": listed}))
    done = cli(node, "rules", "test", str(cases), "--rules", str(rules))
    assert (done["passed"], done["failed"]) == (3, 0)
    listed[0]["visible"] = [1, 3]
    cases.write_text(json.dumps({"cases": listed}))
    done = node.cli("rules", "test", str(cases), "--rules", str(rules), ok=False)
    assert done.returncode == 1
    assert "visible are [1], expected [1, 3]" in done.stdout


def test_users_of_auth_have_documents_of_their_own(node, tmp_path):
    """A sign-in's token is what the rules see."""
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(RULES))
    cli(node, "rules", "set", str(file))
    user = cli(node, "users", "create", "ann@example.com", "--password", "tangerine lamp 41",
               "--verified")  # fmt: skip
    key = node.project()["anon_key"]

    def post(path, body, token=None):
        headers = {"apikey": key, "content-type": "application/json"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(node.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    body = {"email": "ann@example.com", "password": "tangerine lamp 41"}
    token = post("/auth/login", body)["access_token"]
    post("/mongo/v1/insertOne/notes", {"doc": {"title": "hello"}}, token)
    found = post("/mongo/v1/find/notes", {"filter": {}}, token)
    assert [(d["title"], d["user_id"]) for d in found["docs"]] == [("hello", user["id"])]
