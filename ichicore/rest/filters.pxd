from ichicore.rest.ast cimport Filter
from ichicore.rest.catalog cimport Catalog, Table
from ichicore.rest.sql cimport Writer
from ichicore.rest.tree cimport Node

cdef class Scope:
    # What the names of a condition refer to.
    cdef Catalog catalog
    cdef Table table
    cdef str qual
    cdef Node node

cdef Scope scope_of(Catalog catalog, Table table, str qual, Node node)
cdef void write_column(Writer w, str qual, str name)
cdef void write_path(Writer w, tuple path)
cdef void write_field(Writer w, str qual, str name, tuple path, bint to_json)
cdef void write_conditions(Writer w, Scope scope, list conditions) except *
cdef void write_filter(Writer w, Scope scope, Filter condition) except *
