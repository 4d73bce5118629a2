"""`ichibase usage`, `owners`, and the states and tiers of projects."""

from __future__ import annotations

import argparse
import json
from typing import Any
from urllib.parse import quote

from server.cli.client import AdminClient, CommandError
from server.cli.output import print_json, print_table

ACTIONS = {
    "suspend": "Refuse all requests to a project.",
    "resume": "Serve a suspended project again.",
    "sleep": "Put a project to sleep; its next request wakes it.",
    "wake": "Wake a sleeping project.",
    "upgrade": "Bring a project up to date with this version, after what kept it back is mended.",
    "undelete": "Bring back a project that was deleted within the last week.",
}


def _client(options: argparse.Namespace) -> AdminClient:
    from server.cli.main import client

    return client(options)


def _path(name: str) -> str:
    return f"/admin/v1/projects/{quote(name, safe='')}"


def usage(options: argparse.Namespace) -> int:
    found = _client(options).call("GET", f"{_path(options.project)}/usage")
    if options.json:
        print_json(found)
        return 0
    print(f"{found['project']}: {found['tier']}, {found['state']}")
    rows = [
        [name, f"{q['used']:,}", f"{q['limit']:,}", f"{q['percent']} %"]
        for name, q in found["quotas"].items()
    ]
    print_table(["quota", "used", "limit", ""], rows)
    counted = [
        [name, f"{found['today'].get(name, 0):,}", f"{n:,}"] for name, n in found["month"].items()
    ]
    if counted:
        print()
        print_table(["counted", "today", "this month"], counted)
    print()
    print_table(["open now", ""], [[name, f"{n:,}"] for name, n in found["live"].items()])
    if found["measured_at"] is None:
        print("the databases have not been measured yet")
    return 0


def step(options: argparse.Namespace) -> int:
    body = {"reason": options.reason} if getattr(options, "reason", None) else {}
    found = _client(options).call("POST", f"{_path(options.name)}/{options.step}", body)
    if options.json:
        print_json({"name": found["name"], "state": found["state"]})
    else:
        print(f"{found['name']} is {found['state']}")
    return 0


def change(options: argparse.Namespace) -> int:
    wanted: dict[str, Any] = {}
    for name in ("tier", "owner"):
        if getattr(options, name) is not None:
            wanted[name] = getattr(options, name)
    if options.limits is not None:
        try:
            wanted["limits"] = json.loads(options.limits)
        except ValueError as error:
            raise CommandError(f"--limits is not valid JSON: {error}") from None
    if not wanted:
        raise CommandError("say what to change: --tier, --owner or --limits")
    found = _client(options).call("PATCH", _path(options.name), wanted)
    shown = {name: found[name] for name in ("name", "tier", "owner", "state", "limits")}
    if options.json:
        print_json(shown)
    else:
        print(f"{found['name']} is {found['tier']}, of {found['owner']}")
    return 0


def tiers(options: argparse.Namespace) -> int:
    found = _client(options).call("GET", "/admin/v1/tiers")
    if options.json:
        print_json(found)
        return 0
    names = list(next(iter(found.values())))
    rows = [[name, *(f"{limits[name]:,}" for limits in found.values())] for name in names]
    print_table(["limit", *found], rows)
    return 0


def owners_list(options: argparse.Namespace) -> int:
    found = _client(options).call("GET", "/admin/v1/owners")
    if options.json:
        print_json(found)
        return 0
    rows = [
        [o["name"], o["email"], ", ".join(o["projects"]), "suspended" if o["suspended"] else ""]
        for o in found
    ]
    print_table(["owner", "email", "projects", ""], rows)
    return 0


def owners_put(options: argparse.Namespace) -> int:
    wanted: dict[str, Any] = {}
    if options.email is not None:
        wanted["email"] = options.email
    if options.bound is not None:
        wanted["bound"] = options.bound
    if options.suspended is not None:
        wanted["suspended"] = options.suspended == "yes"
    path = f"/admin/v1/owners/{quote(options.owner, safe='')}"
    found = _client(options).call("PUT", path, wanted)
    print_json(found) if options.json else print(f"owner {found['name']}")
    return 0


def owners_delete(options: argparse.Namespace) -> int:
    path = f"/admin/v1/owners/{quote(options.owner, safe='')}"
    found = _client(options).call("DELETE", path)
    print_json(found) if options.json else print(f"deleted {options.owner}")
    return 0


def register(commands: Any) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    text = "Show what a project uses of its quotas."
    made = commands.add_parser("usage", help=text, description=text, parents=[shared])
    made.add_argument("project")
    made.set_defaults(run=usage)
    text = "Show what each tier allows; 0 is no limit where a rate or a time of sleep is meant."
    made = commands.add_parser("tiers", help=text, description=text, parents=[shared])
    made.set_defaults(run=tiers)
    made = commands.add_parser("owners", help="List, make and change owners of projects.")
    actions = made.add_subparsers(required=True, metavar="ACTION")
    one = actions.add_parser("list", parents=[shared], help="list the owners")
    one.set_defaults(run=owners_list)
    one = actions.add_parser("put", parents=[shared], help="make or change an owner")
    one.add_argument("owner")
    one.add_argument("--email")
    one.add_argument("--bound", type=int, help="free projects this owner may have")
    one.add_argument("--suspended", choices=["yes", "no"], help="with all projects")
    one.set_defaults(run=owners_put)
    one = actions.add_parser("delete", parents=[shared], help="delete an owner without projects")
    one.add_argument("owner")
    one.set_defaults(run=owners_delete)


def project_actions(actions: Any, shared: argparse.ArgumentParser) -> None:
    """The further actions of `ichibase projects`."""
    for name, text in ACTIONS.items():
        one = actions.add_parser(name, parents=[shared], help=text, description=text)
        one.add_argument("name")
        if name == "suspend":
            one.add_argument("--reason")
        one.set_defaults(run=step, step=name)
    text = "Change a project's tier, owner or limits; applies at once."
    one = actions.add_parser("change", parents=[shared], help=text, description=text)
    one.add_argument("name")
    one.add_argument("--tier", choices=["free", "pro", "business"])
    one.add_argument("--owner")
    one.add_argument("--limits", metavar="JSON", help="numbers that replace those of the tier")
    one.set_defaults(run=change)
