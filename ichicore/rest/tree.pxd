"""A read resolved against the catalog: one node for the target and one for each embed."""
from ichicore.rest.ast cimport Query
from ichicore.rest.catalog cimport Catalog, Junction, Relationship, Table

cdef class Item:
    cdef readonly str name          # column, or '*'
    cdef readonly tuple path        # of JsonStep
    cdef readonly bint to_json      # the column must become jsonb before a path applies
    cdef readonly bint full_row     # stands for the whole row (count() of a spread embed)
    cdef readonly str transform     # function that gives the column's JSON form
    cdef readonly str aggregate
    cdef readonly str aggregate_cast
    cdef readonly str cast
    cdef readonly str alias

cdef class Term:
    cdef readonly str name
    cdef readonly tuple path
    cdef readonly bint to_json
    cdef readonly str qual          # quoted qualifier, None for the node's own
    cdef readonly str direction
    cdef readonly str nulls

cdef class Export:
    cdef readonly str name          # column of a spread embed as its parent sees it
    cdef readonly str aggregate
    cdef readonly str aggregate_cast
    cdef readonly str alias

cdef enum Spread:
    NO_SPREAD = 0
    TO_ONE = 1
    TO_MANY = 2

cdef class Node:
    cdef readonly tuple target      # (schema, name) of the table read
    cdef readonly Table table       # None when the catalog does not know it
    cdef readonly str source        # SQL of the FROM item, without alias
    cdef readonly str alias         # None when the FROM item has none
    cdef readonly str through       # FROM item of the junction table, many-to-many only
    cdef readonly str qual          # quoted qualifier of its columns
    cdef readonly str label         # the embed's name as written
    cdef readonly str given         # its alias as written
    cdef readonly str hint
    cdef readonly str join
    cdef readonly bint wants_spread
    cdef readonly int spread
    cdef readonly int depth
    cdef readonly bint to_one
    cdef readonly Relationship relationship
    cdef readonly str agg           # quoted alias of the joined subquery
    cdef readonly str agg_name      # the same, unquoted
    cdef readonly list conditions   # join conditions, as SQL
    cdef readonly list fields       # ast.SelectField, as written
    cdef readonly list items        # of Item
    cdef readonly list children     # of Node
    cdef readonly list exports      # of Export: what a spread embed gives to its parent
    cdef readonly list filters      # of ast.Filter and ast.Logic
    cdef readonly list order_terms  # of ast.OrderTerm, as written
    cdef readonly list order        # of Term
    cdef readonly list extra        # (qual or None, Item): columns a to-many spread is ordered by
    cdef readonly list spread_order # of Term
    cdef readonly int limit_slot
    cdef readonly int offset_slot
    cdef readonly bint limited
    cdef Node child(self, str name)
    cpdef bint grouped(self)
    cpdef bint plain_star(self)

cdef class Tree:
    cdef readonly Node root
    cdef readonly Catalog catalog
    cdef readonly str schema
    cdef readonly object max_rows
    cdef readonly int nodes
    cdef public bint jsonb          # embeds are jsonb: can be grouped by, but reorders members
    cdef void shape(self, Node node, tuple children) except *
    cdef void attach(self, Query query, bint filter_root, bint ranges) except *
    cdef void relate(self, Node parent) except *
    cdef void join(self, Node parent, Node child, Relationship rel) except *
    cdef void join_by_junction(self, Node parent, Node child, Junction junction) except *
    cdef bint has_representation(self, Table table)
    cdef Item column_item(self, Table table, str name, tuple path)
    cdef void select(self, Node node, bint aggregated, bint allowed) except *
    cdef void sort(self, Node node) except *
