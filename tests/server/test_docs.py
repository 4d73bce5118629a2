"""The documentation says what the program does."""

import re
from pathlib import Path

import msgspec

from server.control.sections import Cors, Postgres
from server.node.settings import NodeSettings

DOCS = Path(__file__).parents[2] / "docs"


def rows(text):
    """Cells of a Markdown file's tables, code marks taken off."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_setting_of_the_node_is_documented_with_its_default():
    text = (DOCS / "configuration.md").read_text().split("## A project")[0]
    documented = {}
    for row in list(rows(text))[1:]:
        names, defaults = (re.findall(r"`([^`]*)`", cell) for cell in row[:2])
        documented |= dict(zip(names, defaults or [None] * len(names), strict=False))
    fields = {f.name: f.default for f in msgspec.structs.fields(NodeSettings)}
    assert set(documented) == set(fields)
    for name, default in fields.items():
        if default is not None:
            written = str(default).lower() if isinstance(default, bool) else str(default)
            number = isinstance(default, float) and documented[name] == f"{default:g}"
            assert number or documented[name] == written, name


def test_every_key_of_the_sections_is_documented():
    text = (DOCS / "configuration.md").read_text().split("## A project")[1]
    section, documented = "", {}
    for row in list(rows(text))[1:]:
        section = row[0].strip("`") or section
        documented.setdefault(section, set()).update(re.findall(r"`([^`]*)`", row[1]))
    for name, shape in (("cors", Cors), ("postgres", Postgres)):
        assert documented[name] == {field.name for field in msgspec.structs.fields(shape)}
