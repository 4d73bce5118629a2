from ichicore.rest.catalog import MediaHandler

def body_of(
    kind: str, handler: MediaHandler | None, single: bool, scalar: str | None, strip: bool
) -> str: ...
def wrap(prefix: str | None, rows: str, body: str, total: str, one_row: bool) -> str: ...
def explain(
    prefix: str | None,
    rows: str,
    body: str,
    options: tuple[str, ...],
    one_row: bool,
    write: bool = False,
    counted: bool = False,
) -> str: ...
def with_query(prefix: str | None, sql: str) -> str: ...
def count_rows(prefix: str | None, sql: str) -> str: ...
