from collections.abc import Mapping
from typing import Literal

_Kind = Literal["m2o", "o2m", "o2o", "m2m", "computed"]
_Name = tuple[str, str]
_ColumnPair = tuple[str, str]

class Column:
    name: str
    type: str
    nominal_type: str
    type_oid: int
    nullable: bool
    default: str | None
    max_length: int | None
    enum: tuple[str, ...]
    description: str | None
    def __init__(
        self,
        *,
        name: str,
        type: str,
        nominal_type: str,
        type_oid: int,
        nullable: bool = True,
        default: str | None = None,
        max_length: int | None = None,
        enum: tuple[str, ...] = (),
        description: str | None = None,
    ) -> None: ...

class Table:
    schema: str
    name: str
    description: str | None
    kind: str
    insertable: bool
    updatable: bool
    deletable: bool
    primary_key: tuple[str, ...]
    columns: dict[str, Column]
    has_triggers: bool
    sets_on_read: bool
    row_security: bool
    def __init__(
        self,
        *,
        schema: str,
        name: str,
        columns: dict[str, Column],
        kind: str = "r",
        description: str | None = None,
        insertable: bool = True,
        updatable: bool = True,
        deletable: bool = True,
        primary_key: tuple[str, ...] = (),
        has_triggers: bool = False,
        sets_on_read: bool = False,
        row_security: bool = False,
    ) -> None: ...

class Junction:
    table: _Name
    constraint1: str
    constraint2: str
    source_columns: tuple[_ColumnPair, ...]
    target_columns: tuple[_ColumnPair, ...]
    def __init__(
        self,
        *,
        table: _Name,
        constraint1: str,
        constraint2: str,
        source_columns: tuple[_ColumnPair, ...],
        target_columns: tuple[_ColumnPair, ...],
    ) -> None: ...

class Relationship:
    table: _Name
    foreign: _Name
    kind: _Kind
    constraint: str | None
    columns: tuple[_ColumnPair, ...]
    junction: Junction | None
    to_one: bool
    is_parent: bool
    is_self: bool
    table_is_view: bool
    foreign_is_view: bool
    function: _Name | None
    def __init__(
        self,
        *,
        table: _Name,
        foreign: _Name,
        kind: _Kind,
        constraint: str | None = None,
        columns: tuple[_ColumnPair, ...] = (),
        junction: Junction | None = None,
        to_one: bool | None = None,
        is_parent: bool = False,
        is_self: bool = False,
        table_is_view: bool = False,
        foreign_is_view: bool = False,
        function: _Name | None = None,
    ) -> None: ...

class Param:
    name: str
    type: str
    type_max_length: str
    required: bool
    variadic: bool
    def __init__(
        self,
        *,
        name: str,
        type: str,
        type_max_length: str | None = None,
        required: bool = True,
        variadic: bool = False,
    ) -> None: ...

class Routine:
    schema: str
    name: str
    description: str | None
    params: tuple[Param, ...]
    returns_set: bool
    returns_composite: bool
    returns_void: bool
    return_type: _Name
    return_is_alias: bool
    volatility: Literal["immutable", "stable", "volatile"]
    has_variadic: bool
    isolation: str | None
    settings: tuple[tuple[str, str], ...]
    rows: float
    oid: int
    def __init__(
        self,
        *,
        schema: str,
        name: str,
        params: tuple[Param, ...] = (),
        return_type: _Name = ("pg_catalog", "text"),
        returns_set: bool = False,
        returns_composite: bool = False,
        returns_void: bool = False,
        return_is_alias: bool = False,
        volatility: str = "volatile",
        has_variadic: bool = False,
        isolation: str | None = None,
        settings: tuple[tuple[str, str], ...] = (),
        rows: float = 0.0,
        description: str | None = None,
        oid: int = 0,
    ) -> None: ...

class MediaHandler:
    media_type: str
    kind: Literal["builtin", "aggregate", "function"]
    function: _Name | None
    target: _Name | None
    domain: str | None
    def __init__(
        self,
        *,
        media_type: str,
        kind: Literal["builtin", "aggregate", "function"],
        function: _Name | None = None,
        target: _Name | None = None,
        domain: str | None = None,
    ) -> None: ...

class Catalog:
    version: int
    server_version: int
    schemas: tuple[str, ...]
    tables: dict[_Name, Table]
    relationships: dict[tuple[_Name, str], tuple[Relationship, ...]]
    routines: dict[_Name, tuple[Routine, ...]]
    representations: dict[tuple[str, str], str]
    media_handlers: dict[tuple[_Name | None, str], MediaHandler]
    timezones: frozenset[str]
    schema_descriptions: dict[str, str]
    fuzzy: dict[str, object]
    def __init__(
        self,
        *,
        version: int = 1,
        server_version: int = 0,
        schemas: tuple[str, ...] = ("public",),
        tables: dict[_Name, Table] | None = None,
        relationships: dict[tuple[_Name, str], tuple[Relationship, ...]] | None = None,
        routines: dict[_Name, tuple[Routine, ...]] | None = None,
        representations: dict[tuple[str, str], str] | None = None,
        media_handlers: dict[tuple[_Name | None, str], MediaHandler] | None = None,
        timezones: frozenset[str] = ...,
        schema_descriptions: Mapping[str, str] | None = None,
    ) -> None: ...
    def table(self, schema: str, name: str) -> Table | None: ...
    def functions(self, schema: str, name: str) -> tuple[Routine, ...]: ...
    def relationships_from(
        self, schema: str, name: str, foreign_schema: str
    ) -> tuple[Relationship, ...]: ...
    def candidates(
        self, schema: str, origin: str, target: str, hint: str | None
    ) -> tuple[Relationship, ...]: ...
    def representation(self, source: str, target: str) -> str | None: ...
    def handler(self, target: _Name | None, media_type: str) -> MediaHandler | None: ...
