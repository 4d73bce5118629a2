"""`ichibase functions`: write, try, deploy and watch edge functions."""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import re
import sys
import time
import unicodedata
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from server.cli.client import CommandError
from server.cli.output import moment, note, print_json, print_table
from server.functions.sources import MAX_FILES, MAX_SOURCE, PATH, SHARED, without_comments

FOLDER = "functions"
NAME = re.compile(r"(?:[a-z0-9][a-z0-9_-]{0,62}|_mongo_policy)\Z")
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*:[^\r\n\0]*\Z")
METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
LEFT_OUT = {".git", "node_modules", ".env", ".npmrc", "package.json", "package-lock.json",
            ".DS_Store", ".vscode", ".idea"}  # fmt: skip
# What deno.json may say of a function, and how.
SETTINGS = {
    "auth": '"key", "user" or "none"',
    "outbound": 'a list of hosts, such as ["api.example.com"]',
    "schedule": 'such as "0 7 * * *" or "every 10 minutes", or a list of those',
    "entrypoint": 'the file to start with, such as "main.ts"',
}
POLL = 0.5  # seconds between looks at the files that `serve` watches
TEMPLATE = """\
Deno.serve(async (req: Request) => {
  const { name = "world" } = await req.json().catch(() => ({}));
  return Response.json({ message: `Hello, ${name}!` });
});
"""
CONFIG = """\
{
  "imports": {},
  "ichibase": { "auth": "key" }
}
"""


