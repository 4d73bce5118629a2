class JsonStep:
    as_text: bool
    key: str
    is_index: bool
    def __init__(self, as_text: bool, key: str, is_index: bool) -> None: ...

class Field:
    name: str
    path: tuple[JsonStep, ...]
    def __init__(self, name: str, path: tuple[JsonStep, ...] = ()) -> None: ...

class Filter:
    field: Field
    negated: bool
    op: str
    quantifier: str | None
    config: str | None
    value: str
    slot: int
    def __init__(
        self,
        field: Field,
        op: str,
        value: str,
        *,
        negated: bool = False,
        quantifier: str | None = None,
        config: str | None = None,
        slot: int = -1,
    ) -> None: ...

class Logic:
    negated: bool
    op: str
    children: tuple[Filter | Logic, ...]
    def __init__(
        self, op: str, children: tuple[Filter | Logic, ...], negated: bool = False
    ) -> None: ...

class SelectField:
    field: Field | None
    aggregate: str | None
    aggregate_cast: str | None
    cast: str | None
    alias: str | None
    def __init__(
        self,
        field: Field | None,
        *,
        alias: str | None = None,
        cast: str | None = None,
        aggregate: str | None = None,
        aggregate_cast: str | None = None,
    ) -> None: ...

class SelectRelation:
    name: str
    alias: str | None
    hint: str | None
    join: str | None
    spread: bool
    children: tuple[SelectField | SelectRelation, ...]
    def __init__(
        self,
        name: str,
        children: tuple[SelectField | SelectRelation, ...],
        *,
        alias: str | None = None,
        hint: str | None = None,
        join: str | None = None,
        spread: bool = False,
    ) -> None: ...

class OrderTerm:
    field: Field
    relation: str | None
    direction: str | None
    nulls: str | None
    def __init__(
        self,
        field: Field,
        direction: str | None = None,
        nulls: str | None = None,
        relation: str | None = None,
    ) -> None: ...

Path = tuple[str, ...]

class Query:
    select: tuple[SelectField | SelectRelation, ...]
    filters: list[tuple[Path, Filter]]
    logic: list[tuple[Path, Logic]]
    order: list[tuple[Path, tuple[OrderTerm, ...]]]
    limits: dict[Path, tuple[int | None, int | None]]
    limit_slots: dict[Path, tuple[int, int]]
    columns: tuple[str, ...] | None
    on_conflict: tuple[str, ...] | None
    params: list[tuple[str, str]]
    param_slots: list[int]
    values: list[str]
    filter_keys: set[str]
    canonical: str
    def __init__(
        self,
        *,
        select: tuple[SelectField | SelectRelation, ...] = (),
        filters: list[tuple[Path, Filter]] | None = None,
        logic: list[tuple[Path, Logic]] | None = None,
        order: list[tuple[Path, tuple[OrderTerm, ...]]] | None = None,
        limits: dict[Path, tuple[int | None, int | None]] | None = None,
        limit_slots: dict[Path, tuple[int, int]] | None = None,
        columns: tuple[str, ...] | None = None,
        on_conflict: tuple[str, ...] | None = None,
        params: list[tuple[str, str]] | None = None,
        param_slots: list[int] | None = None,
        values: list[str] | None = None,
        filter_keys: set[str] | None = None,
        canonical: str = "",
    ) -> None: ...
