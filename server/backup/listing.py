"""The entries of a pg_dump archive, sorted by whose login restores them.

Nothing of a project is restored by the administrator, because loading a table may run what the
project's owner has written (checks, generated columns, functions in indexes). The owner's login
restores what was the owner's, the system login the schemas auth, storage and realtime; what this
program makes itself is made anew.
"""

from __future__ import annotations

import re

import msgspec

LINE = re.compile(r"(\d+); \d+ \d+ (.*)")
# What is left out: made anew by this program, or not the owner's to make.
SKIPPED = (
    "EVENT TRIGGER", "PUBLICATION TABLES IN SCHEMA", "PUBLICATION TABLE", "PUBLICATION",
    "SUBSCRIPTION TABLE", "SUBSCRIPTION", "DATABASE PROPERTIES", "DATABASE", "ENCODING",
    "STDSTRINGS", "SEARCHPATH", "STATISTICS DATA",
)  # fmt: skip
ACLS = ("DEFAULT ACL", "ACL")
OWN = "ichibase"  # this program's own schema
# The schema itself and what is said of it; names of others have a space where these end.
OF_OWN = re.compile(rf"(?:SCHEMA -|(?:ACL|COMMENT|SECURITY LABEL) - SCHEMA) {OWN} [^ ]+")


class Entry(msgspec.Struct, frozen=True):
    """line: as pg_restore lists it. rest: type, schema, name and owner."""

    line: str
    rest: str

    def is_a(self, *kinds: str) -> bool:
        return any(self.rest.startswith(f"{kind} ") for kind in kinds)

    @property
    def owner(self) -> str:
        return self.rest.rpartition(" ")[2]


class Sorted(msgspec.Struct):
    """Entries by who restores them. Rights and policies may name logins, and come after the tables.
    triggers: of system tables, which may call functions of the owner's. own: data of this
    program's own schema."""

    system: list[Entry] = []
    system_policies: list[Entry] = []
    system_acls: list[Entry] = []
    triggers: list[Entry] = []
    extensions: list[Entry] = []
    owner: list[Entry] = []
    owner_policies: list[Entry] = []
    owner_acls: list[Entry] = []
    own: list[Entry] = []


def entries(text: str) -> list[Entry]:
    """What `pg_restore --list` printed."""
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            found.append(Entry(line, match[2]))
    return found


def sort(listed: list[Entry], own: list[Entry], database: str) -> Sorted:
    """own: those of them in this program's own schema. (The list does not tell where a name ends
    that has spaces in it.) database: name of the dumped one."""
    ours = {entry.line for entry in own}
    system = f"{database}_system"
    found = Sorted()
    for entry in listed:
        if entry.is_a(*SKIPPED):
            continue
        if entry.line in ours:
            if entry.is_a("TABLE DATA"):
                found.own.append(entry)
        elif OF_OWN.fullmatch(entry.rest):
            continue
        elif entry.is_a("EXTENSION"):
            found.extensions.append(entry)
        elif entry.is_a("COMMENT - EXTENSION"):
            continue
        elif entry.owner == system:
            if entry.is_a(*ACLS):
                found.system_acls.append(entry)
            elif entry.is_a("POLICY"):
                found.system_policies.append(entry)
            elif entry.is_a("TRIGGER"):
                found.triggers.append(entry)
            else:
                found.system.append(entry)
        elif entry.is_a(*ACLS):
            found.owner_acls.append(entry)
        elif entry.is_a("POLICY"):
            found.owner_policies.append(entry)
        else:
            found.owner.append(entry)
    return found
