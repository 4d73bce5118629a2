"""Which server processes of the embedded PostgreSQL serve which project, by their titles, and what
processor time they take; the projects' document servers beside them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from server.base.processor import ASIDE

LOOKS = 20  # at a process until it has its title
TICKS = os.sysconf("SC_CLK_TCK")  # a second
SECOND = 1_000_000_000  # nanoseconds
LEAST = SECOND // 200  # from which a process has been busy between two looks
# "postgres: ichi_x_owner ichi_x [local] idle", "postgres: autovacuum worker ichi_x"
DATABASE = re.compile(rb"^postgres: .*?\b(ichi_[a-z0-9]{12})(?:_|\b)")
READER = re.compile(rb"^postgres: walsender ")
KEEPER = re.compile(rb"^postgres: (?:checkpointer|background writer)\b")
LEADER = re.compile(rb"^postgres: parallel worker for PID (\d+)")


class Census:
    """pgdata: folder of the server. others: the databases of processes that are not PostgreSQL's,
    and which may have many threads. databases: by process, "" where it serves no project. busy: how
    many processes of a database took processor time before the last call of spent(). ran: their
    nanoseconds until then, by process. beside: those that are not PostgreSQL's. readers: those of
    the feeds, which have to read what all projects log. keepers: those that write to the files of
    all databases what sessions have changed."""

    def __init__(self, pgdata: Path, others: Callable[[], dict[int, str]] = dict) -> None:
        self.others = others
        self.beside: dict[int, str] = {}
        self.keepers: set[int] = set()
        self.readers: set[int] = set()
        self.lock = pgdata / "postmaster.pid"
        self.server = 0
        self.databases: dict[int, str] = {}
        self.busy: dict[str, int] = {}
        self._untitled: dict[int, int] = {}  # looks at processes without a title
        self.ran: dict[int, int] = {}

    def look(self) -> set[int]:
        """Takes in who has come and gone; gives the new processes of projects."""
        self.beside = self.others()
        found = self._children() | self.beside.keys()
        for kept in (self.databases, self._untitled, self.ran):
            for gone in kept.keys() - found:
                del kept[gone]
        self.readers &= found
        self.keepers &= found
        for process in found - self.databases.keys():
            self._name(process)
        return {one for one in found if self.databases.get(one) and one not in self.ran}

    def spent(self) -> dict[str, float]:
        """Processor seconds by database since the last call, without those of readers: how much
        they have to do is up to others."""
        found: dict[str, float] = {}
        self.busy = {}
        for process, database in self.databases.items():
            count = run_of_all_threads if process in self.beside else _run
            if database and (run := count(process)) is not None:
                more = run - self.ran.get(process, 0)
                self.ran[process] = run
                if process in self.readers:
                    continue
                found[database] = found.get(database, 0.0) + more / SECOND
                self.busy[database] = self.busy.get(database, 0) + (more > LEAST)
        return found

    def _children(self) -> set[int]:
        """None while the server does not run."""
        for again in (False, True):
            if self.server == 0 or again:
                try:
                    self.server = int(self.lock.read_text().split("\n", 1)[0])
                except (OSError, ValueError):
                    self.server = 0
                    return set()
            with contextlib.suppress(OSError):
                return set(children(self.server))
        return set()

    def _name(self, process: int) -> None:
        """Learns the database of a process, as soon as its title tells."""
        if process in self.beside:
            self.databases[process] = self.beside[process]
            return
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            return
        leader = LEADER.match(title)
        named = DATABASE.match(title)
        if leader is not None and int(leader[1]) in self.databases:
            self.databases[process] = self.databases[int(leader[1])]
        elif named is not None:
            self.databases[process] = named[1].decode()
            if READER.match(title):
                self.readers.add(process)
        elif KEEPER.match(title):
            self.databases[process] = ""
            self.keepers.add(process)
        else:
            looks = self._untitled[process] = self._untitled.get(process, 0) + 1
            if looks > LOOKS:
                self.databases[process] = ""


def children(parent: int) -> list[int]:
    """OSError when there is no such process."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children", "rb") as file:
            return [int(one) for one in file.read().split()]
    except FileNotFoundError:
        os.kill(parent, 0)
    found = []  # a kernel without lists of children
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{name}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def named(parent: int, names: tuple[str, ...]) -> list[int]:
    """Descendants with one of these names."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for process in children(parent):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/comm").read_text().strip() in names:
                    found.append(process)
            found += named(process, names)
    return found


def _run(process: int) -> int | None:
    """Nanoseconds that a process of one thread has run."""
    try:
        with open(f"/proc/{process}/schedstat", "rb") as file:
            if run := int(file.read().split()[0]):
                return run
    except FileNotFoundError:  # it is gone, or the kernel counts but in ticks
        pass
    except OSError:
        return None
    return run_of_all_threads(process)


def run_of_all_threads(process: int) -> int | None:
    """The same for one of many threads, by ticks of the clock."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * (SECOND // TICKS)
    except OSError:
        return None


def lowered(process: int) -> bool:
    """Whether it has less than a full weight."""
    try:
        return os.getpriority(os.PRIO_PROCESS, process) > ASIDE
    except OSError:
        return False


def nice_seconds() -> float:
    """Processor seconds of all processes with a lowered priority, since the start of the system."""
    with open("/proc/stat", "rb") as file:
        return int(file.readline().split()[2]) / TICKS
