"""`ichibase users`, `ichibase outbox` and `ichibase keys`."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

from server.cli.client import CommandError, direct
from server.cli.output import note, print_json, print_table


def register(commands: Any) -> None:
    """Adds the subcommands to the parser of the program."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="the node's data folder (ICHIBASE_DATA_DIR, ./data)")
    shared.add_argument("--json", action="store_true", help="JSON for machines")
    shared.add_argument("--project", default="default", help="the project (default)")
    _register_users(commands, shared)

    made = commands.add_parser(
        "outbox", parents=[shared], help="Show mail and SMS that development did not send."
    )
    made.add_argument("--to", help="messages to this address alone")
    made.add_argument("--limit", type=int, default=20, help="at most so many (20)")
    made.add_argument("--clear", action="store_true", help="empty the outbox")
    made.set_defaults(run=outbox)

    made = commands.add_parser("keys", help="List, rotate and delete the keys that sign tokens.")
    actions = made.add_subparsers(required=True, metavar="ACTION")
    one = actions.add_parser("list", parents=[shared], help="list the signing keys")
    one.set_defaults(run=keys_list)
    one = actions.add_parser("rotate", parents=[shared], help="sign with a new key from now on")
    one.add_argument("--algorithm", default="ES256", choices=["HS256", "ES256", "RS256", "EdDSA"])
    one.set_defaults(run=keys_rotate)
    one = actions.add_parser("delete", parents=[shared], help="forget a retired key")
    one.add_argument("kid")
    one.set_defaults(run=keys_delete)


def _register_users(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = commands.add_parser("users", help="Manage the users of a project.")
    actions = made.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Any, text: str, user: bool = True) -> Any:
        one = actions.add_parser(name, parents=[shared], help=text)
        one.set_defaults(run=run)
        if user:
            one.add_argument("user", help="id, e-mail address or phone number")
        return one

    one = action("list", users_list, "list users, newest first", user=False)
    one.add_argument("--query", help="part of an address, a number or an id")
    one.add_argument("--page", type=int, default=1)
    one = action("create", users_create, "create a user", user=False)
    one.add_argument("email")
    one.add_argument("--password", help="asked for when left out; - reads standard input")
    one.add_argument("--verified", action="store_true", help="the address is known to be theirs")
    action("show", users_show, "show one user")
    action("delete", users_delete, "delete a user").add_argument(
        "--yes", action="store_true", help="do not ask"
    )
    action("disable", users_disable, "refuse sign-ins and end all sessions")
    action("enable", users_enable, "allow sign-ins again")
    action("password", users_password, "set a password and end all sessions").add_argument(
        "--password", help="asked for when left out; - reads standard input"
    )
    action("sessions", users_sessions, "list the open sessions")
    action("logout", users_logout, "end all sessions")
    one = action("impersonate", users_impersonate, "print an access token; it is recorded")
    one.add_argument("--seconds", type=int, default=900)
    one.add_argument("--reason", default="")
    action("invite", users_invite, "mail an invitation", user=False).add_argument("email")
    one = action("link", users_link, "print a link instead of mailing it", user=False)
    one.add_argument("email")
    one.add_argument("type", choices=["verify_email", "password_reset", "magic"])


