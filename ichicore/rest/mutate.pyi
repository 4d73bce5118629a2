from collections.abc import Iterable

from ichicore.rest.ast import Filter, Logic
from ichicore.rest.catalog import Catalog, Table
from ichicore.rest.sql import Layout
from ichicore.rest.tree import Tree

CHANGED: str

class PayloadField:
    name: str
    type: str
    transform: str | None
    default: str | None
    def __init__(
        self, name: str, type: str, transform: str | None = None, default: str | None = None
    ) -> None: ...

def payload_fields(catalog: Catalog, table: Table, names: Iterable[str]) -> list[PayloadField]: ...
def key_columns(table: Table) -> tuple[str, ...]: ...
def returning_columns(tree: Tree) -> list[str]: ...

class Mutation:
    table: Table
    kind: str
    fields: list[PayloadField]
    conditions: list[Filter | Logic]
    conflict: list[str] | None
    counted: bool
    def __init__(
        self,
        catalog: Catalog,
        table: Table,
        kind: str,
        *,
        fields: Iterable[PayloadField] = (),
        conditions: Iterable[Filter | Logic] = (),
        is_object: bool = False,
        defaults: bool = False,
        conflict: Iterable[str] | None = None,
        merge: bool = False,
        counted: bool = False,
    ) -> None: ...
    def silent(self) -> tuple[str, Layout]: ...
    def returning_one(self) -> tuple[str, Layout]: ...
    def keys(self) -> tuple[str, Layout]: ...
    def rows(self, tree: Tree) -> tuple[str | None, str, Layout]: ...
