"""`ichibase types`: the tables, views, functions and enums of a project as TypeScript types.

The shape is the one that generic PostgREST clients take: `PostgrestClient<Database>`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.cli.client import AdminClient, CommandError
from server.cli.output import note, print_json

NUMBERS = {"int2", "int4", "int8", "float4", "float8", "numeric", "oid"}
HEAD = """\
// Made by `ichibase types`; make it anew after a migration.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];
"""
CATALOG = """
select json_build_object(
  'types', (select json_object_agg(t.oid, json_build_object('name', t.typname, 'kind', t.typtype,
      'schema', n.nspname, 'element', case when t.typcategory = 'A' then t.typelem end,
      'base', nullif(t.typbasetype, 0), 'relation', nullif(t.typrelid, 0),
      'labels', (select json_agg(e.enumlabel order by e.enumsortorder) from pg_enum e
        where e.enumtypid = t.oid)))
    from pg_type t join pg_namespace n on n.oid = t.typnamespace),
  'relations', (select coalesce(json_agg(json_build_object('oid', c.oid, 'schema', n.nspname,
      'name', c.relname, 'kind', c.relkind, 'updatable', pg_relation_is_updatable(c.oid, true),
      'columns', (select coalesce(json_agg(json_build_object('name', a.attname,
          'type', a.atttypid, 'required', a.attnotnull, 'filled', a.atthasdef
            or a.attidentity <> '', 'fixed', a.attgenerated <> '' or a.attidentity = 'a')
          order by a.attname), '[]') from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
      'keys', (select coalesce(json_agg(json_build_object('name', k.conname,
          'relation', f.relname,
          'columns', (select json_agg(a.attname order by p.n) from unnest(k.conkey)
            with ordinality p (num, n) join pg_attribute a
            on a.attrelid = k.conrelid and a.attnum = p.num),
          'referenced', (select json_agg(a.attname order by p.n) from unnest(k.confkey)
            with ordinality p (num, n) join pg_attribute a
            on a.attrelid = k.confrelid and a.attnum = p.num),
          'single', exists (select from pg_index i where i.indrelid = k.conrelid and i.indisunique
            and i.indpred is null and i.indkey::int2[] @> k.conkey
            and k.conkey @> i.indkey::int2[]))
          order by k.conname), '[]')
        from pg_constraint k join pg_class f on f.oid = k.confrelid
        where k.conrelid = c.oid and k.contype = 'f' and k.conparentid = 0))
      order by c.relname), '[]')
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = any($schemas$) and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and not c.relispartition),
  'functions', (select coalesce(json_agg(json_build_object('schema', n.nspname,
      'name', p.proname, 'names', coalesce(p.proargnames, '{}'), 'modes', p.proargmodes,
      'inputs', string_to_array(p.proargtypes::text, ' ')::int8[], 'all', p.proallargtypes::int8[],
      'defaults', p.pronargdefaults, 'result', p.prorettype, 'set', p.proretset)
      order by p.proname, p.oid), '[]')
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = any($schemas$) and p.prokind = 'f'
      and p.prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)
      and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e'))
)::text as catalog
"""


def register(add: Any) -> None:
    """Adds the command. add: makes one in the program's parser."""
    made = add("types", types, "Print a project's tables, functions and enums as TypeScript.")
    made.add_argument("project")
    made.add_argument("--schema", action="append", metavar="NAME",
                      help="of this schema; may be repeated (those that are exposed)")  # fmt: skip
    made.add_argument("-o", "--output", metavar="FILE", help="write the types there")


def types(options: argparse.Namespace) -> int:
    from server.cli.main import client

    admin = client(options)
    schemas = options.schema or _exposed(admin, options.project)
    text = typescript(_catalog(admin, options.project, schemas), schemas)
    if options.output is None:
        if options.json:
            print_json({"schemas": schemas, "typescript": text})
        else:
            print(text, end="")
        return 0
    try:
        Path(options.output).write_text(text)
    except OSError as error:
        raise CommandError(f"cannot write {options.output}: {error.strerror}") from None
    if options.json:
        print_json({"schemas": schemas, "file": options.output})
    else:
        note(f"wrote {options.output}, of {', '.join(schemas)}")
    return 0


def _exposed(admin: AdminClient, project: str) -> list[str]:
    path = f"/admin/v1/projects/{quote(project, safe='')}/settings/postgres"
    found: list[str] = admin.call("GET", path)["schemas"]
    return found


def _catalog(admin: AdminClient, project: str, schemas: list[str]) -> dict[str, Any]:
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in schemas)
    sql = CATALOG.replace("$schemas$", f"array[{quoted}]::name[]")
    path = f"/admin/v1/projects/{quote(project, safe='')}/sql"
    rows = admin.call("POST", path, {"sql": sql})["results"][-1]["rows"]
    found: dict[str, Any] = json.loads(rows[0][0])
    return found


def typescript(catalog: dict[str, Any], schemas: list[str]) -> str:
    """The module. catalog: what CATALOG gives."""
    made = _Types(catalog, schemas)
    body = "".join(f"  {key(name)}: {{\n{made.schema(name)}  }};\n" for name in schemas)
    return f"{HEAD}\nexport type Database = {{\n{body}}};\n"


