"""Backups in an object store that is full, refuses, breaks off, or is away."""

import datetime

import obstore
import psycopg
import pytest

from server.backup import store as store_module
from server.backup.jobs import Jobs
from server.backup.store import ObjectStore, StoreError
from server.base.events import Events, Noted
from server.base.metrics import Metrics
from tests.server.storage.troubled import CUT
from tests.server.tiers.shop import Shop, run

SMALL = 64 << 10


@pytest.fixture(scope="module")
def environment(s3, troubled):
    with pytest.MonkeyPatch.context() as patch:
        given = s3.environment("backups") | {"AWS_ENDPOINT_URL": troubled.url}
        url = given.pop("ICHIBASE_STORAGE_URL")
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setattr(store_module, "PIECE", SMALL)
        yield url


class Remote(Shop):
    """told: the events of its jobs."""

    told = ()

    def jobs(self):
        events, self.told = Events(), []
        events.listeners.append(self.told.append)
        return Jobs(self.projects(), events, Metrics())

    def rows(self, text):
        with psycopg.connect(self.world.dsn, autocommit=True) as control:
            cursor = control.execute(text)
            return cursor.fetchall() if cursor.description else None

    def listed(self):
        return dict(self.rows("select id, state from backups where project = 'afar'"))


@pytest.fixture(scope="module")
def shop(world, environment, tmp_path_factory):
    made = Remote(world, "afar", data_dir=tmp_path_factory.mktemp("afar"), backup_url=environment)
    with made.session() as owner:
        owner.execute("create table filler as select gen_random_uuid() as a, gen_random_uuid() as "
                      "b from generate_series(1, 20000)")  # fmt: skip
    yield made
    run(made.projects().delete("afar"))


@pytest.fixture(scope="module")
def good(shop):
    return shop.backup()


def names(s3, *without):
    """What is in the store, but for these backups."""
    found = []
    for batch in obstore.list(s3.store(), prefix="backups"):
        found += [one["path"] for one in batch if one["path"].split("/")[-2] not in without]
    return found


def test_a_large_file_is_kept_in_pieces_of_which_each_is_sent_in_one_request(s3, shop, good):
    sizes = {}
    for batch in obstore.list(s3.store(), prefix="backups"):
        sizes |= {one["path"].rpartition("/")[2]: one["size"] for one in batch}
    pieces = [size for name, size in sizes.items() if name.startswith("postgres.dump")]
    assert len(pieces) > 5
    assert sorted(pieces)[1:] == [SMALL] * (len(pieces) - 1)
    state, result, error = shop.job("verify", backup=good)
    assert (state, error) == ("done", None)
    assert result["rows"] > 20_000


