"""Whether a statement runs code of the database's own, which may set something for the answer or
the session: functions behind columns, casts, filters, policies, triggers and defaults."""

from __future__ import annotations

from collections.abc import Iterable

from ichicore.rest.ast import Filter, Logic
from ichicore.rest.catalog import Catalog, Table
from ichicore.rest.mutate import Mutation
from ichicore.rest.tree import Node, Tree

TABLES = ("r", "p")  # pg_class.relkind of what has no code but policies when read
CASTS = frozenset((
    "text", "varchar", "char", "bpchar", "int", "int2", "int4", "int8", "integer", "smallint",
    "bigint", "real", "float", "float4", "float8", "numeric", "decimal", "bool", "boolean",
    "date", "time", "timetz", "timestamp", "timestamptz", "interval", "json", "jsonb", "uuid",
    "bytea",
))  # fmt: skip


def reading(catalog: Catalog, table: Table, tree: Tree) -> bool:
    """Whether reading a table and its embeds does."""
    return not _is_plain(catalog, table, tree.root)


def writing(catalog: Catalog, table: Table, tree: Tree, mutation: Mutation, *, full: bool) -> bool:
    """Whether a change of a table does. full: and the answer shows the changed rows."""
    return (
        table.has_triggers
        or table.sets_on_read
        or any(field.transform is not None for field in mutation.fields)
        or not _own(catalog, table, mutation.conditions)
        or (full and not _is_plain(catalog, table, tree.root))
    )


def _is_plain(catalog: Catalog, table: Table | None, node: Node) -> bool:
    if table is None or table.kind not in TABLES or table.sets_on_read:
        return False
    columns = table.columns
    for item in node.items:
        if item.transform is not None or (item.name != "*" and item.name not in columns):
            return False
        if not {item.cast, item.aggregate_cast} <= CASTS | {None}:
            return False
    if any(term.qual is None and term.name not in columns for term in node.order):
        return False
    embeds = {child.given or child.label for child in node.children}
    if not _own(catalog, table, node.filters, embeds):
        return False
    return all(_joins_plainly(catalog, child) for child in node.children)


def _joins_plainly(catalog: Catalog, child: Node) -> bool:
    relationship = child.relationship
    if relationship is None or relationship.kind == "computed":
        return False
    if relationship.junction is not None:
        junction = catalog.table(*relationship.junction.table)
        if junction is None or junction.kind not in TABLES or junction.sets_on_read:
            return False
    return _is_plain(catalog, child.table, child)


def _own(
    catalog: Catalog,
    table: Table,
    conditions: Iterable[Filter | Logic],
    embeds: Iterable[str] = (),
) -> bool:
    """Whether conditions ask only for columns, whose values are compared as they are."""
    for condition in conditions:
        if isinstance(condition, Logic):
            if not _own(catalog, table, condition.children, embeds):
                return False
            continue
        name = condition.field.name
        column = table.columns.get(name)
        if column is None:
            if name not in embeds:
                return False
        elif catalog.representation("text", column.nominal_type) is not None:
            return False
    return True
