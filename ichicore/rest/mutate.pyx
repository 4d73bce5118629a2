"""INSERT, UPDATE and DELETE. The payload stays one JSON parameter that Postgres takes apart."""
cimport cython

from ichicore.rest import hints

from ichicore.rest.catalog cimport Catalog, Column, Table
from ichicore.rest.filters cimport Scope, scope_of, write_conditions
from ichicore.rest.ident cimport literal, qualify, quote
from ichicore.rest.select cimport write_item, write_select
from ichicore.rest.sql cimport BODY, Writer
from ichicore.rest.tree cimport Item, Node, Term, Tree

cdef str PAYLOAD = '"pgrst_body"'
CHANGED = '"pgrst_source"'  # FROM item of the changed rows, for read_tree

# Rows inserted by an upsert: up by one for each row of the payload, down by one for each conflict.
# Kept in a setting of the transaction, since it must not need the right to read the table.
cdef str COUNT_ROW = (
    "set_config('ichibase.inserted', (coalesce(nullif(current_setting('ichibase.inserted', true)"
    ", '')::int, 0) + 1)::text, true) <> ''"
)
cdef str UNCOUNT_ROW = COUNT_ROW.replace("+ 1", "- 1")


@cython.final
cdef class PayloadField:
    """One column of a payload: its name, the type it is read as, the function that completes it."""

    cdef readonly str name
    cdef readonly str type
    cdef readonly str transform
    cdef readonly str default

    def __init__(self, str name, str type, str transform=None, str default=None):
        self.name = name
        self.type = type
        self.transform = transform
        self.default = default


cpdef list payload_fields(Catalog catalog, Table table, names):
    """A PayloadField for each name; ApiError PGRST204 for one that is no column."""
    cdef list fields = []
    cdef Column column
    cdef str name
    cdef str transform
    for name in names:
        column = table.columns.get(name)
        if column is None:
            raise hints.no_column(table.name, name)
        transform = catalog.representation("json", column.nominal_type)
        fields.append(PayloadField(
            name, column.nominal_type if transform is None else "json", transform, column.default,
        ))
    return fields


cdef void write_defaults(Writer w, list fields):
    cdef PayloadField field
    cdef bint first = True
    w.add("jsonb_build_object(")
    for field in fields:
        if field.default is None:
            continue
        if not first:
            w.add(", ")
        first = False
        w.add(literal(field.name))
        w.add(", ")
        w.add(field.default)
    w.add(")")


cdef void write_document(Writer w, list fields, bint is_object, bint defaults):
    """The JSON value that is taken apart, with the columns' defaults under it when asked for."""
    if not defaults:
        w.param(BODY)
        w.add("::json")
        return
    if is_object:
        write_defaults(w, fields)
        w.add(" || ")
        w.param(BODY)
        w.add("::jsonb")
        return
    w.add("(SELECT jsonb_agg(")
    write_defaults(w, fields)
    w.add(" || ichi_element) FROM jsonb_array_elements(")
    w.param(BODY)
    w.add("::jsonb) AS ichi_element)")


cdef void write_record(Writer w, list fields, bint is_object, bint defaults, str alias) except *:
    """A FROM item named `alias` with one row for each object of the payload."""
    cdef PayloadField field
    cdef bint transformed = False
    cdef bint first = True
    if not fields:
        if is_object:
            w.add("(VALUES (1)) AS ")
        else:
            w.add("json_array_elements(")
            w.param(BODY)
            w.add("::json) AS ")
        w.add(alias)
        return
    for field in fields:
        if field.transform is not None:
            transformed = True
    if transformed:
        w.add("(SELECT ")
        for field in fields:
            if not first:
                w.add(", ")
            first = False
            if field.transform is not None:
                w.add(field.transform)
                w.add("(")
            w.add(quote(field.name))
            if field.transform is not None:
                w.add(") AS ")
                w.add(quote(field.name))
        w.add(" FROM ")
    w.add("jsonb" if defaults else "json")
    w.add("_to_record(" if is_object else "_to_recordset(")
    write_document(w, fields, is_object, defaults)
    w.add(") AS ")
    w.add('"ichi_raw"' if transformed else alias)
    first = True
    for field in fields:
        w.add("(" if first else ", ")
        first = False
        w.add(quote(field.name))
        w.add(" ")
        w.add(field.type)
    w.add(")")
    if transformed:
        w.add(") AS ")
        w.add(alias)


