"""Derives every relationship between exposed relations from keys, views and functions.

A foreign key gives a many-to-one relationship (one-to-one when its columns are also a key) and its
inverse; seen through views it gives more of them, one for each way the views show its columns; two
foreign keys of a relation whose primary key holds both make a many-to-many relationship.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from ichicore.rest.catalog import Junction, Relationship, Table

Name = tuple[str, str]  # schema, name
Columns = tuple[str, ...]
KIND_ORDER = {"o2m": 0, "m2o": 1, "o2o": 2, "m2m": 3}


class Key(msgspec.Struct, frozen=True, gc=False):
    """A primary ('p'), unique ('u') or foreign ('f') key.

    numbers and columns are of its own relation, foreign_* of the referenced one (empty unless 'f').
    of_partition: a mirror of the partitioned table's key. cascades: it writes to its relation when
    the referenced one is written to.
    """

    kind: str
    name: str
    oid: int
    relation: Name
    numbers: tuple[int, ...]
    columns: Columns
    foreign_oid: int
    foreign: Name | None
    foreign_numbers: tuple[int, ...]
    foreign_columns: Columns
    of_partition: bool
    cascades: bool


class View(msgspec.Struct, frozen=True, gc=False):
    """A view: its column names by number, and (number, relation oid, column number) origins."""

    oid: int
    name: Name
    exposed: bool
    columns: dict[int, str]
    origins: list[tuple[int, int, int]]


Shown = dict[int, dict[int, list[str]]]  # relation oid -> column number -> names in the view


Sources = dict[int, dict[int, tuple[int, int]]]  # view oid -> column number -> (oid, number)


def base_columns(view: View, sources: Sources) -> Shown:
    """Which columns of which relations a view shows, followed through the views under it."""
    shown: Shown = {}
    for number, table, column in sorted(view.origins):
        name = view.columns.get(number)
        if name is None:
            continue
        passed = {view.oid}
        while True:
            shown.setdefault(table, {}).setdefault(column, []).append(name)
            if table in passed:
                break
            passed.add(table)
            below = sources.get(table, {}).get(column)
            if below is None:
                break
            table, column = below
    return shown


def _ways(shown: Mapping[int, list[str]] | None, numbers: Iterable[int]) -> list[Columns]:
    """Every choice of view columns that shows all of a key's columns; [] when some are missing."""
    if shown is None:
        return []
    choices = [shown.get(number, ()) for number in numbers]
    return list(itertools.product(*choices))


class Resolver:
    """Works out view keys and relationships; built once for a load and then thrown away."""

    def __init__(self, keys: Collection[Key], views: Collection[View]) -> None:
        self.keys = keys
        sources: Sources = {
            view.oid: {number: (table, column) for number, table, column in view.origins}
            for view in views
        }
        self._views_on: dict[int, list[tuple[View, dict[int, list[str]]]]] = defaultdict(list)
        for view in views:
            if view.exposed:
                for oid, columns in base_columns(view, sources).items():
                    self._views_on[oid].append((view, columns))

    def table_primary_keys(self) -> dict[int, Columns]:
        """oid -> primary key columns, by name."""
        return {key.oid: tuple(sorted(key.columns)) for key in self.keys if key.kind == "p"}

    def view_primary_keys(self) -> dict[int, Columns]:
        """View oid -> columns that show whole primary keys of the relations under it.

        Several keys follow each other; of a column that is shown twice the first one counts.
        """
        found: dict[int, list[tuple[Name, str, Columns]]] = defaultdict(list)
        for key in self.keys:
            if key.kind != "p":
                continue
            for view, shown in self._views_on.get(key.oid, ()):
                ways = _ways(shown, key.numbers)
                if ways:
                    found[view.oid].append((key.relation, key.name, ways[0]))
        return {
            oid: tuple(itertools.chain(*(columns for _, _, columns in sorted(parts, reverse=True))))
            for oid, parts in found.items()
        }

    def to_one(self, schemas: Collection[str]) -> Iterator[Relationship]:
        """Relationships from the referencing side: of the tables, then of the views on them.

        Those with a side outside `schemas` are left out.
        """
        unique: dict[int, set[tuple[int, ...]]] = defaultdict(set)
        for key in self.keys:
            if key.kind != "f":
                unique[key.oid].add(tuple(sorted(key.numbers)))
        for key in self.keys:
            if key.kind != "f" or key.of_partition or key.foreign is None:
                continue
            kind = "o2o" if tuple(sorted(key.numbers)) in unique[key.oid] else "m2o"
            own = [(key.relation, False, key.columns)] if key.relation[0] in schemas else []
            other = [(key.foreign, False, key.foreign_columns)] if key.foreign[0] in schemas else []
            own += [
                (view.name, True, columns)
                for view, shown in self._views_on.get(key.oid, ())
                for columns in _ways(shown, key.numbers)
            ]
            other += [
                (view.name, True, columns)
                for view, shown in self._views_on.get(key.foreign_oid, ())
                for columns in _ways(shown, key.foreign_numbers)
            ]
            for (table, is_view, columns), (
                foreign,
                foreign_is_view,
                foreign_columns,
            ) in itertools.product(own, other):
                yield Relationship(
                    table=table,
                    foreign=foreign,
                    kind=kind,  # type: ignore[arg-type]
                    constraint=key.name,
                    columns=tuple(zip(columns, foreign_columns, strict=True)),
                    is_self=table == foreign,
                    table_is_view=is_view,
                    foreign_is_view=foreign_is_view,
                )

    def hidden(self, schemas: Collection[str]) -> Iterator[tuple[Name, Name]]:
        """Pairs of relations in `schemas` that only a table outside of them joins, many to many.

        Nothing can be embedded by it, but the two are not unrelated, which matters for hints.
        """
        primary = {key.oid: set(key.columns) for key in self.keys if key.kind == "p"}
        leaving: dict[int, list[tuple[str, Name]]] = defaultdict(list)
        for key in self.keys:
            if key.kind != "f" or key.of_partition or key.foreign is None:
                continue
            if key.relation[0] in schemas or not primary.get(key.oid, set()).issuperset(
                key.columns
            ):
                continue
            if key.foreign[0] in schemas:
                leaving[key.oid].append((key.name, key.foreign))
            for view, shown in self._views_on.get(key.foreign_oid, ()):
                if _ways(shown, key.foreign_numbers):
                    leaving[key.oid].append((key.name, view.name))
        for ends in leaving.values():
            for (constraint, source), (other, target) in itertools.product(ends, ends):
                if constraint != other:
                    yield source, target


