from ichicore.rest.ast import Filter, Logic, Query
from ichicore.rest.catalog import Catalog, Relationship, Table

class Item:
    name: str
    alias: str | None
    cast: str | None
    aggregate: str | None
    aggregate_cast: str | None
    transform: str | None

class Term:
    name: str
    qual: str | None

class Node:
    target: tuple[str, str]
    table: Table | None
    alias: str | None
    qual: str
    label: str
    given: str | None
    join: str | None
    spread: int
    depth: int
    to_one: bool
    relationship: Relationship | None
    items: list[Item]
    children: list[Node]
    limited: bool
    limit_slot: int
    offset_slot: int
    filters: list[Filter | Logic]
    order_terms: list[object]
    order: list[Term]
    def grouped(self) -> bool: ...
    def plain_star(self) -> bool: ...

class Tree:
    root: Node
    catalog: Catalog
    schema: str
    max_rows: int | None
    jsonb: bool
    def use_source(self, sql: str, alias: str) -> None: ...

def read_tree(
    query: Query,
    catalog: Catalog,
    schema: str,
    name: str,
    *,
    filter_root: bool = True,
    ranges: bool = True,
    aggregates: bool = False,
    max_rows: int | None = None,
    source: tuple[str, str] | None = None,
    ranged: bool = False,
) -> Tree: ...