cdef void write_names(Writer w, str qual, list fields):
    cdef PayloadField field
    cdef bint first = True
    for field in fields:
        if not first:
            w.add(", ")
        first = False
        if qual is not None:
            w.add(qual)
            w.add(".")
        w.add(quote(field.name))


cpdef list returning_columns(Tree tree):
    """Columns that a changed row must give for the select, its embeds and its order.

    ["*"] when all are, or when a computed relationship makes that unknown.
    """
    cdef set names = set()
    cdef Node root = tree.root
    cdef Node child
    cdef Item item
    cdef Term term
    if not root.fields and not root.children:
        return ["*"]
    for item in root.items:
        names.add(item.name)
    for child in root.children:
        if child.relationship.kind == "computed":
            return ["*"]
        if child.relationship.kind == "m2m":
            for column, _ in child.relationship.junction.source_columns:
                names.add(column)
        else:
            for column, _ in child.relationship.columns:
                names.add(column)
    for term in root.order:
        if term.qual is None:
            names.add(term.name)
    if "*" in names:
        return ["*"]
    return sorted(names)


cpdef tuple key_columns(Table table):
    """The primary key's columns as the table has them in order."""
    cdef str name
    return tuple([name for name in table.columns if name in table.primary_key])


cdef class Mutation:
    """One change of a table, to be written once.

    kind: insert, update or delete. fields: PayloadField of the payload's columns. conditions:
    ast.Filter and ast.Logic; on an insert (PUT) they must hold for the payload's row. conflict:
    columns of ON CONFLICT, or None. merge: conflicting rows are updated, not skipped. counted: the
    number of inserted rows is kept in the setting ichibase.inserted.
    """

    cdef readonly Catalog catalog
    cdef readonly Table table
    cdef readonly str kind
    cdef readonly list fields
    cdef readonly list conditions
    cdef readonly bint is_object
    cdef readonly bint defaults
    cdef readonly list conflict
    cdef readonly bint merge
    cdef readonly bint counted

    def __init__(self, Catalog catalog not None, Table table not None, str kind not None, *,
                 fields=(), conditions=(), bint is_object=False, bint defaults=False,
                 conflict=None, bint merge=False, bint counted=False):
        self.catalog = catalog
        self.table = table
        self.kind = kind
        self.fields = list(fields)
        self.conditions = list(conditions)
        self.is_object = is_object
        self.defaults = defaults
        self.conflict = None if conflict is None else list(conflict)
        self.merge = merge
        self.counted = counted

    cdef void write_insert(self, Writer w) except *:
        cdef bint where = False
        w.add("INSERT INTO ")
        w.add(qualify(self.table.schema, self.table.name))
        if self.fields:
            w.add("(")
            write_names(w, None, self.fields)
            w.add(")")
        w.add(" SELECT ")
        write_names(w, PAYLOAD, self.fields)
        w.add(" FROM ")
        write_record(w, self.fields, self.is_object, self.defaults, PAYLOAD)
        if self.counted:
            w.add(" WHERE ")
            w.add(COUNT_ROW)
            where = True
        if self.conditions:
            w.add(" AND " if where else " WHERE ")
            write_conditions(
                w, scope_of(self.catalog, self.table, PAYLOAD, None), self.conditions
            )
        if self.conflict:
            self.write_conflict(w)

    cdef void write_conflict(self, Writer w) except *:
        cdef PayloadField field
        cdef bint first = True
        w.add(" ON CONFLICT(")
        for name in self.conflict:
            if not first:
                w.add(", ")
            first = False
            w.add(quote(name))
        if not self.merge or not self.fields:
            w.add(") DO NOTHING")
            return
        first = True
        for field in self.fields:
            w.add(") DO UPDATE SET " if first else ", ")
            first = False
            w.add(quote(field.name))
            w.add(" = EXCLUDED.")
            w.add(quote(field.name))
        if self.counted:
            w.add(" WHERE ")
            w.add(UNCOUNT_ROW)

    cdef void write_update(self, Writer w) except *:
        cdef PayloadField field
        cdef bint first = True
        cdef str target = qualify(self.table.schema, self.table.name)
        w.add("UPDATE ")
        w.add(target)
        for field in self.fields:
            w.add(" SET " if first else ", ")
            first = False
            w.add(quote(field.name))
            w.add(" = ")
            w.add(PAYLOAD)
            w.add(".")
            w.add(quote(field.name))
        w.add(" FROM ")
        write_record(w, self.fields, self.is_object, self.defaults, PAYLOAD)
        self.write_where(w, target)

    cdef void write_where(self, Writer w, str target) except *:
        if self.conditions:
            w.add(" WHERE ")
            write_conditions(
                w, scope_of(self.catalog, self.table, target, None), self.conditions
            )

    cdef void write(self, Writer w) except *:
        cdef str target
        if self.kind == "insert":
            self.write_insert(w)
        elif self.kind == "update":
            self.write_update(w)
        else:
            target = qualify(self.table.schema, self.table.name)
            w.add("DELETE FROM ")
            w.add(target)
            self.write_where(w, target)

    cdef bint changes_nothing(self):
        return self.kind == "update" and not self.fields

    cdef void write_returning(self, Writer w, list names) except *:
        """The change with RETURNING names; an UPDATE without columns gives no rows instead."""
        cdef str target = qualify(self.table.schema, self.table.name)
        cdef bint first = True
        if self.changes_nothing():
            # Columns by the bare name, so that computed ones resolve as they do in RETURNING.
            target = quote(self.table.name)
            w.add("SELECT ")
        else:
            self.write(w)
            w.add(" RETURNING ")
        for name in names:
            if not first:
                w.add(", ")
            first = False
            w.add(target)
            w.add(".*" if name == "*" else "." + quote(name))
        if self.changes_nothing():
            w.add(" FROM ")
            w.add(qualify(self.table.schema, self.table.name))
            w.add(" WHERE false")

    def silent(self):
        """(sql, layout) that returns no rows; the command tag tells how many were changed."""
        cdef Writer w = Writer()
        if self.changes_nothing():
            w.add("SELECT FROM ")
            w.add(qualify(self.table.schema, self.table.name))
            w.add(" WHERE false")
        else:
            self.write(w)
        return w.text(), w.layout

    def returning_one(self):
        """(sql, layout) that returns an empty-handed row for each changed one."""
        cdef Writer w = Writer()
        if self.changes_nothing():
            return self.silent()
        self.write(w)
        w.add(" RETURNING 1")
        return w.text(), w.layout

    def keys(self):
        """(sql, layout) that returns each row's primary key as texts, in the columns' order."""
        cdef Writer w = Writer()
        cdef bint first = True
        cdef str target = qualify(self.table.schema, self.table.name)
        self.write(w)
        for name in key_columns(self.table):
            w.add(" RETURNING " if first else ", ")
            first = False
            w.add("to_json(")
            w.add(target)
            w.add(".")
            w.add(quote(name))
            w.add(") #>> '{}'")
        return w.text(), w.layout

    def rows(self, Tree tree not None):
        """(prefix, sql, layout) whose rows are the selected columns of the changed rows.

        tree: read from `CHANGED`, see read_tree(source=...). prefix: a WITH query to put before
        sql, or None when RETURNING alone can give the selection.
        """
        cdef Writer w = Writer()
        cdef Node root = tree.root
        cdef Item item
        cdef bint first = True
        cdef str target = qualify(self.table.schema, self.table.name)
        cdef str prefix
        if root.children or root.order or root.filters or root.grouped() or self.changes_nothing():
            w.add(CHANGED)
            w.add(" AS (")
            self.write_returning(w, returning_columns(tree))
            w.add(")")
            prefix = w.text()
            w.parts = []
            write_select(w, tree, root)
            return prefix, w.text(), w.layout
        self.write(w)
        w.add(" RETURNING ")
        if not root.fields:
            w.add(target)
            w.add(".*")
        for item in root.items:
            if not first:
                w.add(", ")
            first = False
            write_item(w, target, item)
        return None, w.text(), w.layout
