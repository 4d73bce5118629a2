"""Imports point down: app > gateway > services > base > ichicore. Services never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = {"postgres", "mongo", "auth", "storage", "realtime", "functions"}
TOP = {"app", "cli", "node", "control", "standalone", "backup", "maintenance"}
PLUGGED = {"admin": "control", "cli": "cli", "child": "node", "main": "node"}
ALLOWED = {
    "base": {"base"},
    "gateway": {"gateway", "base", *SERVICES},
    **{service: {service, "base"} for service in SERVICES},
    **{room: {"gateway", "base", *TOP, *SERVICES} for room in TOP},
}
# The core computes; it never waits, connects or looks at a clock.
CORE_FORBIDDEN = {
    "server", "asyncio", "socket", "time", "datetime", "selectors", "ssl", "threading", "uvloop",
    "granian",
}  # fmt: skip
FILES = sorted(ROOT.glob("server/**/*.py"))
CORE = sorted([*ROOT.glob("ichicore/**/*.py"), *ROOT.glob("ichicore/**/*.pyx")])


def imported(tree):
    """Module names that a file imports when it runs, at any depth."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def core_imported(text):
    """The same for Cython, line by line: its grammar is not Python's."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in {"import", "cimport", "from"}:
            yield words[1].rstrip(",")


def room(name):
    """The room that a module belongs to. What a service adds to the admin port, to the command line
    and to the node's processes belongs to those, at the top: nothing of the service may import
    it."""
    parts = name.split(".")
    if parts[0] != "server" or len(parts) < 2:
        return None
    if parts[1] in SERVICES and len(parts) > 2 and parts[2] in PLUGGED:
        return PLUGGED[parts[2]]
    return parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downwards(path):
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":
        return
    wrong = {
        name
        for name in imported(ast.parse(path.read_text()))
        if (target := room(name)) is not None and target not in ALLOWED[own]
    }
    assert not wrong, f"{own} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_stands_alone(path):
    text = path.read_text()
    names = imported(ast.parse(text)) if path.suffix == ".py" else core_imported(text)
    wrong = {name for name in names if name.split(".")[0] in CORE_FORBIDDEN}
    assert not wrong, f"the core must not import {sorted(wrong)}"
