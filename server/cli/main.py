"""The console script `ichibase`.

Exit codes: 0 done, 1 the command failed (the reason is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from server.cli import types as generated
from server.cli.client import AdminClient, CommandError, reason
from server.cli.output import installed, note, print_json, print_table, progress
from server.control.cli import project_actions

ROOMS = ("control", "auth", "mongo", "storage", "realtime", "functions", "backup")
MIGRATION_SECONDS = 660.0  # a little more than the server gives one
SECRETS = ("service_key", "jwt_secret", "database_url", "mongo_url")


def data_dir(options: argparse.Namespace) -> Path:
    given = options.data_dir or os.environ.get("ICHIBASE_DATA_DIR") or "data"
    return Path(given).expanduser().resolve()


def client(options: argparse.Namespace) -> AdminClient:
    return AdminClient(data_dir(options))


def serve(options: argparse.Namespace) -> int:
    from server.cli.serve import run

    return run(options)


def status(options: argparse.Namespace) -> int:
    admin = client(options)
    if options.project:
        project = _public(admin.project(options.project))
        if options.json:
            print_json(project)
        else:
            _print_project(project, options.show_secrets)
        return 0
    projects = [_public(p) for p in admin.call("GET", "/admin/v1/projects")]
    config = admin.config
    if options.json:
        print_json(
            {
                "url": config["public_url"], "cdn_url": config["cdn_url"],
                "admin_url": admin.url, "admin_token": admin.token, "projects": projects,
            }
        )  # fmt: skip
        return 0
    print(f"running at {config['public_url']}, admin at {admin.url}, data in {admin.data_dir}")
    if options.show_secrets:
        print(f"admin token {admin.token}")
    for project in projects:
        print()
        _print_project(project, options.show_secrets)
    return 0


def _public(project: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "flavor", "tier", "url", "anon_key", "service_key", "jwt_secret",
             "database_url", "mongo_url")  # fmt: skip
    return {name: project[name] for name in names}


def _print_project(project: dict[str, Any], secrets: bool) -> None:
    rows = []
    for name, value in project.items():
        hidden = name in SECRETS and value is not None and not secrets
        rows.append([name, "(hidden; --show-secrets shows it)" if hidden else value])
    print_table(["project", project["name"]], rows[1:], fold=False)


def projects_create(options: argparse.Namespace) -> int:
    admin = client(options)
    wanted = {"name": options.name, "flavor": options.flavor, "tier": options.tier}
    if options.owner is not None:
        wanted["owner"] = options.owner
    project = _public(admin.call("POST", "/admin/v1/projects", wanted))
    if options.json:
        print_json(project)
    else:
        _print_project(project, False)
    return 0


def projects_list(options: argparse.Namespace) -> int:
    query = "?deleted=true" if options.deleted else ""
    found = client(options).call("GET", f"/admin/v1/projects{query}")
    if options.json:
        print_json([{**_public(p), "owner": p["owner"], "state": p["state"]} for p in found])
    else:
        print_table(["name", "flavor", "tier", "owner", "state", "url"],
                    [[p["name"], p["flavor"], p["tier"], p["owner"], p["state"], p["url"]]
                     for p in found])  # fmt: skip
    return 0


def projects_delete(options: argparse.Namespace) -> int:
    if not options.yes:
        if not sys.stdin.isatty():
            raise CommandError("this deletes the project with all its data; say --yes")
        if input("Type the name of the project to delete it with all its data: ") != options.name:
            raise CommandError("the names differ; nothing was deleted")
    query = "?now=true" if options.now else ""
    result = client(options).call("DELETE", _project_path(options.name) + query)
    if options.json:
        print_json(result)
    elif "kept_until" in result:
        print(f"deleted {options.name}; until {result['kept_until'][:16]} "
              f"`ichibase projects undelete {options.name}` brings it back")  # fmt: skip
    else:
        print(f"deleted {options.name}")
    return 0


def sql(options: argparse.Namespace) -> int:
    if options.command is not None:
        text = options.command
    elif options.file is not None and options.file != "-":
        try:
            text = Path(options.file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {options.file}: {reason(error)}") from None
    else:
        text = sys.stdin.read()
    wanted = {"sql": text, "timeout_ms": max(1, round(options.timeout * 1000))}
    admin = client(options)
    path = f"{_project_path(options.project)}/sql"
    try:
        answer = admin.call("POST", path, wanted, options.timeout + 15)
    except CommandError as error:
        raise _placed(error, options.file or "SQL") from None
    if options.json:
        print_json(answer["results"])
        return 0
    for result in answer["results"]:
        if result["columns"]:
            print_table([column["name"] for column in result["columns"]], result["rows"])
            note(f"({result['row_count']} rows)")
        elif result["command"]:
            print(result["command"])
    return 0


def _placed(error: CommandError, file: str) -> CommandError:
    """The error with file:line:column in front."""
    place = "".join(f":{number}" for number in error.place or ())
    return CommandError(f"{file}{place}: {error}")


def _project_path(name: str) -> str:
    return f"/admin/v1/projects/{quote(name, safe='')}"


def migrate(options: argparse.Namespace) -> int:
    folder = Path(options.dir)
    files = sorted(folder.glob("*.sql"))
    if not files:
        raise CommandError(f"there are no .sql files in {folder}")
    admin = client(options)
    done = []
    with progress("migrating", len(files), quiet=options.json) as advance:
        for file in files:
            advance(file.name)
            try:
                text = file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise CommandError(f"cannot read {file}: {reason(error)}") from None
            try:
                answer = admin.call(
                    "POST", f"{_project_path(options.project)}/migrations",
                    {"name": file.name, "sql": text}, MIGRATION_SECONDS,
                )  # fmt: skip
            except CommandError as error:
                raise _placed(error, str(file)) from None
            done.append(answer)
            if not options.json:
                print(f"{'applied' if answer['applied'] else 'already there':14}{file.name}")
    if options.json:
        print_json(done)
    return 0


def settings(options: argparse.Namespace) -> int:
    admin = client(options)
    base = f"{_project_path(options.project)}/settings"
    if options.action != "set" and options.value is not None:
        raise CommandError(f"{options.action} takes no value")
    if options.action == "get":
        from server.control.sections import SECTIONS

        names = [options.section] if options.section else list(SECTIONS)
        found = {name: admin.call("GET", f"{base}/{quote(name, safe='')}") for name in names}
        if options.json:
            print_json(found[options.section] if options.section else found)
        else:
            rows = [[name, *pair] for name, keys in found.items() for pair in keys.items()]
            print_table(["section", "key", "value"], rows)
    elif options.action == "set":
        if not options.section or options.value is None:
            raise CommandError("say: ichibase settings PROJECT set SECTION JSON (or - for stdin)")
        text = sys.stdin.read() if options.value == "-" else options.value
        found = admin.call("PUT", f"{base}/{options.section}", _json(text, "the value"))
        if options.json:
            print_json(found)
        else:
            print(f"set {options.section}")
    else:
        if not options.section:
            raise CommandError("say: ichibase settings PROJECT import FILE")
        try:
            text = Path(options.section).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"cannot read {options.section}: {reason(error)}") from None
        kept = {}
        for name, value in _json(text, options.section).items():
            kept[name] = admin.call("PUT", f"{base}/{quote(name, safe='')}", value)
            if not options.json:
                print(f"set {name}")
        if options.json:
            print_json(kept)
    return 0


def _json(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CommandError(f"{what} must be a JSON object")
    return value


class Parser(argparse.ArgumentParser):
    """Says where to read on when it was used wrongly."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}\n  try: {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    shared: Any = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    top = Parser(
        prog="ichibase",
        description="A whole backend from one command.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, parents: Any = (shared,)) -> Any:
        made = commands.add_parser(name, help=text, description=text, parents=list(parents))
        made.set_defaults(run=run)
        return made

    made = command("serve", serve, "Start the node and stay in the foreground.", ())
    made.add_argument("--data-dir", help="where everything is kept (./data)")
    made.add_argument("--host", help="address to listen on (127.0.0.1)")
    made.add_argument("--port", type=int, help="port to listen on (8000)")
    made.add_argument("--workers", type=int, help="HTTP worker processes (1)")
    made.add_argument("--admin-port", type=int, help="port of the admin API (8001)")
    made.add_argument("--public-url", help="address that clients use, when a proxy is in front")
    made.add_argument("--base-domain", help="projects are served at <project>.<base domain>")
    made.add_argument("--database-url", help="an existing PostgreSQL server (DATABASE_URL)")

    made = command("status", status, "Show the running node and its projects.")
    made.add_argument("--project", help="this project alone")
    made.add_argument("--show-secrets", action="store_true", help="keys and passwords too")

    made = commands.add_parser("projects", help="Create, list and delete projects.")
    actions = made.add_subparsers(required=True, metavar="ACTION")
    made = actions.add_parser("create", parents=[shared], help="create a project")
    made.add_argument("name")
    made.add_argument("--flavor", choices=["postgres", "mongo", "both"], default="postgres")
    made.add_argument("--tier", choices=["free", "pro", "business"], default="pro")
    made.add_argument("--owner", help="the account it belongs to (local)")
    made.set_defaults(run=projects_create)
    made = actions.add_parser("list", parents=[shared], help="list the projects")
    made.add_argument("--deleted", action="store_true", help="and those that can be brought back")
    made.set_defaults(run=projects_list)
    made = actions.add_parser("delete", parents=[shared], help="delete a project and its data")
    made.add_argument("name")
    made.add_argument("--yes", action="store_true", help="do not ask")
    made.add_argument("--now", action="store_true", help="for good, without keeping it for a week")
    made.set_defaults(run=projects_delete)
    project_actions(actions, shared)

    made = command("sql", sql, "Run SQL as the owner of a project's database.")
    made.add_argument("project")
    source = made.add_mutually_exclusive_group()
    source.add_argument("-c", "--command", help="the statements")
    source.add_argument("-f", "--file", help="a file with the statements")
    source.add_argument("stdin", nargs="?", choices=["-"], help="read them from standard input")
    made.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS",
                      help="time for all of the statements (60)")  # fmt: skip

    made = command("migrate", migrate, "Apply a folder of .sql files, each once, in name order.")
    made.add_argument("project")
    made.add_argument("dir")

    made = command("settings", settings, "Read and change a project's settings.")
    made.add_argument("project")
    made.add_argument("action", choices=["get", "set", "import"])
    made.add_argument("section", nargs="?", help="a section, or the file to import")
    made.add_argument("value", nargs="?", help="JSON, or - for standard input")

    generated.register(command)

    rest = commands.add_parser(
        "rest", add_help=False, help="Serve one database as PostgREST does (rest --help)."
    )
    rest.set_defaults(run=None)
    made = command("version", version, "Print the version.", ())
    made.add_argument("--json", action="store_true", help="JSON for machines")
    for room in ROOMS:
        name = f"server.{room}.cli"
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name).register(commands)
    return top


