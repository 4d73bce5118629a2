"""How every request of one shape is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ichicore.http.prefer import Preferences
from ichicore.pg.executor import Statement
from ichicore.rest.sql import Layout
from server.postgres.negotiate import Chosen

Action = Literal["read", "insert", "update", "put", "delete", "call"]

# What a main statement's result is.
ROWS = "rows"  # a JSON array of rows
OBJECT = "object"  # one row, whose brackets go
FIRST = "first"  # the first row, or null without any
BODY = "body"  # one row: body, number of rows, base type of the body, total
VALUE = "value"  # one row with one column: the body
COUNT = "count"  # one row with the number of rows; no body
KEYS = "keys"  # primary keys of inserted rows
AFFECTED = "affected"  # nothing but the command tag
EXPLAIN = "explain"  # lines of a plan

BYTEA = "17"  # pg_type oid

PROVEN_RUNS = 20
QUICK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Payload:
    """What planning needs of a request's body. names: its columns or arguments, sorted.
    is_object: one object, not an array. arguments: (name, value, slot) when they came as text."""

    names: tuple[str, ...] = ()
    is_object: bool = True
    arguments: tuple[tuple[str, str, int], ...] | None = None


@dataclass(slots=True)
class Plan:
    """How to answer every request of one shape.

    main, layout: the statement and its parameters. count, estimate: the same for the number of
    rows without limit, and the planner's guess at it. needs_gucs: something may set response.*.
    checks: "singular", "max-affected" or "put" conditions on the number of rows. settled: they hold
    whenever there is no error, so that nothing has to be undone. rollback: nothing is to be kept.
    isolation: level of the transaction when not the default. quick: expected to be short. settings:
    of the function, for the transaction. path: percent-encoded, for Location.
    express, plain, openings, tail, constant, cap: for the short way: whether it may go there,
    whether its answer follows from the page and the rows alone, the opening statement by role, the
    statements that end it, the answer when it is always the same, most rows of any answer.
    """

    action: Action
    schema: str
    target: str
    main: Statement
    layout: Layout
    result: str
    media: Chosen
    preferences: Preferences
    applied: str | None = None
    read_only: bool = False
    count: tuple[Statement, Layout] | None = None
    estimate: tuple[Statement, Layout] | None = None
    counted: bool = False
    one_row: bool = False
    void: bool = False
    head: bool = False
    limit_slot: int = -1
    offset_slot: int = -1
    ranged: bool = False
    needs_gucs: bool = False
    inserted: bool = False
    keys: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    settled: bool = False
    rollback: bool = False
    isolation: str | None = None
    quick: bool = True
    settings: tuple[tuple[str, str], ...] = ()
    profile: str | None = None
    cacheable: bool = True
    express: bool = False
    plain: bool = False
    path: str = ""
    openings: dict[str, object] = field(default_factory=dict)
    tail: tuple[Statement, ...] = ()
    constant: tuple[int, list[tuple[str, str]]] | None = None
    cap: int | None = None
    quick_runs: int = 0

    @property
    def proven_quick(self) -> bool:
        """Whether it was expected to be slow, but has been quick often enough to share a
        connection with other requests."""
        return self.quick_runs >= PROVEN_RUNS

    def took(self, seconds: float) -> None:
        """Learn from one run; a slow one costs more than a quick one earns."""
        if seconds < QUICK_SECONDS:
            self.quick_runs = min(self.quick_runs + 1, 2 * PROVEN_RUNS)
        else:
            self.quick_runs = -PROVEN_RUNS

    def is_single(self) -> bool:
        """Whether its statements can run one after the other as one implicit transaction."""
        return (
            self.result != EXPLAIN
            and self.isolation is None
            and (self.read_only or self.settled or not self.checks)
            and not self.rollback
        )

    def is_plain(self) -> bool:
        """Whether the answer to one that is single follows from the page and the rows alone, with
        no preference to mind."""
        reads = self.action == "read" and self.result == ROWS and self.applied is None
        changes = self.action in ("insert", "update", "delete")
        writes = changes and self.result in (AFFECTED, ROWS)
        return (
            (reads or writes)
            and self.count is None
            and self.estimate is None
            and not (
                self.head
                or self.checks
                or self.keys
                or self.counted
                or self.needs_gucs
                or self.inserted
            )
        )