def _swap(columns: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((right, left) for left, right in columns)


def inverses(relationships: Iterable[Relationship]) -> Iterator[Relationship]:
    """The same foreign keys from the referenced side."""
    for rel in relationships:
        yield Relationship(
            table=rel.foreign,
            foreign=rel.table,
            kind="o2m" if rel.kind == "m2o" else "o2o",
            constraint=rel.constraint,
            columns=_swap(rel.columns),
            is_parent=rel.kind == "o2o",
            is_self=rel.is_self,
            table_is_view=rel.foreign_is_view,
            foreign_is_view=rel.table_is_view,
        )


def many_to_many(
    relationships: Iterable[Relationship], tables: Mapping[Name, Table]
) -> Iterator[Relationship]:
    """Through each relation whose primary key holds the columns of two foreign keys."""
    leaving: dict[Name, list[tuple[Relationship, frozenset[str]]]] = defaultdict(list)
    for rel in relationships:
        table = tables.get(rel.table)
        if rel.kind != "m2o" or table is None:
            continue
        columns = frozenset(column for column, _ in rel.columns)
        if columns.issubset(table.primary_key):
            leaving[rel.table].append((rel, columns))
    for name, parts in leaving.items():
        for (source, _), (target, _) in itertools.product(parts, parts):
            if source.constraint == target.constraint:
                continue
            yield Relationship(
                table=source.foreign,
                foreign=target.foreign,
                kind="m2m",
                junction=Junction(
                    table=name,
                    constraint1=source.constraint or "",
                    constraint2=target.constraint or "",
                    source_columns=_swap(source.columns),
                    target_columns=_swap(target.columns),
                ),
                is_self=source.foreign == target.foreign,
                table_is_view=source.foreign_is_view,
                foreign_is_view=target.foreign_is_view,
            )


def _order(rel: Relationship) -> tuple[object, ...]:
    """A total order, so that the details of an ambiguous request read the same every time."""
    if rel.kind == "computed":
        return (1, rel.function, rel.table, rel.foreign)
    start = (0, rel.table, rel.foreign, rel.is_self, KIND_ORDER[rel.kind])
    end = (rel.is_parent, rel.table_is_view, rel.foreign_is_view)
    if rel.junction is not None:
        j = rel.junction
        names = (j.table, j.constraint1, j.constraint2, j.source_columns, j.target_columns)
        return (*start, *names, *end)
    return (*start, rel.constraint, rel.columns, *end)


def index(
    detected: Iterable[Relationship],
    computed: Iterable[Relationship],
    hidden: Iterable[tuple[Name, Name]] = (),
) -> dict[tuple[Name, str], tuple[Relationship, ...]]:
    """All of them by table and schema of the far side.

    A computed relationship named like the far table takes the place of the detected ones. A pair
    of `hidden` has at least an empty entry.
    """
    groups: dict[tuple[Name, Name], list[Relationship]] = defaultdict(list)
    for rel in detected:
        groups[rel.table, rel.foreign].append(rel)
    for rel in computed:
        if rel.function is not None:
            groups[rel.table, rel.function] = [rel]
    found: dict[tuple[Name, str], list[Relationship]] = defaultdict(list)
    for table, far in hidden:
        found[table, far[0]].extend(())
    for (table, far), group in groups.items():
        found[table, far[0]].extend(group)
    return {key: tuple(sorted(group, key=_order)) for key, group in found.items()}
