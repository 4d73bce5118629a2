"""Tree -> SELECT. An embed is one lateral subquery that gives one JSON column, or, when it is
spread, the columns of its parent."""
from ichicore.rest.ast cimport Filter, Logic
from ichicore.rest.filters cimport (
    Scope,
    scope_of,
    write_column,
    write_conditions,
    write_field,
    write_filter,
)
from ichicore.rest.ident cimport quote, type_name
from ichicore.rest.sql cimport LIMIT, OFFSET, Writer
from ichicore.rest.tree cimport TO_MANY, Export, Item, Node, Term, Tree


cdef str _function(str aggregate):
    return aggregate.upper() + "("


cdef void end_cast(Writer w, str kind) except *:
    """The end of a CAST(, when there is one."""
    if kind is not None:
        w.add(" AS ")
        w.add(type_name(kind))
        w.add(")")


cdef void name_as(Writer w, str alias) except *:
    if alias is not None:
        w.add(" AS ")
        w.add(quote(alias))


cdef void write_item(Writer w, str qual, Item item) except *:
    """One select item: [aggregate][cast][transform](column) AS alias."""
    if item.aggregate_cast is not None:
        w.add("CAST(")
    if item.aggregate is not None:
        w.add(_function(item.aggregate))
    if item.cast is not None:
        w.add("CAST(")
    if item.transform is not None:
        w.add(item.transform)
        w.add("(")
    if item.full_row:
        w.add(qual)
    else:
        write_field(w, qual, item.name, item.path, item.to_json)
    if item.transform is not None:
        w.add(")")
    end_cast(w, item.cast)
    if item.aggregate is not None:
        w.add(")")
    end_cast(w, item.aggregate_cast)
    name_as(w, item.alias)


cdef bint empty_embed(Node node):
    """Whether an embed selects nothing at all, at any depth: it then only filters."""
    cdef Node child
    if node.fields:
        return False
    for child in node.children:
        if not empty_embed(child):
            return False
    return True


cdef void write_export(Writer w, Node child, Export export) except *:
    if export.aggregate_cast is not None:
        w.add("CAST(")
    if export.aggregate is not None:
        w.add(_function(export.aggregate))
    write_column(w, child.agg, export.name)
    if export.aggregate is not None:
        w.add(")")
    end_cast(w, export.aggregate_cast)
    name_as(w, export.alias)


cdef void write_select_list(Writer w, Node node, bint jsonb) except *:
    cdef Item item
    cdef Node child
    cdef Export export
    cdef bint first = True
    cdef str name
    if not node.fields and not node.children:
        write_column(w, node.qual, "*")
        first = False
    for item in node.items:
        if not first:
            w.add(", ")
        first = False
        write_item(w, node.qual, item)
    for qual, extra in node.extra:
        if not first:
            w.add(", ")
        first = False
        write_item(w, node.qual if qual is None else <str>qual, <Item>extra)
    for child in node.children:
        if child.spread:
            for export in child.exports:
                if not first:
                    w.add(", ")
                first = False
                write_export(w, child, export)
            continue
        if empty_embed(child):
            continue
        if not first:
            w.add(", ")
        first = False
        name = child.label if child.given is None else child.given
        # Only jsonb can be grouped by; plain json keeps the order of the selected columns.
        if child.to_one:
            w.add("row_to_json(")
            w.add(child.agg)
            w.add(".*)")
            if jsonb:
                w.add("::jsonb")
        else:
            w.add("COALESCE(")
            w.add(child.agg)
            w.add(".")
            w.add(child.agg)
            if jsonb:
                w.add("::jsonb")
            w.add(", '[]')")
        w.add(" AS ")
        w.add(quote(name))


cdef void write_order(Writer w, str qual, list terms) except *:
    cdef Term term
    cdef bint first = True
    for term in terms:
        w.add(" ORDER BY " if first else ", ")
        first = False
        write_field(w, qual if term.qual is None else term.qual, term.name, term.path, term.to_json)
        if term.direction is not None:
            w.add(" DESC" if term.direction == "desc" else " ASC")
        if term.nulls is not None:
            w.add(" NULLS FIRST" if term.nulls == "nullsfirst" else " NULLS LAST")


cdef void write_spread_export(Writer w, Node child, Export export, bint jsonb) except *:
    w.add(", COALESCE(json_agg(")
    write_column(w, child.agg, export.name)
    write_order(w, child.agg, child.spread_order)
    w.add("), '[]')")
    if jsonb:
        w.add("::jsonb")
    w.add(" AS ")
    w.add(quote(export.name if export.alias is None else export.alias))


cdef void write_join(Writer w, Tree tree, Node child) except *:
    cdef Export export
    cdef bint inner = child.join == "inner"
    w.add(" INNER JOIN LATERAL (" if inner else " LEFT JOIN LATERAL (")
    if child.to_one:
        write_select(w, tree, child)
        w.add(") AS ")
        w.add(child.agg)
        w.add(" ON TRUE")
        return
    w.add("SELECT json_agg(")
    w.add(child.agg)
    w.add(") AS ")
    w.add(child.agg)
    if child.spread:
        for export in child.exports:
            write_spread_export(w, child, export, tree.jsonb)
    w.add(" FROM (")
    write_select(w, tree, child)
    w.add(") AS ")
    w.add(child.agg)
    w.add(") AS ")
    w.add(child.agg)
    if inner:
        w.add(" ON ")
        w.add(child.agg)
        w.add(".")
        w.add(child.agg)
        w.add(" IS NOT NULL")
    else:
        w.add(" ON TRUE")


