"""ast.Query and Catalog -> Tree: names become columns, embeds become joins.

The stages run over the whole tree one after the other, because an embed's columns are known only
after its relationship is, and an aggregate of a spread embed moves to the node that groups.
"""
cimport cython

from ichicore.errors import ApiError
from ichicore.rest import hints

from ichicore.rest.ast cimport (
    Field,
    Filter,
    JsonStep,
    Logic,
    OrderTerm,
    Query,
    SelectField,
    SelectRelation,
)
from ichicore.rest.catalog cimport Catalog, Column, Junction, Relationship, Table
from ichicore.rest.ident cimport qualify, quote

cdef int NAME_BYTES = 63  # Postgres cuts longer names, which may make two of them equal


@cython.final
@cython.freelist(32)
cdef class Item:
    def __cinit__(self):
        self.path = ()


@cython.final
@cython.freelist(8)
cdef class Term:
    pass


@cython.final
@cython.freelist(8)
cdef class Export:
    pass


cdef Export _export(str name):
    cdef Export made = Export()
    made.name = name
    return made


@cython.final
@cython.freelist(16)
cdef class Node:
    def __cinit__(self):
        self.conditions = []
        self.fields = []
        self.items = []
        self.children = []
        self.exports = []
        self.filters = []
        self.order_terms = []
        self.order = []
        self.extra = []
        self.spread_order = []
        self.limit_slot = -1
        self.offset_slot = -1

    cdef Node child(self, str name):
        """The embed that a client calls `name` by its alias, or by its name when it has none."""
        cdef Node child
        for child in self.children:
            if name == (child.label if child.given is None else child.given):
                return child
        return None

    cpdef bint grouped(self):
        """Whether this level aggregates, so that everything else it selects is grouped by."""
        cdef Item item
        cdef Node child
        cdef Export export
        for item in self.items:
            if item.aggregate is not None:
                return True
        for child in self.children:
            if child.spread:
                for export in child.exports:
                    if export.aggregate is not None:
                        return True
        return False

    cpdef bint plain_star(self):
        """Whether it selects all columns and nothing else (media handlers ask for that)."""
        return (
            not self.children
            and len(self.fields) == 1
            and (<SelectField>self.fields[0]).field is not None
            and (<SelectField>self.fields[0]).field.name == "*"
        )


cdef Node _named_child(Node node, str name):
    cdef Node child
    for child in node.children:
        if child.label == name or child.given == name:
            return child
    raise ApiError(
        400, "PGRST108", f"'{name}' is not an embedded resource in this request",
        hint=f"Verify that '{name}' is included in the 'select' query parameter.",
    )


cdef Node _at(Node root, tuple path):
    cdef str name
    for name in path:
        root = _named_child(root, name)
    return root