class _Users:
    """The auth service's admin endpoints, with the project's secret key."""

    def __init__(self, options: argparse.Namespace) -> None:
        from server.cli.main import client

        node = client(options)
        project = node.project(options.project)
        self.url, self.headers = node.reach(project)
        self.headers |= {"apikey": project["service_key"], "content-type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/auth/admin/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers=self.headers,
        )
        try:
            with direct(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            try:
                told = json.loads(error.read())
                raise CommandError(f"{told['detail']} [{told['code']}]") from None
            except (ValueError, KeyError, TypeError):
                raise CommandError(f"the node answered {error.code}") from None
        except OSError:
            raise CommandError(f"the project does not answer at {self.url}") from None

    def find(self, name: str) -> dict[str, Any]:
        """The one user with this id, address or number."""
        found = self.call("GET", f"users?{urlencode({'query': name})}")["users"]
        wanted = name.strip().lower()
        for user in found:
            if wanted in (user["id"], user["email"], user["phone"]):
                one: dict[str, Any] = user
                return one
        raise CommandError(f'there is no user "{name}"; see: ichibase users list')

    def of(self, name: str, rest: str = "") -> str:
        """Path of one user's endpoint."""
        return f"users/{quote(self.find(name)['id'])}{rest}"


def _print(options: argparse.Namespace, value: dict[str, Any]) -> int:
    if options.json:
        print_json(value)
    else:
        print_table(["member", "value"], [[name, part] for name, part in value.items()])
    return 0


def _password(options: argparse.Namespace) -> str:
    if options.password == "-":  # noqa: S105
        return sys.stdin.readline().rstrip("\n")
    if options.password is not None:
        return str(options.password)
    if not sys.stdin.isatty():
        raise CommandError("say --password, or --password - and write it to standard input")
    return getpass.getpass("Password: ")


def users_list(options: argparse.Namespace) -> int:
    query = {"page": options.page, "per_page": 50}
    if options.query:
        query["query"] = options.query
    found = _Users(options).call("GET", f"users?{urlencode(query)}")
    if options.json:
        print_json(found)
        return 0
    rows = [
        [u["id"], u["email"] or u["phone"], u["email_verified"], u["disabled"], u["created_at"],
         u["last_sign_in_at"]]
        for u in found["users"]
    ]  # fmt: skip
    print_table(["id", "address", "verified", "disabled", "created", "last sign-in"], rows)
    return 0


def users_create(options: argparse.Namespace) -> int:
    body = {
        "email": options.email,
        "password": _password(options),
        "email_verified": options.verified,
    }
    return _print(options, _Users(options).call("POST", "users", body))


def users_show(options: argparse.Namespace) -> int:
    return _print(options, _Users(options).find(options.user))


def users_delete(options: argparse.Namespace) -> int:
    users = _Users(options)
    user = users.find(options.user)
    if not options.yes:
        if not sys.stdin.isatty():
            raise CommandError("this deletes the user with what refers to it; say --yes")
        if input(f"Delete {user['email'] or user['phone']}? [y/N] ").lower() != "y":
            raise CommandError("nothing was deleted")
    return _print(options, users.call("DELETE", f"users/{user['id']}"))


def _patch(options: argparse.Namespace, body: dict[str, Any]) -> int:
    users = _Users(options)
    return _print(options, users.call("PATCH", users.of(options.user), body))


def users_disable(options: argparse.Namespace) -> int:
    return _patch(options, {"disabled": True})


def users_enable(options: argparse.Namespace) -> int:
    return _patch(options, {"disabled": False})


def users_password(options: argparse.Namespace) -> int:
    return _patch(options, {"password": _password(options)})


def users_sessions(options: argparse.Namespace) -> int:
    users = _Users(options)
    found = users.call("GET", users.of(options.user, "/sessions"))["sessions"]
    if options.json:
        print_json(found)
        return 0
    rows = [[s["id"], s["ip"], s["user_agent"], s["issued_at"], s["last_used_at"]] for s in found]
    print_table(["id", "ip", "user agent", "issued", "last used"], rows)
    return 0


def users_logout(options: argparse.Namespace) -> int:
    users = _Users(options)
    return _print(options, users.call("POST", users.of(options.user, "/logout"), {}))


def users_impersonate(options: argparse.Namespace) -> int:
    users = _Users(options)
    body = {"seconds": options.seconds, "reason": options.reason}
    found = users.call("POST", users.of(options.user, "/impersonate"), body)
    if options.json:
        print_json(found)
    else:
        print(found["access_token"])
    return 0


def users_invite(options: argparse.Namespace) -> int:
    return _print(options, _Users(options).call("POST", "invite", {"email": options.email}))


def users_link(options: argparse.Namespace) -> int:
    body = {"email": options.email, "type": options.type}
    found = _Users(options).call("POST", "generate-link", body)
    if options.json:
        print_json(found)
    else:
        print(found["link"])
    return 0


def _admin(options: argparse.Namespace, method: str, rest: str, body: object = None) -> Any:
    from server.cli.main import client

    project = quote(options.project, safe="")
    return client(options).call(method, f"/admin/v1/projects/{project}/{rest}", body)


def outbox(options: argparse.Namespace) -> int:
    if options.clear:
        return _print(options, _admin(options, "DELETE", "outbox"))
    query = {"limit": options.limit}
    if options.to:
        query["to"] = options.to
    found = _admin(options, "GET", f"outbox?{urlencode(query)}")["messages"]
    if options.json:
        print_json(found)
        return 0
    if not found:
        note("no messages; with a mail server of the project's own they are sent")
    for one in reversed(found):
        print(f"--- {one['at']}  {one['channel']} to {one['to']}")
        if one["subject"]:
            print(f"Subject: {one['subject']}")
        print(f"\n{one['text'].rstrip()}\n")
    return 0


def keys_list(options: argparse.Namespace) -> int:
    return _print_keys(options, _admin(options, "GET", "keys")["keys"])


def keys_rotate(options: argparse.Namespace) -> int:
    body = {"algorithm": options.algorithm}
    return _print_keys(options, _admin(options, "POST", "keys/rotate", body)["keys"])


def keys_delete(options: argparse.Namespace) -> int:
    return _print(options, _admin(options, "DELETE", f"keys/{quote(options.kid, safe='')}"))


def _print_keys(options: argparse.Namespace, keys: list[dict[str, Any]]) -> int:
    if options.json:
        print_json(keys)
    else:
        names = ("kid", "algorithm", "current", "signs_api_keys")
        print_table(list(names), [[key[name] for name in names] for key in keys])
    return 0