def version(options: argparse.Namespace) -> int:
    found = installed()
    if options.json:
        print_json({"version": found})
    else:
        print(f"ichibase {found}")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The arguments of a command. Ends the program when they are wrong.

    argparse gives up on an optional word once it has met an option behind the words before it; the
    word is then one too many, and is put where it belongs.
    """
    made = parser()
    _name_optional_words(made)
    options, more = made.parse_known_args(arguments)
    for action in getattr(options, "optional_words", ()):
        is_word = more and (more[0] == "-" or not more[0].startswith("-"))
        if is_word and getattr(options, action.dest) == action.default:
            if action.dest == "stdin" and (more[0] != "-" or _has_sql(options)):
                break
            setattr(options, action.dest, more.pop(0))
    if more:
        made.error("unrecognized arguments: " + " ".join(more))
    return options


def _name_optional_words(made: argparse.ArgumentParser) -> None:
    """Has the options of each command tell which words may be left out."""
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _name_optional_words(each)
    words = [a for a in made._actions if not a.option_strings and a.nargs == "?"]
    if words:
        made.set_defaults(optional_words=words)


def _has_sql(options: argparse.Namespace) -> bool:
    return options.command is not None or options.file is not None


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["rest"]:
        from server.standalone.main import main as rest

        return rest(arguments[1:])
    options = parse(arguments)
    try:
        return int(options.run(options))
    except CommandError as error:
        note(f"ichibase: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
