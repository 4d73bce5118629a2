"""The Swagger 2.0 document of one schema: its tables, views and functions as a REST API.

The document is made in two parts, so that the large one can be kept: `body` depends on the catalog
and on what a role may see, `document` adds where the API is reached.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ichicore.rest.catalog import Catalog, Column, Param, Routine, Table
from ichicore.rest.ident import quote
from server.postgres.introspect import SQL
from server.postgres.settings import RestSettings

# Clients tell servers of this API apart by these.
API_VERSION = "14.17"
DOCS_URL = "https://postgrest.org/en/v14/references/api.html"

OBJECT_JSON = "application/vnd.pgrst.object+json"
FORMS = ["application/json", f"{OBJECT_JSON};nulls=stripped", OBJECT_JSON]
PRIVILEGES_SQL = SQL["privileges"]

TYPES: dict[str, str | None] = {
    "character varying": "string",
    "character": "string",
    "text": "string",
    "boolean": "boolean",
    "smallint": "integer",
    "integer": "integer",
    "bigint": "integer",
    "numeric": "number",
    "real": "number",
    "double precision": "number",
    "json": None,
    "jsonb": None,
}
FORMATS = {"smallint": "int32", "integer": "int32", "bigint": "int64"}
PREFERENCES = {
    "preferParams": [],
    "preferReturn": ["return=representation", "return=minimal", "return=none"],
    "preferCount": ["count=none"],
    "preferPost": [
        "return=representation",
        "return=minimal",
        "return=none",
        "resolution=ignore-duplicates",
        "resolution=merge-duplicates",
    ],
}
# parameter -> (name, description, where, default)
COMMON = {
    "select": ("select", "Filtering Columns", "query", None),
    "on_conflict": ("on_conflict", "On Conflict", "query", None),
    "order": ("order", "Ordering", "query", None),
    "range": ("Range", "Limiting and Pagination", "header", None),
    "rangeUnit": ("Range-Unit", "Limiting and Pagination", "header", "items"),
    "offset": ("offset", "Limiting and Pagination", "query", None),
    "limit": ("limit", "Limiting and Pagination", "query", None),
}
READING = ("select", "order", "range", "rangeUnit", "offset", "limit", "preferCount")

Json = dict[str, Any]


class Privileges(msgspec.Struct, frozen=True):
    """What a role may use of one schema: names of tables, oids of functions (PRIVILEGES_SQL)."""

    tables: frozenset[str]
    functions: frozenset[int]


read_privileges = msgspec.json.Decoder(Privileges).decode


def _type(sql_type: str) -> str | None:
    """Swagger type of a Postgres type, None for JSON, which may be anything."""
    if sql_type in TYPES:
        return TYPES[sql_type]
    return "array" if sql_type.endswith("[]") else "string"


def _format(sql_type: str) -> str:
    return FORMATS.get(sql_type, sql_type)


def _given(**members: Any) -> Json:
    """A JSON object of the members that are not None; a trailing underscore is not in the name."""
    return {name.rstrip("_"): value for name, value in members.items() if value is not None}


def _items(sql_type: str) -> Json | None:
    if _type(sql_type) != "array":
        return None
    return _given(type=_type(sql_type[:-2]))


def _default(column: Column) -> Any:
    """The default as a JSON value; None when it is not a plain one."""
    text = column.default
    if text is None:
        return None
    if _type(column.type) == "string":
        cast = f"::{column.type}"
        if text.endswith(cast):
            text = text.removesuffix(cast).strip("'")
        text = f'"{text}"'
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def _foreign_keys(catalog: Catalog, table: Table) -> dict[str, tuple[str, str]]:
    """Column -> (table, column) it references; tables are told rather than views on them."""
    found: dict[str, tuple[str, str]] = {}
    related = catalog.relationships_from(table.schema, table.name, table.schema)
    for rel in sorted(related, key=lambda rel: rel.foreign_is_view):
        if len(rel.columns) == 1 and (
            rel.kind == "m2o" or (rel.kind == "o2o" and not rel.is_parent)
        ):
            column, foreign_column = rel.columns[0]
            found.setdefault(column, (rel.foreign[1], foreign_column))
    return found


def _property(table: Table, column: Column, references: tuple[str, str] | None) -> Json:
    notes = []
    if column.name in table.primary_key:
        notes.append("This is a Primary Key.<pk/>")
    if references is not None:
        foreign, name = references
        notes.append(
            f"This is a Foreign Key to `{foreign}.{name}`.<fk table='{foreign}' column='{name}'/>"
        )
    description = column.description
    if notes:
        start = "" if description is None else f"{description}\n\n"
        description = start + "\n".join(["Note:", *notes])
    return _given(
        default=_default(column),
        description=description,
        enum=list(column.enum) or None,
        format=_format(column.type),
        items=_items(column.type),
        maxLength=column.max_length,
        type=_type(column.type),
    )


def _definition(catalog: Catalog, table: Table) -> Json:
    foreign_keys = _foreign_keys(catalog, table)
    columns = table.columns.values()
    return _given(
        description=table.description,
        properties={
            column.name: _property(table, column, foreign_keys.get(column.name))
            for column in columns
        }
        or None,
        required=[column.name for column in columns if not column.nullable] or None,
        type="object",
    )


def _parameters(tables: Iterable[Table]) -> Json:
    found: Json = {}
    for name, words in PREFERENCES.items():
        found[name] = _given(
            name="Prefer",
            description="Preference",
            required=False,
            in_="header",
            type="string",
            enum=words or None,
        )
    for name, (real_name, description, place, default) in COMMON.items():
        found[name] = _given(
            name=real_name,
            description=description,
            required=False,
            in_=place,
            type="string",
            default=default,
        )
    for table in tables:
        found[f"body.{table.name}"] = {
            "name": table.name,
            "description": table.name,
            "required": False,
            "in": "body",
            "schema": {"$ref": f"#/definitions/{table.name}"},
        }
        for column in table.columns.values():
            found[f"rowFilter.{table.name}.{column.name}"] = _given(
                name=column.name,
                description=column.description,
                required=False,
                in_="query",
                type="string",
            )
    return found


def _summary(comment: str | None) -> Json:
    """A comment's first line as summary, the rest as description."""
    if comment is None:
        return {}
    summary, _, rest = comment.partition("\n")
    return _given(summary=summary, description=rest.lstrip("\n") or None)


