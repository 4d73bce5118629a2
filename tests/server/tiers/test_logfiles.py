"""Files of the log that are made before they are needed, on a real server."""

import asyncio
import errno
import os

import psycopg
import pytest

from server.control.database import connect
from server.maintenance import logfiles
from server.maintenance.logfiles import AHEAD, MORE, STEP, LogFiles, name_of, number_of

MB = 1 << 20


def test_names_are_counted_through():
    assert number_of("0000000100000002000003FF", 4 * MB) == 2 * 1024 + 1023
    assert name_of(3 * 1024, "000000010000000200000001", 4 * MB) == "000000010000000300000000"
    assert name_of(255, "00000007000000AA00000001", 16 * MB) == "0000000700000000000000FF"


@pytest.fixture
def log(pg_cluster):
    return LogFiles(pg_cluster.pgdata / "pg_wal", pg_cluster.dsn("postgres"))


def look(log, times=1):
    log._seen = 1 << 40  # as if little had been written since the last look

    async def work():
        async with await connect(log.dsn) as admin:
            return [await log.look(admin) for _ in range(times)]

    return asyncio.run(work())


def current(log):
    with psycopg.connect(log.dsn) as session:
        return session.execute(logfiles.WHERE).fetchone()


def ready(log):
    name, size = current(log)
    number = number_of(name, size)
    names = [name_of(number + step, name, size) for step in range(1, AHEAD // size + 1)]
    return [log.folder / one for one in names if (log.folder / one).exists()], size


def test_the_next_files_are_there_and_the_server_takes_them(log):
    look(log)
    found, size = ready(log)
    assert len(found) == AHEAD // size
    assert {one.stat().st_size for one in found} == {size}
    owner = log.folder.stat()
    assert {(one.stat().st_uid, one.stat().st_mode & 0o777) for one in found} == {
        (owner.st_uid, 0o600)
    }
    assert not (log.folder / logfiles.PART).exists()
    made = {one.name: one.stat().st_ino for one in found}
    with psycopg.connect(log.dsn, autocommit=True) as session:
        session.execute("create table long (body text)")
        for _ in range(3):
            session.execute(
                "insert into long select repeat(md5(a::text), 100) from generate_series(1, 3000) a"
            )
            session.execute("select pg_switch_wal()")
        assert session.execute("select count(*) from long").fetchone() == (9000,)
        session.execute("drop table long")
    name, _ = current(log)
    assert (log.folder / name).stat().st_ino == made[name]
    look(log)  # some may be there: the server uses old ones again
    assert len(ready(log)[0]) == AHEAD // size


def test_more_are_made_bit_by_bit_where_the_disk_has_room(log, monkeypatch):
    name, size = current(log)
    for path in log.folder.iterdir():
        if len(path.name) == len(name) and path.name > name:
            path.unlink()
    look(log)
    free = [logfiles.PART_OF_FREE * (MORE // 2)]
    usage = type("usage", (), {"free": property(lambda self: free[0])})()
    monkeypatch.setattr(logfiles.shutil, "disk_usage", lambda folder: usage)
    looks = (MORE - AHEAD) // STEP
    made = look(log, looks)
    assert made[0] == STEP // size
    assert made[-1] == 0
    assert sum(made) == (MORE // 2 - AHEAD) // size
    free[0] *= 4
    log._before = -1
    made = look(log, looks)
    assert made[-1] == 0
    assert sum(made) == MORE // 2 // size


def test_one_that_the_server_has_made_meanwhile_stays(log):
    look(log)
    found, size = ready(log)
    found[0].write_bytes(b"the server's")
    log._make([found[0]], size)
    assert found[0].read_bytes() == b"the server's"
    found[0].unlink()
    log._make([found[0]], size)
    assert found[0].stat().st_size == size


def test_while_much_is_written_nothing_is_made(log, monkeypatch):
    look(log)
    found, size = ready(log)
    found[-1].unlink()
    name, _ = current(log)
    free = [logfiles.SPARE + 1]
    usage = type("usage", (), {"free": property(lambda self: free[0])})()
    monkeypatch.setattr(logfiles.shutil, "disk_usage", lambda folder: usage)

    async def work():
        made = []
        async with await connect(log.dsn) as admin:
            for room in (logfiles.SPARE + 1, logfiles.SPARE - 1):
                free[0] = room
                log._before, log._seen = -1, number_of(name, size) - 5
                made.append(await log.look(admin))
        return made

    assert asyncio.run(work()) == [0, 1]


def test_one_that_was_not_written_gets_its_room(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"said")
    os.truncate(path, 4 * MB)
    assert path.stat().st_blocks * 512 < MB
    logfiles._give_room(path, 4 * MB)
    assert path.stat().st_blocks * 512 >= 4 * MB
    assert path.read_bytes() == b"said" + bytes(4 * MB - 4)
    logfiles._give_room(tmp_path / "none", 4 * MB)


def test_a_full_disk_leaves_nothing_half_made(log, monkeypatch):
    found, size = ready(log)
    for one in found:
        one.unlink()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(logfiles.os, "fsync", full)
    log._before = -1
    with pytest.raises(OSError, match="No space"):
        look(log)
    assert ready(log) == ([], size)
    assert not (log.folder / logfiles.PART).exists()
    monkeypatch.undo()
    assert look(log) == [AHEAD // size]
