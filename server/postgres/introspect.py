"""Reads a database's structure into a Catalog: a handful of queries, then pure Python.

Works as any role that may connect, on PostgreSQL 13 and later. The queries are the files in sql/.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ichicore.rest.catalog import (
    Catalog,
    Column,
    MediaHandler,
    Param,
    Relationship,
    Routine,
    Table,
)
from ichicore.rest.rewrite import origins
from server.postgres import relationships
from server.postgres.relationships import Key, Name, View
from server.postgres.settings import RestSettings

Row = tuple[str | None, ...]
Fetch = Callable[[str, tuple[bytes, ...]], Awaitable[list[Row]]]

SQL = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("sql/*.sql"))}

UPDATE, INSERT, DELETE = 4, 8, 16  # bits of the `writes` column
VOLATILITY = {"i": "immutable", "s": "stable", "v": "volatile"}
ISOLATION_SETTING = "default_transaction_isolation"

# Media types that have several spellings, and the one that a handler is found by.
MEDIA_ALIASES = {
    "application/vnd.pgrst.object": "application/vnd.pgrst.object+json",
    "application/vnd.pgrst.array": "application/json",
    "application/vnd.pgrst.array+json": "application/json",
}
BUILTIN_HANDLERS = {
    "*/*": "application/json",
    "application/json": "application/json",
    "text/csv": "text/csv",
    "application/geo+json": "application/geo+json",
}

_json = msgspec.json.decode


def text_array(items: Iterable[str]) -> bytes:
    """A Postgres text[] literal."""
    quoted = ('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return ("{" + ",".join(quoted) + "}").encode()


def _numbers(literal: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in literal[1:-1].split(",")) if literal else ()


def _names(literal: str | None) -> tuple[str, ...]:
    return tuple(_json(literal)) if literal else ()


class _Relation(NamedTuple):
    """A row of relations.sql, columns already made."""

    oid: int
    name: Name
    kind: str
    writes: int
    row_security: bool
    description: str | None
    columns: dict[str, Column]


def _relations(rows: list[Row]) -> list[_Relation]:
    shared: dict[str, str] = {}  # few distinct type names, very many columns
    found = []
    for oid, schema, name, kind, writes, row_security, description, columns in rows:
        made: dict[str, Column] = {}
        for column, type_, nominal, type_oid, nullable, default, length, enum, note in (
            _json(columns) if columns else ()
        ):
            made[column] = Column(
                name=column,
                type=shared.setdefault(type_, type_),
                nominal_type=shared.setdefault(nominal, nominal),
                type_oid=type_oid,
                nullable=nullable,
                default=default,
                max_length=length,
                enum=tuple(enum) if enum else (),
                description=note,
            )
        found.append(
            _Relation(
                int(oid or 0),
                (schema or "", name or ""),
                kind or "r",
                int(writes or 0),
                row_security == "t",
                description,
                made,
            )
        )
    return found


def _keys(rows: list[Row]) -> list[Key]:
    found = []
    for row in rows:
        kind, name, oid, schema, table, numbers, columns = row[:7]
        foreign_oid, foreign_schema, foreign, foreign_numbers, foreign_columns = row[7:12]
        is_top, cascades = row[12:]
        found.append(
            Key(
                kind or "",
                name or "",
                int(oid or 0),
                (schema or "", table or ""),
                _numbers(numbers),
                _names(columns),
                int(foreign_oid or 0),
                (foreign_schema or "", foreign) if foreign is not None else None,
                _numbers(foreign_numbers),
                _names(foreign_columns),
                is_top != "t",
                cascades == "t",
            )
        )
    return found


def _views(rows: list[Row]) -> list[View]:
    found = []
    for oid, schema, name, exposed, columns, tree in rows:
        names = _json(columns or "{}", type=dict[int, str])
        found.append(
            View(
                int(oid or 0),
                (schema or "", name or ""),
                exposed == "t",
                names,
                origins((tree or "").encode()),
            )
        )
    return found


class _Code(NamedTuple):
    """Oids of the relations whose writing, and whose reading, runs code that may set something."""

    writes: set[int]
    reads: set[int]


def _code(rows: list[Row], keys: Iterable[Key]) -> _Code:
    """From rows of triggers.sql and code.sql, for a relation itself and what is behind it."""
    writing: dict[int, set[int]] = defaultdict(set)  # from a relation to those that reach it
    reading: dict[int, set[int]] = defaultdict(set)
    code = _Code(set(), set())
    for what, oid, reached in rows:
        relation = int(oid or 0)
        if what == "writes":
            code.writes.add(relation)
        elif what == "reads":
            code.reads.add(relation)
        else:
            reading[int(reached or 0)].add(relation)
            if what == "reaches":
                writing[int(reached or 0)].add(relation)
    for key in keys:
        if key.cascades:
            writing[key.oid].add(key.foreign_oid)
    return _Code(_closure(code.writes, writing), _closure(code.reads, reading))


def _closure(found: set[int], edges: dict[int, set[int]]) -> set[int]:
    pending = list(found)
    while pending:
        for relation in edges.get(pending.pop(), set()) - found:
            found.add(relation)
            pending.append(relation)
    return found


def _routine_order(routine: Routine) -> tuple[Any, ...]:
    params = tuple(
        (p.name, p.type, p.type_max_length, p.required, p.variadic) for p in routine.params
    )
    return (len(params), routine.description is not None, routine.description or "", params)


def routines(rows: list[Row], hoisted: Iterable[str]) -> dict[Name, tuple[Routine, ...]]:
    """Functions by name, overloads with the fewest parameters first, from rows of routines.sql.

    hoisted: names of the settings of a function that its whole transaction is to have.
    """
    wanted = frozenset(name.lower() for name in hoisted)
    found: dict[Name, list[Routine]] = defaultdict(list)
    for row in rows:
        oid, schema, name, description, params, type_schema, type_name = row[:7]
        is_set, is_composite, is_alias, volatility, variadic, settings, estimate = row[7:]
        parts = [setting.partition("=") for setting in (_json(settings) if settings else ())]
        given = {key.lower(): value for key, _, value in parts}
        return_type = (type_schema or "", type_name or "")
        returns_set = is_set == "t"
        routine = Routine(
            schema=schema or "",
            name=name or "",
            description=description,
            params=tuple(
                Param(
                    name=param,
                    type=type_,
                    type_max_length=longest,
                    required=required,
                    variadic=is_variadic,
                )
                for param, type_, longest, required, is_variadic in (
                    _json(params) if params else ()
                )
            ),
            return_type=return_type,
            returns_set=returns_set,
            returns_composite=is_composite == "t",
            returns_void=return_type == ("pg_catalog", "void") and not returns_set,
            return_is_alias=is_alias == "t",
            volatility=VOLATILITY.get(volatility or "v", "volatile"),
            has_variadic=variadic == "t",
            isolation=given.get(ISOLATION_SETTING),
            settings=tuple((key, value) for key, value in given.items() if key in wanted),
            rows=float(estimate or 0),
            oid=int(oid or 0),
        )
        found[routine.schema, routine.name].append(routine)
    return {name: tuple(sorted(group, key=_routine_order)) for name, group in found.items()}


def _computed(rows: list[Row]) -> list[Relationship]:
    found = []
    for schema, name, table_schema, table, foreign_schema, foreign, to_one in rows:
        source, target = (table_schema or "", table or ""), (foreign_schema or "", foreign or "")
        found.append(
            Relationship(
                table=source,
                foreign=target,
                kind="computed",
                to_one=to_one == "t",
                is_self=source == target,
                function=(schema or "", name or ""),
            )
        )
    return found


def _handlers(rows: list[Row]) -> dict[tuple[Name | None, str], MediaHandler]:
    found: dict[tuple[Name | None, str], MediaHandler] = {
        (None, media): MediaHandler(media_type=resolved, kind="builtin")
        for media, resolved in BUILTIN_HANDLERS.items()
    }
    for kind, media, domain, schema, name, target_schema, target_name in rows:
        written = media or ""
        lower = written.lower()
        key = MEDIA_ALIASES.get(lower, lower)
        target: Name | None = (target_schema or "", target_name or "")
        if target == ("pg_catalog", "anyelement"):
            target = None
        if written == "*/*":
            resolved = "application/octet-stream"
        else:
            resolved = MEDIA_ALIASES.get(lower, written)
        found[target, key] = MediaHandler(
            media_type=resolved,
            kind="aggregate" if kind == "aggregate" else "function",
            function=(schema or "", name or ""),
            target=target,
            domain=domain,
        )
    return found


def _tables(
    found: list[_Relation], resolver: relationships.Resolver, code: _Code
) -> dict[Name, Table]:
    table_keys = resolver.table_primary_keys()
    view_keys = resolver.view_primary_keys()
    return {
        rel.name: Table(
            schema=rel.name[0],
            name=rel.name[1],
            description=rel.description,
            kind=rel.kind,
            insertable=bool(rel.writes & INSERT),
            updatable=bool(rel.writes & UPDATE),
            deletable=bool(rel.writes & DELETE),
            primary_key=(view_keys if rel.kind in "vm" else table_keys).get(rel.oid, ()),
            columns=rel.columns,
            has_triggers=rel.oid in code.writes,
            sets_on_read=rel.oid in code.reads,
            row_security=rel.row_security,
        )
        for rel in found
    }


async def load(
    fetch: Fetch,
    settings: RestSettings,
    version: int,
    *,
    previous: Catalog | None = None,
    known_timezones: dict[int, frozenset[str]] | None = None,
) -> Catalog:
    """The catalog of the schemas that the settings expose.

    fetch: runs one statement with text parameters and gives rows of text (booleans 't' and 'f').
    version: the new catalog's number, higher than that of any earlier one. previous: the catalog
    that this one replaces; what cannot have changed is taken from it. known_timezones: of the
    same server, by its version; filled in, since they take longer to read than all the rest. A
    schema that does not exist is as good as an empty one.
    """
    exposed = text_array(settings.schemas)
    facts = await fetch(SQL["schemas"], (exposed,))
    server_version = next(int(text or 0) for schema, text in facts if schema is None)
    found = _relations(await fetch(SQL["relations"], (exposed,)))
    keys = _keys(await fetch(SQL["keys"], ()))
    views = _views(await fetch(SQL["views"], (exposed, text_array(settings.extra_search_path))))
    code = _code(await fetch(SQL["triggers"], ()) + await fetch(SQL["code"], ()), keys)
    functions = routines(await fetch(SQL["routines"], (exposed,)), settings.hoisted_tx_settings)
    computed = _computed(await fetch(SQL["computed"], (exposed,)))
    casts = await fetch(SQL["representations"], ())
    handlers = _handlers(await fetch(SQL["handlers"], (exposed,)))
    if previous is not None and previous.server_version == server_version:
        timezones = previous.timezones
    elif known_timezones is not None and server_version in known_timezones:
        timezones = known_timezones[server_version]
    else:
        timezones = frozenset(name or "" for (name,) in await fetch(SQL["timezones"], ()))
        if known_timezones is not None:
            known_timezones[server_version] = timezones

    resolver = relationships.Resolver(keys, views)
    tables = _tables(found, resolver, code)
    to_one = list(resolver.to_one(settings.schemas))
    detected = [
        *to_one,
        *relationships.many_to_many(to_one, tables),
        *relationships.inverses(to_one),
    ]
    return Catalog(
        version=version,
        server_version=server_version,
        schemas=settings.schemas,
        tables=tables,
        relationships=relationships.index(detected, computed, resolver.hidden(settings.schemas)),
        routines=functions,
        representations={
            (source or "", target or ""): function or "" for source, target, function in casts
        },
        media_handlers=handlers,
        timezones=timezones,
        schema_descriptions={
            schema: text for schema, text in facts if schema is not None and text is not None
        },
    )
