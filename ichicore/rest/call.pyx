"""Choosing a function by its arguments' names, and calling it."""
from ichicore.errors import ApiError
from ichicore.rest import hints

from ichicore.rest.ast cimport Filter, Logic
from ichicore.rest.catalog cimport Catalog, Param, Routine
from ichicore.rest.ident cimport qualify, quote
from ichicore.rest.mutate cimport write_record
from ichicore.rest.select cimport write_count, write_select
from ichicore.rest.sql cimport BODY, RAW, Writer
from ichicore.rest.tree cimport Item, Node, Term, Tree

from ichicore.rest.mutate import PayloadField

SCALAR = "pgrst_scalar"  # column name of a result that has no columns of its own
CALLED = '"pgrst_call"'  # FROM item of the result, for read_tree

cdef str ARGUMENTS = '"ichi_arguments"'
cdef dict SINGLE_TYPES = {
    "application/json": ("json", "jsonb"),
    "text/plain": ("text",),
    "text/xml": ("xml",),
    "application/octet-stream": ("bytea",),
}


cpdef bint returns_scalar(Routine routine):
    """One value without columns, void included."""
    return not routine.returns_composite


cdef bint takes_whole_body(Routine routine, bint is_post, str content_type):
    cdef Param param
    if not is_post or len(routine.params) != 1:
        return False
    param = <Param>routine.params[0]
    return param.name == "" and param.type in SINGLE_TYPES.get(content_type, ())


cdef bint matches(Routine routine, set names, bint is_post, str content_type):
    cdef Param param
    cdef set required
    cdef set optional
    if not routine.params:
        return not names and not (
            is_post and content_type in ("text/plain", "text/xml", "application/octet-stream")
        )
    required = set()
    optional = set()
    for param in routine.params:
        if param.required:
            required.add(param.name)
        else:
            optional.add(param.name)
    return required <= names <= (required | optional)


def choose(Catalog catalog not None, str schema not None, str name not None, set names not None,
           *, bint is_post, str content_type not None):
    """The Routine that these argument names call. Raises ApiError PGRST202 or PGRST203.

    names: argument names given. content_type: of the payload; a lone unnamed parameter may take
    the whole of it on POST when no function has the names.
    """
    cdef list named = []
    cdef list whole = []
    cdef Routine routine
    for routine in catalog.functions(schema, name):
        if matches(routine, names, is_post, content_type):
            named.append(routine)
        elif takes_whole_body(routine, is_post, content_type):
            whole.append(routine)
    if not named:
        named = whole
    if len(named) == 1:
        return named[0]
    if named:
        raise hints.ambiguous_function(named)
    raise hints.no_function(
        catalog, schema, name, sorted(names), content_type=content_type, is_post=is_post
    )


