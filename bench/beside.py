"""What the clients of two quiet projects, one of a paid tier and one free, notice of a busy one.

Windows alone and beside the busy project alternate. Of each kind of load and of request: 50th and
99th percentile of all rounds' answers alone and beside, and the ratio of the 99th percentiles as
the median of the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from bench import neighbour
from bench.victims import Asked, Socket, Taken, Victims, percentile, request

TARGET = 2.0
BREAK = 1.0  # seconds after an attack
# Requests a second by tier. What costs much is asked for seldom, so that the measured projects
# themselves leave the machine idle.
RATES = {
    "rows": (250, 60), "inserts": (50, 20), "documents": (40, 20), "document_inserts": (20, 10),
    "files": (40, 20), "logins": (3, 2), "calls": (20, 10), "echoes": (40, 20),
}  # fmt: skip
NAMES = (*RATES, "changes")
PASSWORD = "tangerine lamp 41"
HELLO = 'Deno.serve(() => new Response("hello"));'
OPEN = {"count": 1_000_000, "seconds": 1}
SETTINGS = {
    "realtime": {
        "tables": {"public.log": {"enabled": True, "rule": True}},
        "channels": {"room:*": {"subscribe": True, "send": True}},
        "frames_per_second": 100,
    },
    "auth": {"rate_limits": dict.fromkeys(
        ("login_per_ip_and_email", "login_per_email", "login_per_ip", "signup_per_ip"), OPEN
    )},
}  # fmt: skip


def tiers() -> str:
    """A free tier with both databases, so that one project can do everything at once, as file."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write("[free]\nflavors = 2\n")
    return file.name


@dataclass
class Site:
    """A project with its keys, and the admin API of its node."""

    admin: Any  # bench_projects.Admin
    project: dict[str, Any]
    headers: dict[str, str] = field(init=False)
    secret: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        key, service = self.project["anon_key"], self.project["service_key"]
        self.headers = {**self.admin.headers(self.project), "apikey": key}
        self.secret = {
            **self.headers, "apikey": service, "authorization": f"Bearer {service}"
        }  # fmt: skip

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        url = self.admin.node.url + path
        asked = urllib.request.Request(url, method=method, data=body, headers=headers)
        urllib.request.urlopen(asked, timeout=30).close()

    def equip(self, functions: dict[str, str], settings: dict[str, Any], sql: Any) -> None:
        name = self.project["name"]
        for text in sql:
            self.admin.sql(name, text)
        for function, text in functions.items():
            self.admin.call("PUT", f"/admin/v1/projects/{name}/functions/{function}",
                            {"files": {"index.ts": text}, "auth": "none"})  # fmt: skip
        for section, value in settings.items():
            self.admin.call("PUT", f"/admin/v1/projects/{name}/settings/{section}", value)


def busy(admin: Any, wanted: set[str]) -> neighbour.Attack:
    site = Site(admin, admin.create("busy", "free", "both"))
    site.equip(neighbour.FUNCTIONS, neighbour.SETTINGS, neighbour.SQL)
    if wanted & {"unindexed", "pipelines"}:
        for first in range(0, neighbour.DOCUMENTS, 1000):
            many = [neighbour.document(number) for number in range(first, first + 1000)]
            body = json.dumps({"docs": many}).encode()
            site.ask("POST", "/mongo/v1/insertMany/big", site.secret, body)
    return neighbour.Attack(admin.node.url, admin.headers(site.project), site.project)


def quiet(admin: Any, tier: str, names: tuple[str, ...]) -> tuple[list[Asked], list[Socket]]:
    """What its clients ask for and hear of. Figures have the tier's name in front."""
    paid = tier != "free"
    site = Site(admin, admin.create(f"quiet-{tier}", tier, "both"))
    site.equip({"hello": HELLO}, SETTINGS, [
        "create table t (id int primary key, body text); insert into t values (1, 'a row')",
        "create table log (id bigint generated always as identity primary key, n bigint)",
    ])  # fmt: skip
    site.ask("POST", "/mongo/v1/insertOne/t", site.secret, b'{"doc":{"n":1}}')
    file = {**site.secret, "content-type": "text/plain"}
    site.ask("PUT", "/storage/object/private/a.txt", file, b"x" * 1024)
    account = json.dumps({"email": "ann@example.com", "password": PASSWORD})
    site.ask("POST", "/auth/signup", site.headers, account.encode())
    site.ask("POST", "/functions/hello", site.headers, b"{}")
    minimal = {**site.headers, "prefer": "return=minimal"}
    made: dict[str, Any] = {
        "rows": lambda n: request("GET", "/postgres/t?id=eq.1", site.headers),
        "inserts": lambda n: request("POST", "/postgres/log", minimal, f'{{"n":{n}}}'),
        "documents": lambda n: request(
            "POST", "/mongo/v1/findOne/t", site.secret, '{"filter":{"n":1}}'
        ),
        "document_inserts": lambda n: request(
            "POST", "/mongo/v1/insertOne/log", site.secret, f'{{"doc":{{"n":{n}}}}}'
        ),
        "files": lambda n: request("GET", "/storage/object/private/a.txt", site.secret),
        "logins": lambda n: request("POST", "/auth/login", site.headers, account),
        "calls": lambda n: request("POST", "/functions/hello", site.headers, "{}"),
    }
    asked = [
        Asked(f"{tier}_{name}", make, RATES[name][0 if paid else 1],
              f"{tier}_changes" if name == "inserts" and "changes" in names else None)
        for name, make in made.items()
        if name in names or (name == "inserts" and "changes" in names)
    ]  # fmt: skip
    path, host = f"/realtime?token={site.project['anon_key']}", site.headers["Host"]
    room = {"type": "subscribe", "ref": "r", "kind": "broadcast", "channel": "room:1", "self": True}
    log = {"type": "subscribe", "ref": "t", "kind": "postgres", "table": "log"}
    sockets = []
    if "echoes" in names:
        sockets.append(Socket(
            path, host, [room],
            lambda m: m["payload"]["n"] if m.get("type") == "broadcast" else None,
            f"{tier}_echoes",
            lambda n: {"type": "broadcast", "channel": "room:1", "event": "e", "payload": {"n": n}},
            RATES["echoes"][0 if paid else 1],
        ))  # fmt: skip
    if "changes" in names:
        sockets.append(Socket(
            path, host, [log], lambda m: m["record"]["n"] if m.get("type") == "change" else None,
            f"{tier}_changes",
        ))  # fmt: skip
    return asked, sockets