def test_a_file_whose_last_piece_is_full_and_one_without_any(environment):
    store = ObjectStore(environment)

    async def of(size):
        for _ in range(size // 1024):
            yield b"x" * 1024

    async def trip(size):
        await store.put(f"sizes/{size}", of(size))
        return b"".join([piece async for piece in store.get(f"sizes/{size}")])

    for size in (0, 1024, SMALL, 2 * SMALL, 2 * SMALL + 1024):
        assert run(trip(size)) == b"x" * size
    run(store.remove("sizes"))
    assert run(store.names("sizes")) == []
    with pytest.raises(StoreError):
        run(anext(store.get("sizes/0")))


def test_a_backup_of_one_object_for_each_file_is_read(s3, shop, good, monkeypatch):
    monkeypatch.setattr(store_module, "PIECE", 1 << 30)
    before = shop.backup()
    monkeypatch.setattr(store_module, "PIECE", SMALL)
    assert shop.job("verify", backup=before)[0] == "done"
    assert shop.job("remove", backup=before)[0] == "done"
    assert names(s3, good) == []


# What the store does, and what is said of it.
TROUBLES = {
    "full": ((507, "XMinioStorageFull"), "backup_store_full"),
    "quota": ((403, "QuotaExceeded"), "backup_store_full"),
    "refused": ((403, "AccessDenied"), "backup_store_refused"),
    "slow down": ((503, "SlowDown"), "backup_store_unavailable"),
    "fault": ((500, "InternalError"), "backup_store_unavailable"),
    "breaks off": (CUT, "backup_store_unavailable"),
}


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("kind", TROUBLES)
def test_a_store_that_fails_in_the_middle_costs_that_backup_alone(
    s3, troubled, shop, good, kind, after
):
    trouble, code = TROUBLES[kind]
    troubled.begin(trouble, after)
    state, _, error = shop.job("backup", kind="manual")
    troubled.end()
    assert (state, error.startswith("cannot write")) == ("failed", True), error
    ((failed, said, kept),) = shop.rows(
        "select code, error, keep_until is not null from backups where state = 'failed'"
    )
    assert (failed, said, kept) == (code, error, True)
    assert shop.rows("select code from jobs where state = 'failed'")[-1] == (code,)
    assert [e.what for e in shop.told if isinstance(e, Noted)] == ["backup of afar failed"]
    assert code in shop.told[-1].detail
    assert names(s3, good) == []
    assert s3.unfinished() == []
    assert shop.listed()[good] == "done"
    made = shop.backup()  # the store is well again
    for one in (good, made):
        assert shop.job("verify", backup=one)[0] == "done"
    assert shop.job("remove", backup=made)[0] == "done"
    shop.rows("delete from backups where state = 'failed'; delete from jobs")


def test_what_cannot_be_removed_at_once_goes_when_its_time_is_over(s3, troubled, shop, good):
    """A store that refuses everything in the middle of a backup."""
    troubled.begin((403, "AccessDenied"), 4, "PUT", "POST", "DELETE", "GET")
    state, _, error = shop.job("backup", kind="manual")
    assert (state, error.startswith("cannot write")) == ("failed", True), error
    troubled.end()
    assert names(s3, good) != []
    shop.rows("update backups set keep_until = now() where state = 'failed'")
    troubled.begin((503, "SlowDown"), 0, "PUT", "POST", "DELETE", "GET")
    run(shop.jobs().plan())
    assert [e.what for e in shop.told] == ["a backup whose time is over stays"]
    troubled.end()
    assert list(shop.listed().values()).count("failed") == 1
    run(shop.jobs().plan())
    assert shop.listed() == {good: "done"}
    assert names(s3, good) == []


def test_a_restore_whose_store_fails_changes_nothing(troubled, shop, good):
    with shop.session() as owner:
        owner.execute("create table later (id int)")
    for trouble in ((403, "AccessDenied"), (503, "SlowDown"), CUT):
        for after in (0, 4):
            troubled.begin(trouble, after, "GET")
            for job in ("verify", "restore"):
                state, _, error = shop.job(job, backup=good)
                assert state == "failed"
                assert not error.startswith("internal"), error
            troubled.end()
    with shop.session() as owner:
        owner.execute("drop table later")


def test_a_piece_that_is_missing_or_changed_is_found(s3, shop, good):
    (path,) = [one for one in names(s3) if one.endswith("postgres.dump.2")]
    whole = bytes(obstore.get(s3.store(), path).bytes())
    try:
        for change in (None, b"x" + whole[1:], whole[:-1]):
            if change is None:
                obstore.delete(s3.store(), path)
            else:
                obstore.put(s3.store(), path, change)
            state, _, error = shop.job("verify", backup=good)
            assert (state, "damaged" in error) == ("failed", True), error
    finally:
        obstore.put(s3.store(), path, whole)
    assert shop.job("verify", backup=good)[0] == "done"


def test_the_next_turn_comes_an_hour_after_a_nightly_backup_that_failed(troubled, shop, good):
    """And the listing keeps the one before, however old it is."""
    jobs = shop.jobs()
    record = run(shop.projects().find("afar"))
    now = datetime.datetime.now(datetime.UTC)
    begun = now - datetime.timedelta(hours=30)
    for ago, due in ((0.9, False), (1.1, True)):
        failed = now - datetime.timedelta(hours=ago)
        assert jobs._due(record, 24, now.timestamp(), begun, 1, failed) is due
        assert jobs._due(record, 24, now.timestamp(), begun, 3, failed) is False
    shop.rows("update backups set kind = 'nightly', keep_until = now() - interval '9 days'")
    run(jobs.plan())
    assert shop.listed() == {good: "done"}
    shop.rows("update jobs set state = 'failed' where state = 'queued'")