@cython.final
cdef class Tree:
    """Build one with `read_tree`. max_rows: cap of every level's row count, or None."""

    def __init__(self, Catalog catalog not None, str schema not None, str name not None,
                 max_rows=None):
        cdef Node root = Node()
        self.catalog = catalog
        self.schema = schema
        self.max_rows = max_rows
        root.target = (schema, name)
        root.label = name
        root.table = catalog.table(schema, name)
        root.source = qualify(schema, name)
        root.qual = root.source
        self.root = root

    def use_source(self, str sql, str alias):
        """Read from another FROM item (a call, a WITH query) under the target's name."""
        self.root.source = sql
        self.root.alias = alias
        self.root.qual = quote(alias)

    cdef void shape(self, Node node, tuple children) except *:
        cdef Node child
        cdef SelectRelation relation
        for entry in children:
            if type(entry) is SelectField:
                node.fields.append(entry)
                continue
            relation = <SelectRelation>entry
            child = Node()
            child.label = relation.name
            child.given = relation.alias
            child.hint = relation.hint
            child.join = relation.join
            child.wants_spread = relation.spread
            child.depth = node.depth + 1
            self.shape(child, relation.children)
            node.children.append(child)

    cdef void attach(self, Query query, bint filter_root, bint ranges) except *:
        cdef tuple path
        cdef Node node
        for path, condition in query.filters:
            if path or filter_root:
                _at(self.root, path).filters.append(condition)
        for path, terms in query.order:
            _at(self.root, path).order_terms.extend(terms)
        if ranges:
            for path, pair in query.limit_slots.items():
                node = _at(self.root, path)
                node.limit_slot, node.offset_slot = pair
                node.limited = True
        for path, condition in query.logic:
            if path or filter_root:
                _at(self.root, path).filters.append(condition)

    cdef void relate(self, Node parent) except *:
        """Find each embed's relationship and write its join conditions."""
        cdef Node child
        cdef tuple found
        for child in parent.children:
            found = self.catalog.candidates(
                self.schema, <str>parent.target[1], child.label, child.hint
            )
            if len(found) != 1:
                raise hints.no_relationship(
                    self.catalog, self.schema, parent.target[1], child.label, child.hint, found
                )
            self.join(parent, child, <Relationship>found[0])
            self.relate(child)

    cdef void join(self, Node parent, Node child, Relationship rel) except *:
        cdef str foreign = <str>rel.foreign[1]
        cdef str name = child.label if child.given is None else child.given
        cdef str depth = str(child.depth)
        self.nodes += 1
        child.relationship = rel
        child.to_one = rel.to_one
        child.target = rel.foreign
        child.table = self.catalog.table(<str>rel.foreign[0], foreign)
        child.agg_name = <str>rel.table[1] + "_" + name + "_" + depth
        if len(child.agg_name.encode()) > NAME_BYTES:
            child.agg_name = f"embed_{self.nodes}_{depth}"
        child.agg = quote(child.agg_name)
        if child.wants_spread:
            child.spread = TO_ONE if rel.to_one else TO_MANY
        child.source = qualify(<str>rel.foreign[0], foreign)
        if rel.kind == "m2m":
            self.join_by_junction(parent, child, rel.junction)
            return
        child.alias = foreign + "_" + depth
        if len(child.alias.encode()) > NAME_BYTES:
            child.alias = f"table_{self.nodes}_{depth}"
        child.qual = quote(child.alias)
        if rel.kind == "computed":
            # The cast chooses among overloads, and types the rows of a WITH query.
            child.source = (
                qualify(<str>rel.function[0], <str>rel.function[1]) + "("
                + quote(<str>rel.table[1] if parent.alias is None else parent.alias) + "::"
                + qualify(<str>rel.table[0], <str>rel.table[1]) + ")"
            )
            return
        for column, foreign_column in rel.columns:
            child.conditions.append(
                child.qual + "." + quote(foreign_column) + " = "
                + parent.qual + "." + quote(column)
            )

    cdef void join_by_junction(self, Node parent, Node child, Junction junction) except *:
        cdef str through = qualify(<str>junction.table[0], <str>junction.table[1])
        cdef str via = through
        child.qual = child.source
        if child.qual == parent.qual or child.target == junction.table:
            child.alias = f"{child.target[1]}_{child.depth}"
            child.qual = quote(child.alias)
        if via == parent.qual:
            via = quote(f"{junction.table[1]}_by_{child.depth}")
            through += " AS " + via
        child.through = through
        for column, junction_column in junction.target_columns:
            child.conditions.append(
                child.qual + "." + quote(column) + " = " + via + "." + quote(junction_column)
            )
        for column, junction_column in junction.source_columns:
            child.conditions.append(
                parent.qual + "." + quote(column) + " = " + via + "." + quote(junction_column)
            )

    cdef bint has_representation(self, Table table):
        cdef Column column
        if table is None or not self.catalog.representations:
            return False
        for column in table.columns.values():
            if (column.nominal_type, "json") in self.catalog.representations:
                return True
        return False

    cdef Item column_item(self, Table table, str name, tuple path):
        cdef Item item = Item()
        cdef Column column = None
        item.name = name
        if path:
            item.path = path
            item.to_json = True
        if table is not None:
            column = table.columns.get(name)
        if column is not None:
            if path and column.nominal_type in ("json", "jsonb"):
                item.to_json = False
            if self.catalog.representations:
                item.transform = self.catalog.representation(column.nominal_type, "json")
        return item

    cdef void select(self, Node node, bint aggregated, bint allowed) except *:
        """Resolve the select list; `aggregated`: an ancestor aggregates, so `*` is spelled out."""
        cdef SelectField field
        cdef Item item
        cdef Node child
        cdef bint expand
        cdef bint full_row
        for field in node.fields:
            if field.aggregate is not None:
                if not allowed:
                    raise ApiError(400, "PGRST123", "Use of aggregate functions is not allowed")
                aggregated = True
                self.jsonb = True
        if node.spread == TO_MANY:
            aggregated = True
        expand = aggregated or self.has_representation(node.table)
        for field in node.fields:
            if field.field is None or field.field.name == "*":
                full_row = False
                if field.aggregate is None:
                    if expand and node.table is not None:
                        for name in node.table.columns:
                            item = self.column_item(node.table, name, ())
                            item.cast = field.cast
                            if item.transform is not None:
                                item.alias = name
                            node.items.append(item)
                        continue
                elif node.spread and field.aggregate == "count":
                    full_row = True
                item = Item()
                item.name = "*"
                item.full_row = full_row
            else:
                item = self.column_item(node.table, field.field.name, field.field.path)
            item.aggregate = field.aggregate
            item.aggregate_cast = field.aggregate_cast
            item.cast = field.cast
            item.alias = field.alias
            if item.alias is None:
                if item.aggregate is not None:
                    if node.spread:
                        item.alias = item.aggregate
                elif item.path:
                    item.alias = _last_key(item)
                elif item.transform is not None:
                    item.alias = item.name
            node.items.append(item)
        for child in node.children:
            self.select(child, aggregated, allowed)

    cdef void sort(self, Node node) except *:
        cdef OrderTerm written
        cdef Term term
        cdef Column column
        cdef Node child
        cdef str name
        for written in node.order_terms:
            term = Term()
            term.name = written.field.name
            term.path = written.field.path
            term.direction = written.direction
            term.nulls = written.nulls
            if written.relation is not None:
                child = node.child(written.relation)
                if child is None:
                    _named_child(node, written.relation)
                if child is None or not child.to_one:
                    name = written.relation
                    raise ApiError(
                        400, "PGRST118", f"A related order on '{name}' is not possible",
                        details=f"'{node.target[1]}' and '{name}' do not form a many-to-one or "
                        "one-to-one relationship",
                    )
                term.qual = child.agg
            elif term.path:
                column = None if node.table is None else node.table.columns.get(term.name)
                term.to_json = column is None or column.nominal_type not in ("json", "jsonb")
            node.order.append(term)
        for child in node.children:
            self.sort(child)


