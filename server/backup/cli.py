"""`ichibase backups`: list, create, restore, verify, delete, scan. And `ichibase dump`."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from urllib.parse import quote

from server.backup import dump
from server.cli.client import AdminClient, CommandError
from server.cli.output import note, print_json, print_table

POLL_SECONDS = 0.25
PATIENCE = 30.0  # seconds in the queue after which the user is told why that may be


def _client(options: argparse.Namespace) -> AdminClient:
    from server.cli.main import client

    return client(options)


def _wait(admin: AdminClient, job: dict[str, Any], what: str, quiet: bool) -> dict[str, Any]:
    """Follows a job to its end, with a bar on a terminal; its result. CommandError."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True,
                   disable=quiet or not sys.stderr.isatty())  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None)
        began = time.monotonic()
        while job["state"] in ("queued", "running"):
            if job["state"] == "queued" and began and time.monotonic() - began > PATIENCE:
                note("still waiting: other jobs come first, or no node does the maintenance")
                began = 0.0
            step = "waiting" if job["state"] == "queued" else job["step"] or "starting"
            bar.update(task, description=f"{what}: {step}", completed=job["done"],
                       total=max(job["total"], job["done"]) or None)  # fmt: skip
            time.sleep(POLL_SECONDS)
            job = admin.call("GET", f"/admin/v1/jobs/{job['id']}")
    if job["state"] == "failed":
        raise CommandError(f"{what} failed: {job['error']}")
    result: dict[str, Any] = job["result"] or {}
    return result


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def show(options: argparse.Namespace) -> int:
    query = f"?project={quote(options.project, safe='')}" if options.project else ""
    found = _client(options).call("GET", f"/admin/v1/backups{query}")
    if options.json:
        print_json(found)
        return 0
    rows = [
        [b["id"], b["kind"], b["state"], _size(b["bytes"]), "yes" if b["encrypted"] else "no",
         (b["verified_at"] or "")[:16], (b["keep_until"] or "deleted by hand")[:16]]
        for b in found
    ]  # fmt: skip
    if not rows:
        print("there are no backups; make one with: ichibase backups create "
              f"{options.project or 'PROJECT'}")  # fmt: skip
        return 0
    print_table(["backup", "kind", "state", "size", "encrypted", "verified", "kept until"], rows)
    for backup in found:
        if backup["state"] == "failed":
            note(f"{backup['id']} failed: {backup['error']}")
    return 0


def create(options: argparse.Namespace) -> int:
    admin = _client(options)
    path = f"/admin/v1/projects/{quote(options.project, safe='')}/backups"
    result = _wait(admin, admin.call("POST", path), f"backup of {options.project}", options.json)
    if options.json:
        print_json(result)
    else:
        print(f"made {result['backup']} ({_size(result['bytes'])})")
    return 0


def _replaces(admin: AdminClient, backup: str) -> bool:
    """Whether the project that the backup is of exists."""
    of = {one["project"] for one in admin.call("GET", "/admin/v1/backups") if one["id"] == backup}
    return any(one["name"] in of for one in admin.call("GET", "/admin/v1/projects?deleted=true"))


def restore(options: argparse.Namespace) -> int:
    admin = _client(options)
    if options.into is None and not options.yes and _replaces(admin, options.backup):
        if not sys.stdin.isatty():
            raise CommandError("this replaces the project's data; say --yes, or --into NAME")
        try:
            said = input("This replaces the project's data. Type yes to go on: ").strip()
        except EOFError:
            said = ""
        if said != "yes":
            raise CommandError("nothing was changed")
    path = f"/admin/v1/backups/{quote(options.backup, safe='')}/restore"
    wanted = {"into": options.into, "keep_sessions": options.keep_sessions}
    job = admin.call("POST", path, wanted)
    result = _wait(admin, job, "restore", options.json)
    if options.json:
        print_json(result)
        return 0
    print(f"restored {result['rows']} rows of {result['tables']} tables and "
          f"{result['documents']} documents into {result['project']}")  # fmt: skip
    if result["functions"]:
        print(f"  with {result['functions']} functions")
    if result["sessions"]:
        print(f"  {result['sessions']} sessions of users were ended; they sign in anew")
    for warning in result["warnings"]:
        print(f"  not restored: {warning}")
    return 0


def verify(options: argparse.Namespace) -> int:
    admin = _client(options)
    job = admin.call("POST", f"/admin/v1/backups/{quote(options.backup, safe='')}/verify")
    result = _wait(admin, job, "verification", options.json)
    if options.json:
        print_json(result)
    else:
        print(f"good: {result['rows']} rows of {result['tables']} tables and "
              f"{result['documents']} documents")  # fmt: skip
        for warning in result["warnings"]:
            print(f"  not restored: {warning}")
    return 0


def delete(options: argparse.Namespace) -> int:
    admin = _client(options)
    job = admin.call("DELETE", f"/admin/v1/backups/{quote(options.backup, safe='')}")
    result = _wait(admin, job, "deletion", options.json)
    print_json(result) if options.json else print(f"deleted {options.backup}")
    return 0


def scan(options: argparse.Namespace) -> int:
    admin = _client(options)
    result = _wait(admin, admin.call("POST", "/admin/v1/backups/scan"), "scan", options.json)
    if options.json:
        print_json(result)
    else:
        print("\n".join(result["found"]) or "no backups were found that are not known")
        for one in result["unusable"]:
            note(f"{one['backup']} cannot be used: {one['error']}")
    return 0


def register(commands: Any) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    made = commands.add_parser("backups", help="Make, list, verify and restore backups.")
    actions = made.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str) -> Any:
        one = actions.add_parser(name, help=text, description=text, parents=[shared])
        one.set_defaults(run=run)
        return one

    action("list", show, "List backups, newest first.").add_argument("project", nargs="?")
    action("create", create, "Back a project up now.").add_argument("project")
    one = action("restore", restore, "Restore a backup into its project, or into a new one.")
    one.add_argument("backup")
    one.add_argument("--into", metavar="NAME", help="a project that does not exist yet")
    one.add_argument("--keep-sessions", action="store_true",
                     help="leave users signed in where nobody has ended it since")  # fmt: skip
    one.add_argument("--yes", action="store_true", help="replace the project's data unasked")
    text = "Restore a backup into a scratch database and compare it."
    action("verify", verify, text).add_argument("backup")
    action("delete", delete, "Delete a backup.").add_argument("backup")
    action("scan", scan, "Learn of backups in the store that are not known.")
    dump.register(commands)