def register(commands: Any) -> None:
    """Adds the subcommands to the parser of the program."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    shared.add_argument("--project", default="default", help="the project (default)")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--dir", default=FOLDER, help=f"folder of the functions ({FOLDER})")
    made = commands.add_parser("functions", help="Write, deploy and watch edge functions.")
    actions = made.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str, *parents: Any) -> Any:
        one = actions.add_parser(name, parents=[shared, *parents], help=text, description=text)
        one.set_defaults(run=run)
        return one

    one = action("new", new, "write a first version of a function", place)
    one.add_argument("name")
    one = action("deploy", deploy, "check, bundle and serve functions", place)
    one.add_argument("names", nargs="*", help="functions; all in the folder when none is named")
    _options(one)
    one = action("serve", serve, "deploy on every change and follow the logs", place)
    one.add_argument("names", nargs="*", help="functions; all in the folder when none is named")
    _options(one)
    action("list", listed, "list what is deployed")
    one = action("versions", versions, "list the kept versions of a function")
    one.add_argument("name")
    one = action("rollback", rollback, "serve a kept version again")
    one.add_argument("name")
    one.add_argument("--version", type=int, help="the one before when left out")
    one = action("delete", delete, "delete a function with its versions")
    one.add_argument("name")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one = action("logs", logs, "print log lines")
    one.add_argument("name", nargs="?", help="of this function alone")
    one.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    one.add_argument("--limit", type=int, default=100, help="at most so many old lines (100)")
    one.add_argument("--invocation", help="of one request, by its x-request-id")
    one = action("invoke", invoke, "call a function with the service key")
    one.add_argument("name", help="name, with a path and query if wanted")
    one.add_argument("-d", "--data", help="the body; - for standard input")
    one.add_argument("-X", "--method", default="POST")
    one.add_argument("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'")
    one.add_argument("--anon", action="store_true", help="with the anon key instead")
    action("status", status, "show the isolation in force and the running processes")
    secrets = actions.add_parser("secrets", help="set, list and delete environment variables")
    kinds = secrets.add_subparsers(required=True, metavar="ACTION")
    one = kinds.add_parser("set", parents=[shared], help="set NAME=VALUE; NAME alone asks for it")
    one.add_argument("pairs", nargs="*", metavar="NAME=VALUE")
    one.add_argument("--env-file", help="a file of NAME=VALUE lines; - for standard input")
    one.set_defaults(run=secrets_set)
    one = kinds.add_parser("list", parents=[shared], help="list the names")
    one.set_defaults(run=secrets_list)
    one = kinds.add_parser("unset", parents=[shared], help="delete secrets")
    one.add_argument("names", nargs="+")
    one.set_defaults(run=secrets_unset)


def _options(one: Any) -> None:
    one.add_argument("--auth", choices=["key", "user", "none"], help="who may call")
    one.add_argument("--outbound", action="append", metavar="HOST",
                     help="reach these hosts alone; may be repeated")  # fmt: skip
    one.add_argument("--schedule", action="append", metavar="CRON",
                     help="run it by itself; may be repeated")  # fmt: skip
    one.add_argument("--update", action="store_true", help="take newer dependencies")


class _Admin:
    """The admin routes of one project."""

    def __init__(self, options: argparse.Namespace) -> None:
        from server.cli.main import client

        self.client = client(options)
        self.base = f"/admin/v1/projects/{quote(options.project, safe='')}"

    def call(self, method: str, path: str, body: object = None, seconds: float = 200) -> Any:
        return self.client.call(method, f"{self.base}/{path}", body, seconds)


def _named(name: str) -> str:
    if not NAME.match(name):
        raise CommandError(
            f"{name[:80]!r} is no name of a function: choose one such as send-mail, of lower-case "
            "letters, digits, - and _, at most 63 of them"
        )
    return name


def new(options: argparse.Namespace) -> int:
    folder = Path(options.dir) / _named(options.name)
    if folder.exists():
        raise CommandError(
            f"{folder} is there already; next: ichibase functions deploy {options.name}"
        )
    try:
        folder.mkdir(parents=True)
        (folder / "index.ts").write_text(TEMPLATE)
        (folder / "deno.json").write_text(CONFIG)
    except OSError as error:
        raise CommandError(
            f"cannot write {folder}: {error.strerror}; name another folder by --dir"
        ) from None
    if options.json:
        print_json({"name": options.name, "folder": str(folder)})
    else:
        print(f"wrote {folder}/index.ts; next: ichibase functions deploy {options.name}")
    return 0


def _folders(options: argparse.Namespace) -> list[Path]:
    base = Path(options.dir)
    names = options.names
    if not names:
        names = sorted(p.name for p in base.glob("*") if p.is_dir() and NAME.match(p.name))
        if not names:
            raise CommandError(f"there are no functions in {base}; write one with: "
                               "ichibase functions new NAME")  # fmt: skip
    found = []
    for name in names:
        folder = base / _named(name)
        if not folder.is_dir():
            raise CommandError(
                f"there is no folder {folder}; write one with: ichibase functions new {name}, or "
                "name where the functions are by --dir"
            )
        found.append(folder)
    return found


def _files(folder: Path) -> dict[str, Path]:
    """What is uploaded of a function's folder, and of what it shares with others where it names
    that."""
    found = _within(folder, "")
    if not found:
        raise CommandError(f"{folder} is empty; write {folder / 'index.ts'}")
    shared = folder.parent / SHARED.strip("./")
    if shared.is_dir() and any(_names_shared(path) for path in found.values()):
        found |= _within(shared, SHARED)
    if len(found) > MAX_FILES:
        raise CommandError(
            f"{folder} has more than {MAX_FILES} files; move what it does not import elsewhere"
        )
    if sum(_told(path)[0] for path in found.values()) > MAX_SOURCE:
        raise CommandError(
            f"{folder} has more than {MAX_SOURCE >> 20} MiB; move data to storage, and large "
            "libraries to npm: imports"
        )
    return found


def _within(folder: Path, before: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or LEFT_OUT & set(parts) or any(p.startswith(".") for p in parts):
            continue
        if path.name.endswith("~") or path.name.startswith("#"):  # an editor's copy
            continue
        if not path.resolve().is_relative_to(folder.parent.resolve()):
            raise CommandError(
                f"{path} links to {path.resolve()}, outside of {folder.parent}; copy that file"
            )
        name = unicodedata.normalize("NFC", "/".join(parts))
        if not PATH.match(name):
            raise CommandError(f"{path}: a file's name has letters, digits and . _ - only")
        found[before + name] = path
    return found


def _names_shared(path: Path) -> bool:
    with contextlib.suppress(OSError):  # gone meanwhile
        return SHARED.encode() in path.read_bytes()
    return False


def _told(path: Path) -> tuple[int, int]:
    """(bytes, nanoseconds of the last change)."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns
    return 0, 0


def _upload(options: argparse.Namespace, admin: _Admin, folder: Path) -> Any:
    files: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, path in _files(folder).items():
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror}") from None
        try:
            files[name] = raw.decode()
        except UnicodeDecodeError:
            files[name] = {"base64": base64.b64encode(raw).decode()}
        if name in ("deno.json", "deno.jsonc"):
            settings = _settings(path, raw)
    wanted = {
        "files": files, "entrypoint": settings.get("entrypoint"),
        "auth": options.auth or settings.get("auth") or "key",
        "outbound": options.outbound or settings.get("outbound"), "update": options.update,
        "schedule": options.schedule or settings.get("schedule"),
    }  # fmt: skip
    try:
        return admin.call("PUT", f"functions/{quote(folder.name)}", wanted)
    except CommandError as error:  # the places are in the text already
        raise CommandError(str(error).partition("\n  errors: ")[0]) from None


