from ichicore.rest.catalog import Catalog, Routine
from ichicore.rest.sql import Layout
from ichicore.rest.tree import Tree

SCALAR: str
CALLED: str

def returns_scalar(routine: Routine) -> bool: ...
def choose(
    catalog: Catalog,
    schema: str,
    name: str,
    names: set[str],
    *,
    is_post: bool,
    content_type: str,
) -> Routine: ...
def result_columns(tree: Tree) -> list[str]: ...

class Call:
    routine: Routine
    def __init__(
        self,
        catalog: Catalog,
        routine: Routine,
        *,
        names: set[str],
        arguments: list[tuple[str, str, int]] | None = None,
        is_object: bool = True,
    ) -> None: ...
    def value(self) -> tuple[str, Layout]: ...
    def silent(self) -> tuple[str, Layout]: ...
    def plain(self) -> tuple[str, Layout]: ...
    def rows(self, tree: Tree, *, counted: bool = False) -> tuple[str, str, str, Layout]: ...