def _refs(*names: str) -> list[Json]:
    return [{"$ref": f"#/parameters/{name}"} for name in names]


def _table_path(table: Table) -> Json:
    name = table.name
    about = {"tags": [name], **_summary(table.description)}
    filters = [f"rowFilter.{name}.{column}" for column in table.columns]
    rows = {"type": "array", "items": {"$ref": f"#/definitions/{name}"}}
    methods: Json = {
        "get": {
            **about,
            "parameters": _refs(*filters, *READING),
            "responses": {
                "200": {"description": "OK", "schema": rows},
                "206": {"description": "Partial Content"},
            },
        }
    }
    if table.insertable or table.updatable or table.deletable:
        no_content = {"204": {"description": "No Content"}}
        methods["post"] = {
            **about,
            "parameters": _refs(f"body.{name}", "select", "preferPost"),
            "responses": {"201": {"description": "Created"}},
        }
        methods["patch"] = {
            **about,
            "parameters": _refs(*filters, f"body.{name}", "preferReturn"),
            "responses": no_content,
        }
        methods["delete"] = {
            **about,
            "parameters": _refs(*filters, "preferReturn"),
            "responses": no_content,
        }
    return methods


def _near(params: Iterable[Param], prefixes: tuple[str, ...]) -> list[Param]:
    """The parameters, their types named as the search path of a request needs them."""
    found = []
    for param in params:
        prefix = next((prefix for prefix in prefixes if param.type.startswith(prefix)), "")
        found.append(
            Param(
                name=param.name,
                type=param.type.removeprefix(prefix),
                required=param.required,
                variadic=param.variadic,
            )
        )
    return found