cdef bytes _array_literal(list values):
    cdef list out = []
    for value in values:
        out.append('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return ("{" + ",".join(out) + "}").encode()


cdef class Call:
    """One function call, to be written once.

    arguments: list of (name, value, slot) from the URL or a form, slot being the index of a
    query-string value or -1; None when the payload carries them. names: names given. whole: the payload itself is the one argument.
    """

    cdef readonly Catalog catalog
    cdef readonly Routine routine
    cdef readonly list arguments
    cdef readonly set names
    cdef readonly bint is_object
    cdef readonly bint whole

    def __init__(self, Catalog catalog not None, Routine routine not None, *, set names not None,
                 arguments=None, bint is_object=True):
        self.catalog = catalog
        self.routine = routine
        self.names = names
        self.arguments = arguments
        self.is_object = is_object
        self.whole = len(routine.params) == 1 and (<Param>routine.params[0]).name == ""

    cdef list given(self):
        cdef Param param
        return [param for param in self.routine.params if param.name in self.names]

    cdef void write_given(self, Writer w, Param param) except *:
        """A named argument whose value came as text."""
        cdef list values = []
        cdef object slot
        cdef object last = -1
        cdef str value = None
        for name, value, slot in self.arguments:
            if name == param.name:
                values.append(value)
                last = slot
        if param.variadic:
            w.add("VARIADIC ")
        w.add(quote(param.name))
        w.add(" := ")
        if param.variadic:
            w.param(_array_literal(values))
        elif last >= 0:
            w.param(last)
        else:
            w.constant(<str>values[len(values) - 1])
        w.add("::")
        w.add(param.type_max_length)

    cdef void write_call(self, Writer w) except *:
        cdef Param param
        cdef bint first = True
        w.add(qualify(self.routine.schema, self.routine.name))
        w.add("(")
        if self.whole:
            param = <Param>self.routine.params[0]
            w.param(RAW if param.type == "bytea" else BODY)
            w.add("::")
            w.add(param.type)
        else:
            for param in self.given():
                if not first:
                    w.add(", ")
                first = False
                if self.arguments is not None:
                    self.write_given(w, param)
                    continue
                if param.variadic:
                    w.add("VARIADIC ")
                w.add(quote(param.name))
                w.add(" := ")
                w.add(ARGUMENTS)
                w.add(".")
                w.add(quote(param.name))
        w.add(")")

    cdef bint from_payload(self):
        return not self.whole and self.arguments is None and bool(self.given())

    cdef void write_arguments(self, Writer w) except *:
        """FROM item with the payload's arguments as the columns of one row."""
        cdef Param param
        cdef list fields = [
            PayloadField(param.name, param.type_max_length) for param in self.given()
        ]
        if self.is_object:
            write_record(w, fields, True, False, ARGUMENTS)
            return
        w.add("(SELECT * FROM ")
        write_record(w, fields, False, False, '"ichi_rows"')
        w.add(" LIMIT 1) AS ")
        w.add(ARGUMENTS)

    def value(self):
        """(sql, layout) of one row with one column: a scalar result as JSON text, null included."""
        cdef Writer w = Writer()
        w.add("SELECT coalesce(to_json(")
        self.write_call(w)
        w.add(")::text, 'null')")
        if self.from_payload():
            w.add(" FROM ")
            self.write_arguments(w)
        return w.text(), w.layout

    def silent(self):
        """(sql, layout) that calls and selects nothing of use."""
        cdef Writer w = Writer()
        w.add("SELECT ")
        self.write_call(w)
        if self.from_payload():
            w.add(" FROM ")
            self.write_arguments(w)
        return w.text(), w.layout

    cdef void write_rows(self, Writer w, list names) except *:
        cdef bint scalar = returns_scalar(self.routine)
        cdef bint first = True
        w.add("SELECT ")
        if scalar:
            w.add(CALLED)
            w.add("." + quote(SCALAR))
        else:
            for name in names:
                if not first:
                    w.add(", ")
                first = False
                w.add(CALLED)
                w.add(".*" if name == "*" else "." + quote(name))
        w.add(" FROM ")
        if self.from_payload():
            self.write_arguments(w)
            w.add(", LATERAL ")
        if scalar:
            w.add("(SELECT ")
            self.write_call(w)
            w.add(" AS ")
            w.add(quote(SCALAR))
            w.add(")")
        else:
            self.write_call(w)
        w.add(" AS ")
        w.add(CALLED)

    def plain(self):
        """(sql, layout) of the result as it is."""
        cdef Writer w = Writer()
        self.write_rows(w, ["*"])
        return w.text(), w.layout

    def rows(self, Tree tree not None, *, bint counted=False):
        """(prefix, sql, total, layout) of the selection from the result.

        tree: read from `CALLED`. prefix: the WITH query that sql reads from. total: SQL of the
        number of rows without limit when `counted`, else "null"; it reads from the same WITH
        query, since calling twice may change twice.
        """
        cdef Writer w = Writer()
        cdef str prefix
        cdef str sql
        cdef str total = "null"
        w.add(CALLED)
        w.add(" AS MATERIALIZED (" if counted else " AS (")
        self.write_rows(w, result_columns(tree))
        w.add(")")
        prefix = w.text()
        w.parts = []
        write_select(w, tree, tree.root)
        sql = w.text()
        if counted:
            w.parts = []
            w.add("(SELECT count(*) FROM (")
            write_count(w, tree, tree.root)
            w.add(") AS ichi_all)")
            total = w.text()
        return prefix, sql, total, w.layout


cdef void _condition_columns(set names, list conditions):
    for part in conditions:
        if type(part) is Logic:
            _condition_columns(names, list((<Logic>part).children))
        else:
            names.add((<Filter>part).field.name)


cpdef list result_columns(Tree tree):
    """Columns of the result that the selection, its filters, order and embeds need."""
    from ichicore.rest.mutate import returning_columns

    cdef list names = returning_columns(tree)
    cdef set wanted
    cdef set embeds = set()
    cdef Node child
    if names == ["*"]:
        return names
    wanted = set(names)
    _condition_columns(wanted, tree.root.filters)
    for child in tree.root.children:
        embeds.add(child.label if child.given is None else child.given)
    return sorted(wanted - (embeds - set(names))) or ["*"]