cdef str _last_key(Item item):
    """The name a JSON path's value gets: its last key, or the column when it has only indexes."""
    cdef JsonStep step
    for step in reversed(item.path):
        if not step.is_index:
            return step.key
    return item.name


cdef void _collect_exports(Node node) except *:
    """Bottom-up: the columns each spread embed hands to its parent."""
    cdef Node child
    cdef Node inner
    cdef Item item
    cdef Export export
    for child in node.children:
        _collect_exports(child)
        if not child.spread:
            continue
        for item in child.items:
            child.exports.append(_export(item.name if item.alias is None else item.alias))
        for inner in child.children:
            if inner.spread:
                for export in inner.exports:
                    child.exports.append(_export(export.name))
            else:
                child.exports.append(
                    _export(inner.label if inner.given is None else inner.given)
                )


cdef list _hoist(Node node):
    """Move aggregates out of to-one spreads, up to the node whose rows they summarize.

    Gives (joined alias, column, Item with the aggregate) for the parent to apply.
    """
    cdef list below = []
    cdef list hoisted = []
    cdef Node child
    cdef Item item
    cdef Item moved
    cdef Export export
    for child in node.children:
        below.extend(_hoist(child))
    if node.spread == TO_ONE:
        for item in node.items:
            if item.aggregate is None:
                continue
            moved = Item()
            moved.aggregate = item.aggregate
            moved.aggregate_cast = item.aggregate_cast
            moved.alias = item.alias
            hoisted.append((node.agg, item.name if item.alias is None else item.alias, moved))
            item.aggregate = None
            item.aggregate_cast = None
        for _, name, moved in below:
            hoisted.append((node.agg, name, moved))
        return hoisted
    if below:
        for child in node.children:
            for export in child.exports:
                for agg, name, moved in below:
                    if agg == child.agg and name == export.name:
                        export.aggregate = (<Item>moved).aggregate
                        export.aggregate_cast = (<Item>moved).aggregate_cast
                        export.alias = (<Item>moved).alias
                        break
    return hoisted


cdef void _order_spreads(Node node) except *:
    """A to-many spread is ordered inside its aggregates, by columns it selects for that alone."""
    cdef Node child
    cdef Term term
    cdef Term outer
    cdef Item item
    cdef str alias
    cdef Py_ssize_t n = 0
    if node.spread == TO_MANY:
        if node.grouped():
            raise ApiError(
                400, "PGRST127", "Feature not implemented",
                details="Aggregates are not implemented for one-to-many or many-to-many spreads.",
            )
        for term in node.order:
            n += 1
            alias = f"{node.agg_name}_{term.name}_{n}"
            item = Item()
            item.name = term.name
            item.path = term.path
            item.to_json = term.to_json
            item.alias = alias
            node.extra.append((term.qual, item))
            outer = Term()
            outer.name = alias
            outer.path = ()
            outer.direction = term.direction
            outer.nulls = term.nulls
            node.spread_order.append(outer)
        node.order = []
    for child in node.children:
        _order_spreads(child)


def read_tree(Query query not None, Catalog catalog not None, str schema not None,
              str name not None, *, bint filter_root=True, bint ranges=True,
              bint aggregates=False, max_rows=None, source=None, bint ranged=False):
    """The tree of one request.

    filter_root: filters without an embed path belong to the tree (not so on writes, where they
    choose the rows to change). ranges: limit and offset apply. ranged: the root has a range that
    the URL does not tell of (a Range header). aggregates: they are allowed.
    source: (SQL of the FROM item, alias) when the root is not read from its table. Raises ApiError
    PGRST108, 118, 123, 127, 200 and 201.
    """
    cdef Tree tree = Tree(catalog, schema, name, max_rows)
    if source is not None:
        tree.use_source(source[0], source[1])
    tree.shape(tree.root, query.select)
    tree.attach(query, filter_root, ranges)
    if ranged:
        tree.root.limited = True
    tree.relate(tree.root)
    tree.select(tree.root, False, aggregates)
    tree.sort(tree.root)
    if tree.root.children:
        _collect_exports(tree.root)
        _hoist(tree.root)
        _order_spreads(tree.root)
    return tree
