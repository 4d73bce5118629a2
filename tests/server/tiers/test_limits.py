"""Tiers: their file, a node's changes, a project's own."""

import asyncio

import msgspec
import psycopg
import pytest

from server.backup.jobs import Jobs
from server.base import limits
from server.base.events import Events
from server.base.metrics import Metrics
from server.control.lifecycle import Lifecycle
from server.control.projects import Projects
from server.node.settings import SettingsError, load


@pytest.mark.parametrize(
    ("name", "free", "pro"),
    [
        ("projects", 1, None), ("flavors", 1, 2), ("database_bytes", 500_000_000, 20_000_000_000),
        ("storage_bytes", 1_000_000_000, 100_000_000_000), ("connections", 10, 60),
        ("statement_ms", 5_000, 30_000), ("realtime_connections", 100, 2_000),
        ("function_concurrency", 5, 50), ("function_wall_ms", 10_000, 60_000),
        ("function_memory", 128 << 20, 512 << 20), ("schedules", 0, 10), ("sleep_days", 7, 0),
        ("backup_hours", 24, 24), ("backup_keep_days", 3, 14),
    ],
)  # fmt: skip
def test_each_tier_grants_what_is_promised(name, free, pro):
    tiers = limits.DEFAULT_TIERS
    assert tuple(tiers) == limits.TIERS
    assert getattr(tiers["free"], name) == free
    assert pro is None or getattr(tiers["pro"], name) == pro


def test_schedules_grow_with_the_tier():
    granted = [(t.schedules, t.schedule_seconds) for t in limits.DEFAULT_TIERS.values()]
    assert granted[1:] == [(10, 300), (50, 60)]
    bytes = [t.database_bytes + t.storage_bytes for t in limits.DEFAULT_TIERS.values()]
    assert bytes == sorted(bytes)


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


def test_backups_follow_a_projects_own_numbers(world, tmp_path):
    config = msgspec.structs.replace(world.config, data_dir=tmp_path)
    projects = Projects(world.dsn, {world.cluster.id: world.cluster}, config)
    jobs, life = Jobs(projects, Events(), Metrics()), Lifecycle(projects)

    def sql(text):
        with psycopg.connect(world.dsn, autocommit=True) as control:
            cursor = control.execute(text)
            return cursor.fetchall() if cursor.description else None

    def planned(**own):
        asyncio.run(life.change("spaced", {"limits": own}, "test"))
        sql("update jobs set state = 'failed' where state = 'queued'")
        asyncio.run(jobs.plan())
        return sql("select count(*) from jobs where project = 'spaced' and state = 'queued'")[0][0]

    asyncio.run(projects.create("spaced", tier="free", owner="spaced"))
    try:
        sql("update projects set created_at = now() - interval '90 days' where slug = 'spaced'")
        assert planned(backup_hours=0) == 0  # never
        assert planned(backup_hours=2, backup_keep_days=40) == 1
        sql("update jobs set state = 'failed' where state = 'queued' and project <> 'spaced'")
        assert asyncio.run(jobs.once())
        ((days,),) = sql("select extract(epoch from keep_until - now()) / 86400 from backups "
                         "where project = 'spaced'")  # fmt: skip
        assert 39.9 < days <= 40
        assert planned(backup_hours=2) == 0  # just made
        sql("update backups set started_at = now() - interval '3 hours' where project = 'spaced'")
        assert planned(backup_hours=2) == 1
        sql("update backups set started_at = now() - interval '25 hours' where project = 'spaced'")
        assert planned() == 1  # the tier's
        assert planned(backup_hours=24 * 365 * 1000) == 0
    finally:
        sql("update jobs set state = 'failed' where state = 'queued'")
        asyncio.run(projects.delete("spaced"))
