from ichicore.rest.sql cimport Writer
from ichicore.rest.tree cimport Item, Node, Tree

cdef void write_item(Writer w, str qual, Item item) except *
cpdef void write_select(Writer w, Tree tree, Node node) except *
cpdef void write_count(Writer w, Tree tree, Node node) except *