cdef void write_from(Writer w, Node node) except *:
    w.add(" FROM ")
    w.add(node.source)
    name_as(w, node.alias)
    if node.through is not None:
        w.add(", ")
        w.add(node.through)


cdef bint write_join_conditions(Writer w, Node node, bint started) except *:
    for condition in node.conditions:
        w.add(" AND " if started else " WHERE ")
        started = True
        w.add(<str>condition)
    return started


cdef void write_group(Writer w, Node node) except *:
    cdef Item item
    cdef Node child
    cdef Export export
    cdef bint first = True
    for item in node.items:
        if item.aggregate is not None:
            continue
        w.add(" GROUP BY " if first else ", ")
        first = False
        if item.alias is not None:
            w.add(quote(item.alias))
        else:
            write_field(w, node.qual, item.name, item.path, item.to_json)
    for child in node.children:
        if child.spread:
            for export in child.exports:
                if export.aggregate is not None:
                    continue
                w.add(" GROUP BY " if first else ", ")
                first = False
                write_column(
                    w, child.agg, export.name if export.alias is None else export.alias
                )
        elif not empty_embed(child):
            w.add(" GROUP BY " if first else ", ")
            first = False
            w.add(quote(child.label if child.given is None else child.given))


cdef void write_range(Writer w, Tree tree, Node node) except *:
    if node.depth == 0:
        if node.limited or tree.max_rows is not None:
            w.add(" LIMIT ")
            w.param(LIMIT)
            w.add(" OFFSET ")
            w.param(OFFSET)
        return
    if tree.max_rows is not None:
        w.add(" LIMIT ")
        if node.limit_slot >= 0:
            w.param((node.limit_slot, tree.max_rows))
        else:
            w.param(str(tree.max_rows).encode())
    elif node.limit_slot >= 0:
        w.add(" LIMIT ")
        w.param(node.limit_slot)
    if node.offset_slot >= 0:
        w.add(" OFFSET ")
        w.param(node.offset_slot)


cpdef void write_select(Writer w, Tree tree, Node node) except *:
    """The statement of a node; the root's is the whole read."""
    cdef Node child
    cdef Scope scope
    cdef bint grouped = node.grouped()
    w.add("SELECT ")
    write_select_list(w, node, tree.jsonb)
    write_from(w, node)
    for child in node.children:
        write_join(w, tree, child)
    cdef bint started = False
    if node.filters:
        w.add(" WHERE ")
        started = True
        scope = scope_of(tree.catalog, node.table, node.qual, node)
        write_conditions(w, scope, node.filters)
    write_join_conditions(w, node, started)
    if grouped:
        write_group(w, node)
    write_order(w, node.qual, node.order)
    write_range(w, tree, node)


cdef void write_count_condition(Writer w, Tree tree, Node node, Scope scope, object part) except *:
    cdef Filter condition
    cdef Logic logic
    cdef Node embed
    cdef bint first = True
    if type(part) is Logic:
        logic = <Logic>part
        w.add("NOT (" if logic.negated else "(")
        for inner in logic.children:
            if not first:
                w.add(" AND " if logic.op == "and" else " OR ")
            first = False
            write_count_condition(w, tree, node, scope, inner)
        w.add(")")
        return
    condition = <Filter>part
    if condition.op == "is" and condition.value == "null" and not condition.field.path:
        embed = node.child(condition.field.name)
        if embed is not None:
            w.add("EXISTS (" if condition.negated else "NOT EXISTS (")
            write_count(w, tree, embed)
            w.add(")")
            return
    write_filter(w, scope, condition)


cpdef void write_count(Writer w, Tree tree, Node node) except *:
    """SELECT 1 for each row of a node that passes its filters, without limit and without joins:
    an inner embed only has to exist."""
    cdef Node child
    cdef Scope scope = scope_of(tree.catalog, node.table, node.qual, node)
    cdef bint started = False
    w.add("SELECT 1")
    write_from(w, node)
    for part in node.filters:
        w.add(" AND " if started else " WHERE ")
        started = True
        write_count_condition(w, tree, node, scope, part)
    started = write_join_conditions(w, node, started)
    for child in node.children:
        if child.join == "inner":
            w.add(" AND " if started else " WHERE ")
            started = True
            w.add("EXISTS (")
            write_count(w, tree, child)
            w.add(")")


def read_sql(Tree tree not None):
    """(sql, layout) whose rows are the selected columns."""
    cdef Writer w = Writer()
    write_select(w, tree, tree.root)
    return w.text(), w.layout


def count_sql(Tree tree not None, cap=None):
    """(sql, layout) of one row with the number of rows before the limit, at most `cap`."""
    cdef Writer w = Writer()
    w.add("SELECT count(*) FROM (")
    write_count(w, tree, tree.root)
    if cap is not None:
        w.add(f" LIMIT {int(cap)}")
    w.add(") AS ichi_all")
    return w.text(), w.layout


def estimate_sql(Tree tree not None):
    """(sql, layout) that explains the count, for the planner's guess of the number of rows."""
    cdef Writer w = Writer()
    w.add("EXPLAIN (FORMAT JSON) ")
    write_count(w, tree, tree.root)
    return w.text(), w.layout


def head_sql(Tree tree not None):
    """(sql, layout) of one row with the number of rows the read would give."""
    cdef Writer w = Writer()
    # Counting whole rows keeps the errors that evaluating the columns would raise.
    w.add("SELECT count(*) FROM (" if tree.root.plain_star() else "SELECT count(ichi_row) FROM (")
    write_select(w, tree, tree.root)
    w.add(") AS ichi_row")
    return w.text(), w.layout
