"""docs/auth.md names everything that there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from server.auth.cli import register
from server.auth.service import ADMIN_ROUTES, ROUTES
from server.auth.settings import MESSAGES, AuthSettings, LandingUrls, Phone, Smtp

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "auth.md").read_text()


def test_every_endpoint_is_documented() -> None:
    for path in (*ROUTES, *ADMIN_ROUTES):
        assert f"/auth{path}" in TEXT, path


def test_every_setting_is_documented() -> None:
    for kind in (AuthSettings, Phone, Smtp, LandingUrls):
        for field in msgspec.structs.fields(kind):
            if field.name != "enabled":
                assert f"`{field.name}`" in TEXT, (kind.__name__, field.name)
    for message in MESSAGES:
        assert f"`{message}`" in TEXT, message


def test_every_code_of_a_refusal_is_documented() -> None:
    used = set()
    for file in (ROOT / "server" / "auth").glob("*.py"):
        if file.name not in ("admin.py", "cli.py"):
            used |= set(re.findall(r'ApiError\(\s*\d{3},\s*"([a-z_]+)"', file.read_text()))
    assert len(used) > 20
    told = TEXT[TEXT.index("Codes of refusals") :]
    told = told[: told.index("###")]
    assert used - {"not_found", "method_not_allowed", "timeout", "auth_not_enabled"} <= set(
        re.findall(r"`([a-z_]+)`", told)
    )


def test_every_command_is_documented() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    register(commands)
    users = commands.choices["users"]
    (actions,) = (a for a in users._actions if isinstance(a, argparse._SubParsersAction))
    line = TEXT[TEXT.index("`ichibase users list") :].split("does the same")[0]
    for name in actions.choices:
        assert re.search(rf"\b{name}\b", line), name
