"""Conditions -> SQL. Values are parameters without a type, so Postgres reads them as the column's."""
cimport cython

from ichicore.rest.ast cimport Filter, JsonStep, Logic
from ichicore.rest.catalog cimport Catalog, Column, Table
from ichicore.rest.ident cimport quote
from ichicore.rest.sql cimport Writer
from ichicore.rest.tree cimport Node

cdef dict OPERATORS = {
    "eq": " = ",
    "neq": " <> ",
    "gt": " > ",
    "gte": " >= ",
    "lt": " < ",
    "lte": " <= ",
    "like": " LIKE ",
    "ilike": " ILIKE ",
    "match": " ~ ",
    "imatch": " ~* ",
    "isdistinct": " IS DISTINCT FROM ",
    "cs": " @> ",
    "cd": " <@ ",
    "ov": " && ",
    "sl": " << ",
    "sr": " >> ",
    "nxr": " &< ",
    "nxl": " &> ",
    "adj": " -|- ",
}
cdef dict SEARCHES = {
    "fts": " @@ to_tsquery(",
    "plfts": " @@ plainto_tsquery(",
    "phfts": " @@ phraseto_tsquery(",
    "wfts": " @@ websearch_to_tsquery(",
}
cdef dict STATES = {
    "null": " IS NULL",
    "not_null": " IS NOT NULL",
    "true": " IS TRUE",
    "false": " IS FALSE",
    "unknown": " IS UNKNOWN",
}
# Operators whose value is compared as it is, whatever representation the column has.
cdef frozenset UNTRANSFORMED = frozenset(("like", "ilike", "isdistinct"))


@cython.final
@cython.freelist(8)
cdef class Scope:
    pass


cdef Scope scope_of(Catalog catalog, Table table, str qual, Node node):
    cdef Scope scope = Scope()
    scope.catalog = catalog
    scope.table = table
    scope.qual = qual
    scope.node = node
    return scope


cdef void write_column(Writer w, str qual, str name):
    w.add(qual)
    if name == "*":
        w.add(".*")
    else:
        w.add(".")
        w.add(quote(name))


cdef void write_path(Writer w, tuple path):
    cdef JsonStep step
    for step in path:
        w.add("->>" if step.as_text else "->")
        w.constant(step.key)
        if step.is_index:
            w.add("::int")


cdef void write_field(Writer w, str qual, str name, tuple path, bint to_json):
    if not path:
        write_column(w, qual, name)
        return
    if to_json:
        w.add("to_jsonb(")
        write_column(w, qual, name)
        w.add(")")
    else:
        write_column(w, qual, name)
    write_path(w, path)


cdef void write_value(Writer w, Filter condition, str transform):
    if transform is None:
        w.param(condition.slot)
        return
    w.add(transform)
    w.add("(")
    w.param(condition.slot)
    w.add(")")


cdef void write_list(Writer w, Filter condition, str transform):
    w.add(" = ANY (")
    if transform is None:
        w.param(condition.slot)
    else:
        w.add("(SELECT ")
        w.add(transform)
        w.add("(unnest(")
        w.param(condition.slot)
        w.add("::text[])))")
    w.add(")")


cdef void write_search(Writer w, Scope scope, Filter condition, Column column, bint to_json):
    # Of a computed column nothing is known: it is taken to be a vector already.
    cdef bint vector = column is None or column.type == "tsvector"
    if not vector:
        w.add("to_tsvector(")
        if condition.config is not None:
            w.constant(condition.config)
            w.add(", ")
    write_field(w, scope.qual, condition.field.name, condition.field.path, to_json)
    if not vector:
        w.add(")")
    w.add(<str>SEARCHES[condition.op])
    if condition.config is not None:
        w.constant(condition.config)
        w.add(", ")
    w.param(condition.slot)
    w.add(")")


cdef void write_filter(Writer w, Scope scope, Filter condition) except *:
    cdef str name = condition.field.name
    cdef str op = condition.op
    cdef str transform = None
    cdef Column column = None
    cdef Node embed
    cdef bint to_json
    cdef tuple path = condition.field.path
    if op == "is" and condition.value == "null" and not path and scope.node is not None:
        embed = scope.node.child(name)
        if embed is not None:
            # A row that is there may hold nothing but nulls, so the whole value is tested.
            w.add(embed.agg)
            w.add(" IS DISTINCT FROM NULL" if condition.negated else " IS NOT DISTINCT FROM NULL")
            return
    if scope.table is not None:
        column = scope.table.columns.get(name)
    to_json = column is None or column.nominal_type not in ("json", "jsonb")
    if column is not None and scope.catalog.representations:
        transform = scope.catalog.representation("text", column.nominal_type)
    if condition.negated:
        w.add("NOT ")
    if op in SEARCHES:
        write_search(w, scope, condition, column, to_json)
        return
    write_field(w, scope.qual, name, path, to_json)
    if op == "is":
        w.add(<str>STATES[condition.value])
    elif op == "in":
        write_list(w, condition, transform)
    else:
        w.add(<str>OPERATORS[op])
        if op in UNTRANSFORMED:
            transform = None
        if condition.quantifier is None:
            write_value(w, condition, transform)
        else:
            w.add("ANY(" if condition.quantifier == "any" else "ALL(")
            write_value(w, condition, transform)
            w.add(")")


cdef void write_logic(Writer w, Scope scope, Logic tree) except *:
    cdef bint first = True
    w.add("NOT (" if tree.negated else "(")
    for part in tree.children:
        if not first:
            w.add(" AND " if tree.op == "and" else " OR ")
        first = False
        if type(part) is Logic:
            write_logic(w, scope, <Logic>part)
        else:
            write_filter(w, scope, <Filter>part)
    w.add(")")


cdef void write_conditions(Writer w, Scope scope, list conditions) except *:
    """All conditions joined by AND; the caller has written WHERE."""
    cdef bint first = True
    for part in conditions:
        if not first:
            w.add(" AND ")
        first = False
        if type(part) is Logic:
            write_logic(w, scope, <Logic>part)
        else:
            write_filter(w, scope, <Filter>part)