class _Types:
    def __init__(self, catalog: dict[str, Any], schemas: list[str]) -> None:
        self.types = catalog["types"]
        self.relations = catalog["relations"]
        self.functions = catalog["functions"]
        self.schemas = schemas
        self.rows = {one["oid"]: one for one in self.relations}

    def schema(self, name: str) -> str:
        tables = [r for r in self.relations if r["schema"] == name]
        parts = {
            "Tables": "".join(self.relation(r) for r in tables if r["kind"] in "rpf"),
            "Views": "".join(self.relation(r) for r in tables if r["kind"] in "vm"),
            "Functions": self.calls(name),
            "Enums": "".join(
                f"      {key(t['name'])}: {' | '.join(map(json.dumps, t['labels']))};\n"
                for t in sorted(self.types.values(), key=lambda t: str(t["name"]))
                if t["schema"] == name and t["labels"]
            ),
            "CompositeTypes": "",
        }
        empty = "{ [_ in never]: never }"
        return "".join(
            f"    {part}: {{\n{text}    }};\n" if text else f"    {part}: {empty};\n"
            for part, text in parts.items()
        )

    def value(self, oid: object) -> str:
        """The type of a column's JSON."""
        one = self.types[str(oid)]
        if one["element"] is not None:
            inner = self.value(one["element"])
            return f"({inner})[]" if " " in inner else f"{inner}[]"
        if one["base"] is not None:
            return self.value(one["base"])
        if one["kind"] == "e" and one["schema"] in self.schemas:
            return f"Database[{json.dumps(one['schema'])}]['Enums'][{json.dumps(one['name'])}]"
        if one["kind"] == "e":
            return " | ".join(map(json.dumps, one["labels"]))
        if one["relation"] in self.rows:
            return self.row(self.rows[one["relation"]])
        if one["name"] in NUMBERS:
            return "number"
        simple = {"bool": "boolean", "json": "Json", "jsonb": "Json", "void": "undefined"}
        return simple.get(one["name"], "unknown" if one["kind"] in "cp" else "string")

    @staticmethod
    def row(relation: dict[str, Any]) -> str:
        part = "Views" if relation["kind"] in "vm" else "Tables"
        schema, name = json.dumps(relation["schema"]), json.dumps(relation["name"])
        return f"Database[{schema}]['{part}'][{name}]['Row']"

    def relation(self, one: dict[str, Any]) -> str:
        shapes: dict[str, list[str]] = {"Row": [], "Insert": [], "Update": []}
        for column in one["columns"]:
            name, kind = key(column["name"]), self.value(column["type"])
            if not column["required"]:
                kind += " | null"
            given = "never" if column["fixed"] else kind
            free = column["filled"] or not column["required"] or column["fixed"]
            shapes["Row"].append(f"{name}: {kind}")
            shapes["Insert"].append(f"{name}{'?' if free else ''}: {given}")
            shapes["Update"].append(f"{name}?: {given}")
        if not one["updatable"] and one["kind"] in "vm":
            del shapes["Insert"], shapes["Update"]
        text = f"      {key(one['name'])}: {{\n"
        for shape, lines in shapes.items():
            inner = "".join(f"          {line};\n" for line in lines)
            text += f"        {shape}: {{\n{inner}        }};\n"
        links = "".join(
            f"          {{ foreignKeyName: {json.dumps(k['name'])}; "
            f"columns: {json.dumps(k['columns'])}; isOneToOne: {json.dumps(k['single'])}; "
            f"referencedRelation: {json.dumps(k['relation'])}; "
            f"referencedColumns: {json.dumps(k['referenced'])} }},\n"
            for k in one["keys"]
        )
        text += (
            f"        Relationships: [\n{links}        ];\n"
            if links
            else ("        Relationships: [];\n")
        )
        return text + "      };\n"

    def calls(self, schema: str) -> str:
        """Functions whose arguments all have names, or that take none; overloads as a union."""
        found: dict[str, list[str]] = {}
        for one in self.functions:
            inputs = one["inputs"] or []
            modes = one["modes"] or ["i"] * len(inputs)
            named = dict(enumerate(one["names"]))
            taken = [named.get(n, "") for n, mode in enumerate(modes) if mode in "ibv"]
            if one["schema"] != schema or len(taken) != len(inputs) or "" in taken:
                continue
            least = len(inputs) - one["defaults"]
            args = "; ".join(
                f"{key(name)}{'' if n < least else '?'}: {self.value(oid)}"
                for n, (name, oid) in enumerate(zip(taken, inputs, strict=True))
            )
            given = [(named[n], one["all"][n]) for n, mode in enumerate(modes) if mode in "obt"]
            result = self.value(one["result"])
            if len(given) > 1 or "t" in modes:
                result = "{ " + "; ".join(f"{key(a)}: {self.value(t)}" for a, t in given) + " }"
            if one["set"]:
                result = f"({result})[]" if " | " in result else f"{result}[]"
            args = f"{{ {args} }}" if args else "Record<PropertyKey, never>"
            found.setdefault(one["name"], []).append(f"{{ Args: {args}; Returns: {result} }}")
        return "".join(
            f"      {key(name)}: {' | '.join(shapes)};\n" for name, shapes in found.items()
        )


def key(name: str) -> str:
    """A property's name, in quotes where it needs them."""
    return name if name.isascii() and name.isidentifier() else json.dumps(name, ensure_ascii=False)