def _settings(path: Path, raw: bytes) -> dict[str, Any]:
    """The member `ichibase` of deno.json: auth, outbound, schedule, entrypoint."""
    try:
        found = json.loads(without_comments(raw)).get("ichibase", {})
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not valid JSON: {error}") from None
    except AttributeError:
        raise CommandError(f'{path} is an object, such as {{"imports": {{}}}}') from None
    if not isinstance(found, dict) or set(found) - set(SETTINGS):
        raise CommandError(f"{path}: `ichibase` takes {', '.join(SETTINGS)}")
    for name, value in found.items():
        many = isinstance(value, list) and all(isinstance(one, str) for one in value)
        right = {
            "outbound": many, "schedule": many or isinstance(value, str),
        }.get(name, isinstance(value, str))  # fmt: skip
        if value is not None and not right:
            raise CommandError(f"{path}: {name} is {SETTINGS[name]}")
    return found


def deploy(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    done = []
    for folder in _folders(options):
        try:
            told = _upload(options, admin, folder)
        except CommandError as error:
            raise CommandError(f"{folder.name}: {error}") from None
        done.append(told)
        if not options.json:
            print(f"deployed {told['name']} version {told['version']}, {told['bytes']:,} bytes, "
                  f"auth {told['auth']}")  # fmt: skip
    if options.json:
        print_json(done)
    return 0


def serve(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    project = admin.client.project(options.project)
    seen: dict[Path, Any] = {}
    last = admin.call("GET", "function-logs?limit=1")["last"]
    note("deploying on every change; Ctrl-C ends it, what is deployed stays")
    while True:
        for folder in _folders(options):
            try:
                stamp: Any = [(name, *_told(path)) for name, path in _files(folder).items()]
            except CommandError as error:
                stamp = str(error)
            if seen.get(folder) == stamp:
                continue
            seen[folder] = stamp
            try:
                told = _upload(options, admin, folder)
                note(f"{project['url']}/functions/{told['name']} serves version {told['version']}")
            except CommandError as error:
                note(f"{folder.name}: {error}")
        found = admin.call("GET", f"function-logs?after={last}&limit=1000")
        last = found["last"]
        _print_lines(options, found["lines"])
        time.sleep(POLL)


def listed(options: argparse.Namespace) -> int:
    found = _Admin(options).call("GET", "functions")["functions"]
    if options.json:
        print_json(found)
        return 0
    rows = [
        [f["name"], f["version"], f["auth"], f["bytes"],
         "all" if f["outbound"] is None else ", ".join(f["outbound"]),
         ", ".join(f["schedule"] or ()), moment(f["deployed_at"])]
        for f in found
    ]  # fmt: skip
    print_table(["name", "version", "auth", "bytes", "outbound", "schedule", "deployed"], rows)
    return 0


def versions(options: argparse.Namespace) -> int:
    path = f"functions/{_named(options.name)}/versions"
    found = _Admin(options).call("GET", path)["versions"]
    if options.json:
        print_json(found)
        return 0
    rows = [[("* " if v["active"] else "  ") + str(v["version"]), v["auth"], v["bytes"],
             moment(v["deployed_at"])] for v in found]  # fmt: skip
    print_table(["version", "auth", "bytes", "deployed"], rows)
    return 0


def rollback(options: argparse.Namespace) -> int:
    path = f"functions/{_named(options.name)}/rollback"
    told = _Admin(options).call("POST", path, {"version": options.version})
    print_json(told) if options.json else print(f"serving version {told['version']}")
    return 0


def delete(options: argparse.Namespace) -> int:
    _named(options.name)
    if not options.yes:
        if not sys.stdin.isatty():
            raise CommandError("this deletes the function with all its versions; say --yes")
        if input("Type the name of the function to delete it: ") != options.name:
            raise CommandError("the names differ; nothing was deleted")
    told = _Admin(options).call("DELETE", f"functions/{quote(options.name, safe='')}")
    print_json(told) if options.json else print(f"deleted {options.name}")
    return 0


def logs(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    query = {"limit": str(options.limit)}
    if options.name:
        query["function"] = options.name
    if options.invocation:
        query["invocation"] = options.invocation
    while True:
        found = admin.call("GET", f"function-logs?{urlencode(query)}")
        _print_lines(options, found["lines"])
        if not options.follow:
            if not found["lines"] and not options.json:
                note("no lines yet; see that it is deployed: ichibase functions list")
            return 0
        query |= {"after": str(found["last"]), "wait": "20", "limit": "1000"}


def _print_lines(options: argparse.Namespace, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        if options.json:
            print(json.dumps(line, ensure_ascii=False))
            continue
        stamp = time.strftime("%H:%M:%S", time.localtime(line["at"]))
        text = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}"
                       for c in line["text"])  # fmt: skip
        print(f"{stamp} {line['function']}@{line['version']} {line['level']:5} {text}")
    sys.stdout.flush()


def invoke(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    project = admin.client.project(options.project)
    body = None
    if options.data is not None:
        body = sys.stdin.buffer.read() if options.data == "-" else options.data.encode()
    headers = {"apikey": project["anon_key" if options.anon else "service_key"]}
    if body is not None:
        headers["content-type"] = "application/json"
    for header in options.header:
        name, colon, value = header.partition(":")
        if not colon or not HEADER.match(header):
            raise CommandError(f"a header is written 'NAME: VALUE', not {header!r}")
        headers[name.strip().lower()] = value.strip()
    if options.method is not None and not METHOD.match(options.method):
        raise CommandError(f"{options.method!r} is no method; one is such as GET or POST")
    base, host = admin.client.reach(project)
    path = quote(options.name, safe="/?&=%")
    request = urllib.request.Request(  # noqa: S310
        f"{base}/functions/{path}", body, {**host, **headers}, method=options.method
    )
    # neither to a proxy nor, with the key, to where an answer leads
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
    try:
        with opener.open(request, timeout=300) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    except (OSError, http.client.HTTPException):
        raise CommandError(
            f"the node does not answer at {base}; see whether it runs: ichibase status"
        ) from None
    sys.stdout.flush()
    sys.stdout.buffer.write(raw)
    if raw and not raw.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    if status >= 400:
        name = re.split(r"[/?]", options.name)[0]
        missing = status == 404 and b'"function_not_found"' in raw
        what = "list" if missing else f"logs {name}"
        raise CommandError(f"the function answered {status}; see: ichibase functions {what}")
    return 0


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def status(options: argparse.Namespace) -> int:
    found = _Admin(options).client.call("GET", "/admin/v1/functions")
    if options.json:
        print_json(found)
        return 0
    print("isolation of function processes:")
    for line in found["isolation"]:
        print(f"  {line}")
    names = ["project", "function", "version", "state", "pid", "uid", "memory", "cpu"]
    rows = [
        [p["project"], p["function"], p["version"], p["state"], p["pid"], p["uid"],
         f"{p['memory'] >> 20} MiB", f"{p['cpu']:.1f} s"]
        for p in found["processes"]
    ]  # fmt: skip
    print(f"{found['spares']} blank processes ready")
    if rows:
        print_table(names, rows)
    return 0


def secrets_set(options: argparse.Namespace) -> int:
    values: dict[str, str] = {}
    lines: list[str] = []
    if options.env_file == "-":
        lines = sys.stdin.read().splitlines()
    elif options.env_file is not None:
        try:
            lines = Path(options.env_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise CommandError(
                f"cannot read {options.env_file}: {why}; name a file of NAME=VALUE lines"
            ) from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.strip().removeprefix("export ").partition("=")
            if not equals:
                raise CommandError(f"line {number} of {options.env_file} is not NAME=VALUE")
            values[name.strip()] = _unquoted(value.strip())
    for pair in options.pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            import getpass

            value = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline()
            value = value.rstrip("\n")
        values[name] = value
    if not values:
        raise CommandError("name at least one: ichibase functions secrets set NAME=VALUE")
    told = _Admin(options).call("PUT", "secrets", {"values": values})
    print_json(told["secrets"]) if options.json else print(f"set {', '.join(values)}")
    return 0


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def secrets_list(options: argparse.Namespace) -> int:
    found = _Admin(options).call("GET", "secrets")["secrets"]
    if options.json:
        print_json(found)
    else:
        print_table(["name", "changed"], [[s["name"], moment(s["changed_at"])] for s in found])
    return 0


def secrets_unset(options: argparse.Namespace) -> int:
    admin = _Admin(options)
    for name in options.names:
        admin.call("DELETE", f"secrets/{quote(name, safe='')}")
    print_json({"deleted": options.names}) if options.json else print(
        f"deleted {', '.join(options.names)}"
    )
    return 0
