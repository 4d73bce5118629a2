"""Tiers: their file, a node's changes, a project's own."""

import msgspec
import pytest

from server.base import limits
from server.node.settings import SettingsError, load


def test_each_tier_has_every_number():
    assert tuple(limits.DEFAULT_TIERS) == limits.TIERS
    free, pro = limits.DEFAULT_TIERS["free"], limits.DEFAULT_TIERS["pro"]
    assert (free.projects, free.flavors, free.database_bytes) == (1, 1, 500_000_000)
    assert (free.connections, free.statement_ms, free.sleep_days) == (10, 5_000, 7)
    assert (pro.flavors, pro.connections, pro.backup_keep_days) == (2, 60, 14)


def test_a_node_replaces_single_numbers(tmp_path):
    file = tmp_path / "tiers.toml"
    file.write_text("[free]\nconnections = 3\nsleep_days = 0.5\n")
    tiers = limits.load(file)
    assert tiers["free"].connections == 3
    assert tiers["free"].sleep_days == 0.5
    assert tiers["free"].statement_ms == limits.DEFAULT_TIERS["free"].statement_ms
    assert tiers["pro"] == limits.DEFAULT_TIERS["pro"]
    assert load({"tiers_file": str(file)}, {}).tiers_file == file
    assert load({}, {"ICHIBASE_TIERS_FILE": str(file)}).tiers_file == file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[free]\nconections = 3", "did you mean connections?"),
        ("[gold]\nconnections = 3", "unknown tier 'gold'"),
        ("[free]\nconnections = 0", "connections"),
        ("[free]\nconnections = '3'", "connections"),
        ("[free]\nconnections = true", "connections"),
        ("[free]\ndatabase_bytes = -1", "database_bytes"),
        ("free = 3", "must be a table"),
        ("[free", "not valid TOML"),
    ],
)
def test_a_tiers_file_that_cannot_be_used_is_named(tmp_path, text, said):
    file = tmp_path / "tiers.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")):
        load({"tiers_file": str(file)}, {})


def test_a_missing_tiers_file_stops_the_start(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        load({"tiers_file": str(tmp_path / "none.toml")}, {})


def test_a_projects_own_numbers_come_last():
    tiers = limits.DEFAULT_TIERS
    assert limits.of(tiers, "free", {"connections": 20}).connections == 20
    assert limits.of(tiers, "free", {"from a newer version": 1}) == tiers["free"]
    assert limits.of(tiers, "free", {"connections": "many"}) == tiers["free"]
    with pytest.raises(limits.LimitsError, match="did you mean statement_ms"):
        limits.changed(tiers["free"], {"statement_s": 1})


def test_limits_travel_as_json():
    text = msgspec.json.encode(limits.DEFAULT_TIERS)
    assert msgspec.json.decode(text, type=limits.Tiers) == limits.DEFAULT_TIERS
