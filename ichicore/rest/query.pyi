from ichicore.rest.ast import Query

def parse(
    raw: str | bytes,
    *,
    rpc: bool = False,
    mutation: bool = False,
    concatenate_order: bool = False,
) -> Query: ...