@dataclass
class Pair:
    """Figures of one kind of request beside one kind of load."""

    alone: Taken = field(default_factory=Taken)
    beside: Taken = field(default_factory=Taken)
    ratios: list[float] = field(default_factory=list)

    def add(self, alone: Taken, beside: Taken) -> None:
        self.alone.add(alone)
        self.beside.add(beside)
        before = percentile(alone.times, 0.99)
        if before:
            self.ratios.append(percentile(beside.times, 0.99) / before)

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for when, taken in (("alone", self.alone), ("beside", self.beside)):
            for share in (50, 99):
                found[f"{when}_p{share}_ms"] = percentile(taken.times, share / 100) * 1000
        found["answers"] = len(self.beside.times)
        found["failed"] = self.beside.failed
        if self.beside.why:
            found["why"] = self.beside.why
        if self.alone.failed:
            found["failed_alone"] = self.alone.failed
        found["ratio"] = statistics.median(self.ratios)
        found["lowest"], found["highest"] = min(self.ratios), max(self.ratios)
        return found


def run(
    admin_of: Any, seconds: float, rounds: int, groups: dict[str, tuple[str, ...]],
    names: tuple[str, ...] = NAMES, tiers_wanted: tuple[str, ...] = ("pro", "free"),
) -> dict[str, Any]:  # fmt: skip
    """Figures by load and request. admin_of: makes the node."""
    os.environ["ICHIBASE_TIERS_FILE"] = tiers()
    admin = admin_of()
    try:
        attack = busy(admin, {kind for kinds in groups.values() for kind in kinds})
        asked: list[Asked] = []
        sockets: list[Socket] = []
        for tier in tiers_wanted:
            more, hear = quiet(admin, tier, names)
            asked += more
            sockets += hear
        victims = Victims(asked, sockets, int(admin.node.url.rpartition(":")[2]))
        victims.measure(min(2.0, seconds))
        found: dict[str, Any] = {}
        for group, kinds in groups.items():
            pairs: dict[str, Pair] = {}
            for _ in range(rounds):  # in turns, so that a slow minute of the machine is both's
                alone = _with_sums(victims.measure(seconds), tiers_wanted)
                with attack.going(kinds):
                    beside = _with_sums(victims.measure(seconds), tiers_wanted)
                for name, taken in alone.items():
                    pairs.setdefault(name, Pair()).add(taken, beside[name])
                time.sleep(BREAK)
            found[group] = {name: pair.figures() for name, pair in pairs.items()}
            print(table({group: found[group]}), file=sys.stderr, flush=True)
    finally:
        admin.stop()
    worst, worst_of = _worst(found, "")
    whole, whole_of = _worst(found, "_all")
    return {"loads": found, "worst": worst, "worst_of": worst_of, "worst_project": whole,
            "worst_project_of": whole_of, "target_ratio": TARGET}  # fmt: skip


def _worst(found: dict[str, Any], end: str) -> tuple[float, str]:
    """Of those whose names end so: of `_all`, of whole projects."""
    return max((
        (one["ratio"], f"{group} {name}")
        for group, pairs in found.items() for name, one in pairs.items() if name.endswith(end)
    ), default=(0.0, ""))  # fmt: skip


def _with_sums(taken: dict[str, Taken], tiers_wanted: tuple[str, ...]) -> dict[str, Taken]:
    """With a project's answers of all kinds together, as it asks for them."""
    sums = {}
    for tier in tiers_wanted:
        of_tier = [one for name, one in taken.items() if name.startswith(f"{tier}_")]
        if len(of_tier) > 1:
            whole = sums[f"{tier}_all"] = Taken()
            for one in of_tier:
                whole.add(one)
    return taken | sums


def table(loads: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One line for each pair."""
    head = ("load", "request", "alone p50", "p99", "beside p50", "p99 ms", "ratio", "of rounds",
            "answers", "failed")  # fmt: skip
    lines = [head]
    for load, pairs in loads.items():
        for name, one in pairs.items():
            lines.append((
                load, name, *(f"{one[f'{when}_p{share}_ms']:.2f}" for when in ("alone", "beside")
                              for share in (50, 99)),
                f"{one['ratio']:.2f}", f"{one['lowest']:.2f}-{one['highest']:.2f}",
                str(one["answers"]),
                f"{one['failed']} {one.get('why', '')}" if one["failed"] else "0",
            ))  # fmt: skip
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            part.ljust(width) if place in (0, 1, 9) else part.rjust(width)
            for place, (part, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
