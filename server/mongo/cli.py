"""`ichibase mongo` and `ichibase rules`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.cli.client import CommandError, reason
from server.cli.output import note, print_json, print_table


def register(commands: Any) -> None:
    """Adds the subcommands to the parser of the program."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    shared.add_argument("--project", default="default", help="the project (default)")
    _register_mongo(commands, shared)
    _register_rules(commands, shared)


def _register_mongo(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = commands.add_parser("mongo", help="Manage a project's documents.")
    actions = made.add_subparsers(required=True, metavar="ACTION")

    one = actions.add_parser("enable", parents=[shared], help="give a project of tables documents")
    one.set_defaults(run=enable)
    one = actions.add_parser("collections", parents=[shared], help="list the collections")
    one.set_defaults(run=collections)
    one = actions.add_parser("create", parents=[shared], help="create a collection")
    one.add_argument("collection")
    one.add_argument("--schema", metavar="FILE", help="a JSON Schema that documents must fit")
    one.set_defaults(run=create)
    one = actions.add_parser("drop", parents=[shared], help="delete a collection")
    one.add_argument("collection")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.set_defaults(run=drop)
    one = actions.add_parser("schema", parents=[shared], help="show or set a collection's schema")
    one.add_argument("collection")
    one.add_argument("file", nargs="?", help="a JSON Schema; - for standard input")
    one.add_argument("--remove", action="store_true", help="take the schema away")
    one.add_argument("--level", choices=["strict", "moderate"], default="strict")
    one.add_argument("--action", choices=["error", "warn"], default="error")
    one.set_defaults(run=schema)

    one = actions.add_parser("indexes", parents=[shared], help="list, create and delete indexes")
    one.add_argument("collection")
    one.add_argument("--create", metavar="KEYS", help="such as user_id:1,created_at:-1")
    one.add_argument("--drop", metavar="NAME")
    one.add_argument("--name", help="of the index that is created")
    one.add_argument("--unique", action="store_true")
    one.add_argument("--sparse", action="store_true")
    one.add_argument("--expire-after", type=int, metavar="SECONDS")
    one.add_argument("--partial", metavar="JSON", help="filter of the documents that it holds")
    one.set_defaults(run=indexes)

    one = actions.add_parser(
        "import", parents=[shared], help="add documents from a file of JSON lines or a JSON array"
    )
    one.add_argument("collection")
    one.add_argument("file", help="- for standard input")
    one.add_argument("--upsert", action="store_true", help="replace documents of the same _id")
    one.add_argument("--drop", action="store_true", help="empty the collection first")
    one.set_defaults(run=import_documents)
    one = actions.add_parser("export", parents=[shared], help="write documents as JSON lines")
    one.add_argument("collection")
    one.add_argument("file", nargs="?", default="-", help="standard output when left out")
    one.add_argument("--filter", metavar="JSON", help="the documents wanted")
    one.set_defaults(run=export_documents)


def _register_rules(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = commands.add_parser("rules", help="Check, test, save and explain access rules.")
    actions = made.add_subparsers(required=True, metavar="ACTION")
    one = actions.add_parser("check", parents=[shared], help="say what is wrong with a file")
    one.add_argument("file", help="the rules as JSON; - for standard input")
    one.set_defaults(run=rules_check)
    one = actions.add_parser("get", parents=[shared], help="print the rules in force")
    one.set_defaults(run=rules_get)
    one = actions.add_parser("set", parents=[shared], help="put the rules of a file in force")
    one.add_argument("file", help="- for standard input")
    one.set_defaults(run=rules_set)
    one = actions.add_parser("test", parents=[shared], help="run the cases of a file")
    one.add_argument("file", help="the cases; docs/rules.md describes them")
    one.add_argument("--rules", metavar="FILE", help="these rules, not those in force")
    one.set_defaults(run=rules_test)
    one = actions.add_parser("explain", parents=[shared], help="say what a request may do and why")
    one.add_argument("operation", help="such as find or updateOne")
    one.add_argument("collection")
    one.add_argument("--as", dest="uid", metavar="UID", help="a signed-in user; nobody if left out")
    one.add_argument("--role", choices=["anon", "authenticated", "service_role"])
    one.add_argument("--email")
    one.add_argument("--claims", metavar="JSON", help="further claims of the user's token")
    one.add_argument("--body", metavar="JSON", default="{}", help="of the request")
    one.add_argument("--rules", metavar="FILE", help="these rules, not those in force")
    one.set_defaults(run=rules_explain)
    one = actions.add_parser("history", parents=[shared], help="list rules in force before")
    one.set_defaults(run=rules_history)
    one = actions.add_parser("restore", parents=[shared], help="put an earlier revision in force")
    one.add_argument("revision", type=int)
    one.set_defaults(run=rules_restore)


class _Admin:
    """The admin API of the node, for one project."""

    def __init__(self, options: argparse.Namespace) -> None:
        from server.cli.main import client

        self.client = client(options)
        self.project = f"/admin/v1/projects/{quote(options.project, safe='')}"

    def call(self, method: str, path: str, body: object = None, seconds: float = 120) -> Any:
        return self.client.call(method, f"{self.project}/{path}", body, seconds)

    def collection(self, method: str, name: str, path: str = "", body: object = None) -> Any:
        return self.call(method, f"mongo/collections/{quote(name, safe='')}{path}", body, 3600)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {file}: {reason(error)}") from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{what} is not valid JSON: {error}") from None


# Collections and indexes


def enable(options: argparse.Namespace) -> int:
    found = _Admin(options).call("POST", "mongo")
    print_json(found) if options.json else print(f"{options.project} has documents now")
    return 0


def collections(options: argparse.Namespace) -> int:
    found = _Admin(options).call("GET", "mongo/collections")
    if options.json:
        print_json(found)
    else:
        rows = [
            [c["name"], c["documents"], c["bytes"], c["indexes"], "yes" if c["schema"] else "no"]
            for c in found
        ]
        print_table(["collection", "documents", "bytes", "indexes", "schema"], rows)
    return 0


def create(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {"name": options.collection}
    if options.schema is not None:
        body["schema"] = _json(_read(options.schema), options.schema)
    made = _Admin(options).call("POST", "mongo/collections", body)
    print_json(made) if options.json else print(f"created {options.collection}")
    return 0


def drop(options: argparse.Namespace) -> int:
    if not options.yes:
        if not sys.stdin.isatty():
            raise CommandError("this deletes the collection with its documents; say --yes")
        typed = input("Type the name of the collection to delete it with its documents: ")
        if typed != options.collection:
            raise CommandError("the names differ; nothing was deleted")
    done = _Admin(options).collection("DELETE", options.collection)
    print_json(done) if options.json else print(f"deleted {options.collection}")
    return 0


def schema(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    if options.remove or options.file is not None:
        wanted = None if options.remove else _json(_read(options.file), options.file)
        body = {"schema": wanted, "level": options.level, "action": options.action}
        found = admin.collection("PUT", options.collection, "/schema", body)
    else:
        named = [
            c for c in admin.call("GET", "mongo/collections") if c["name"] == options.collection
        ]
        if not named:
            raise CommandError(f"there is no collection {options.collection}")
        found = named[0]
    print_json(found if options.json else found["schema"])
    return 0


def indexes(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    if options.create is not None:
        body = {
            "keys": [_key(part) for part in options.create.split(",")], "name": options.name,
            "unique": options.unique, "sparse": options.sparse,
            "expire_after_seconds": options.expire_after,
            "partial": None if options.partial is None else _json(options.partial, "--partial"),
        }  # fmt: skip
        made = admin.collection("POST", options.collection, "/indexes", body)
        print_json(made) if options.json else print(f"created {made['name']}")
        return 0
    if options.drop is not None:
        path = f"/indexes/{quote(options.drop, safe='')}"
        done = admin.collection("DELETE", options.collection, path)
        print_json(done) if options.json else print(f"deleted {options.drop}")
        return 0
    found = admin.collection("GET", options.collection, "/indexes")
    if options.json:
        print_json(found)
        return 0
    rows = [
        [
            i["name"], ", ".join(f"{path}:{way}" for path, way in i["keys"]),
            "yes" if i["unique"] else "no", i["expire_after_seconds"], i["partial"],
        ]
        for i in found
    ]  # fmt: skip
    print_table(["index", "keys", "unique", "expires after (s)", "partial"], rows)
    return 0


def _key(text: str) -> list[Any]:
    path, _, way = text.strip().rpartition(":")
    if not path:
        return [way, 1]
    return [path, int(way)] if way in {"1", "-1"} else [path, way]


# Documents in and out


def _database(options: argparse.Namespace) -> Any:
    from pymongo import MongoClient

    from server.cli.main import client

    url = client(options).project(options.project)["mongo_url"]
    if url is None:
        raise CommandError(f"the project {options.project} has no documents")
    return MongoClient(url, appname="ichibase mongo", serverSelectionTimeoutMS=10_000)


def _progress(quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(),
    )  # fmt: skip


def import_documents(options: argparse.Namespace) -> int:
    from server.mongo.transfer import TransferError, load

    with _database(options) as client, _progress(options.json) as progress:
        try:
            done = load(
                client.get_default_database()[options.collection], options.file, progress,
                upsert=options.upsert, drop=options.drop,
            )  # fmt: skip
        except TransferError as error:
            raise CommandError(str(error)) from None
    print_json(done) if options.json else print(f"{done['documents']} documents imported")
    return 0


def export_documents(options: argparse.Namespace) -> int:
    from server.mongo.transfer import TransferError, save

    wanted = {} if options.filter is None else _json(options.filter, "--filter")
    with _database(options) as client, _progress(options.json) as progress:
        try:
            count = save(
                client.get_default_database()[options.collection], options.file, wanted, progress
            )
        except TransferError as error:
            raise CommandError(str(error)) from None
    if options.file != "-":
        print_json({"documents": count}) if options.json else print(f"{count} documents exported")
    return 0


# Rules


def rules_check(options: argparse.Namespace) -> int:
    """Needs no node."""
    from ichicore.rules import RuleError, compile_policy

    try:
        policy = compile_policy(_read(options.file))
    except RuleError as error:
        if options.json:
            mistakes = [{"path": path, "message": message} for path, message in error.errors]
            print_json({"valid": False, "mistakes": mistakes})
        else:
            for path, message in error.errors:
                note(f"{path}: {message}")
        return 1
    if options.json:
        print_json({"valid": True, "mistakes": []})
    else:
        print(f"{policy.rules} rules for {len(policy.collections)} collections, no mistake")
    return 0


def _in_force(options: argparse.Namespace) -> Any:
    text = _Admin(options).call("GET", "settings/mongo").get("rules_text")
    return None if text is None else json.loads(text)


def rules_get(options: argparse.Namespace) -> int:
    print_json(_in_force(options))
    return 0


def rules_set(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    section = admin.call("GET", "settings/mongo")
    section["rules"] = _json(_read(options.file), options.file)
    section["rules_text"] = None
    saved = admin.call("PUT", "settings/mongo", section)
    print_json(json.loads(saved["rules_text"])) if options.json else print("they are in force")
    return 0


def _rules(options: argparse.Namespace) -> Any:
    if options.rules is not None:
        return _json(_read(options.rules), options.rules)
    return _in_force(options)


def rules_test(options: argparse.Namespace) -> int:
    from server.mongo.cases import CasesError, run

    try:
        results = run(_rules(options), _json(_read(options.file), options.file))
    except CasesError as error:
        raise CommandError(str(error)) from None
    failed = [result for result in results if not result["passed"]]
    if options.json:
        print_json({"passed": len(results) - len(failed), "failed": len(failed), "cases": results})
    else:
        for result in results:
            print(f"{'ok' if result['passed'] else 'FAILED':8}{result['name']}")
            if not result["passed"]:
                print(f"        {result['reason']}")
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def rules_explain(options: argparse.Namespace) -> int:
    question = {
        "operation": options.operation, "collection": options.collection,
        "role": options.role, "uid": options.uid, "email": options.email,
        "claims": _json(options.claims, "--claims") if options.claims else {},
        "body": _json(options.body, "--body"),
    }  # fmt: skip
    if options.rules is None:
        found = _Admin(options).call("POST", "mongo/rules/explain", question)
    else:
        from server.mongo.explain import offline

        found = offline(_rules(options), question)
    if options.json:
        print_json(found)
        return 0
    if found["error"] is not None:
        note(f"the request is refused before any rule: {found['error']}")
        return 1
    print(f"{'allowed' if found['allow'] else 'denied'}: {found['reason'] or found['rule']}")
    for name in ("rule", "filter", "set", "check", "read_fields", "write_fields"):
        if found[name] is not None:
            print(f"{name:14}{json.dumps(found[name], ensure_ascii=False)}")
    for command in found["commands"]:
        print(f"sent          {json.dumps(command, ensure_ascii=False)}")
    return 0


def rules_history(options: argparse.Namespace) -> int:
    found = _Admin(options).call("GET", "mongo/rules/history")
    if options.json:
        print_json(found)
    else:
        rows = [
            [v["revision"], v["changed_at"], ", ".join((v["rules"] or {}).get("collections", {}))]
            for v in found
        ]
        print_table(["revision", "since", "collections"], rows)
    return 0


def rules_restore(options: argparse.Namespace) -> int:
    done = _Admin(options).call("POST", "mongo/rules/restore", {"revision": options.revision})
    print_json(done) if options.json else print(f"revision {options.revision} is in force again")
    return 0