def _query_argument(param: Param) -> Json:
    argument: Json = {"name": param.name, "required": param.required, "in": "query"}
    if param.variadic:
        element = param.type.removesuffix("[]")
        argument["type"] = _type(param.type) or "string"
        argument["collectionFormat"] = "multi"
        argument["items"] = _given(type=_type(element), format=_format(element))
        return argument
    # an array is written as one {...} text
    known = _type(param.type)
    argument["type"] = "string" if known is None or known == "array" else known
    argument["format"] = _format(param.type)
    return argument


def _function_path(routine: Routine, params: list[Param]) -> Json:
    about = {
        "tags": [f"(rpc) {routine.name}"],
        **_summary(routine.description),
        "produces": FORMS,
        "responses": {"200": {"description": "OK"}},
    }
    arguments = _given(
        description=routine.description,
        properties={
            param.name: _given(
                format=_format(param.type), items=_items(param.type), type=_type(param.type)
            )
            for param in params
        }
        or None,
        required=[param.name for param in params if param.required] or None,
        type="object",
    )
    body = {"name": "args", "required": True, "in": "body", "schema": arguments}
    methods: Json = {"post": {**about, "parameters": [body, *_refs("preferParams")]}}
    if routine.volatility != "volatile":
        query = [_query_argument(param) for param in params]
        methods["get"] = {**about, **({"parameters": query} if query else {})}
    return methods


def body(
    catalog: Catalog, settings: RestSettings, schema: str, privileges: Privileges | None
) -> bytes:
    """All of the document but its place, as JSON. privileges None: everything is shown."""
    tables = [
        table
        for (place, name), table in catalog.tables.items()
        if place == schema and (privileges is None or name in privileges.tables)
    ]
    paths: Json = {
        "/": {
            "get": {
                "tags": ["Introspection"],
                "summary": "OpenAPI description (this document)",
                "produces": ["application/openapi+json", "application/json"],
                "responses": {"200": {"description": "OK"}},
            }
        }
    }
    paths.update((f"/{table.name}", _table_path(table)) for table in tables)
    path = (schema, *settings.extra_search_path)
    prefixes = tuple(f"{written}." for name in path for written in (name, quote(name)))
    for (place, name), overloads in catalog.routines.items():
        for routine in overloads if place == schema else ():
            if privileges is None or routine.oid in privileges.functions:
                params = _near(routine.params, () if privileges is None else prefixes)
                paths[f"/rpc/{name}"] = _function_path(routine, params)
    comment = catalog.schema_descriptions.get(schema)
    title, _, description = (comment or "").partition("\n")
    found: Json = {
        "info": {
            "title": "PostgREST API" if comment is None else title,
            "description": "This is a dynamic API generated by PostgREST"
            if comment is None
            else description.lstrip("\n"),
            "version": API_VERSION,
        },
        "externalDocs": {"description": "PostgREST Documentation", "url": DOCS_URL},
        "consumes": [*FORMS, "text/csv"],
        "produces": [*FORMS, "text/csv"],
        "paths": paths,
        "parameters": _parameters(tables),
    }
    if tables:
        found["definitions"] = {table.name: _definition(catalog, table) for table in tables}
    if settings.openapi_security_active:
        found["security"] = [{"JWT": []}]
        found["securityDefinitions"] = {
            "JWT": {
                "description": 'Add the token prepending "Bearer " (without quotes) to it',
                "in": "header",
                "name": "Authorization",
                "type": "apiKey",
            }
        }
    return msgspec.json.encode(found)


def _place(settings: RestSettings, base_url: str) -> Json:
    """Scheme, host with port and path under which clients reach the API."""
    proxy = settings.openapi_server_proxy_uri
    try:
        parts = urlsplit(proxy or base_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit("http://localhost"), None
    scheme = "http" if parts.scheme == "http" else "https"
    host = parts.hostname or "localhost"
    path = parts.path if proxy else settings.base_path
    if ":" in host:
        host = f"[{host}]"
    port = port or (80 if scheme == "http" else 443)
    return {"schemes": [scheme], "host": f"{host}:{port}", "basePath": path or "/"}


def document(body: bytes, settings: RestSettings, base_url: str) -> bytes:
    """The whole document. base_url: scheme and host as the client sees them; a proxy setting
    goes before."""
    head = {"swagger": "2.0", **_place(settings, base_url)}
    return msgspec.json.encode(head)[:-1] + b"," + body[1:]
