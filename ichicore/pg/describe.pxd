"""What the executor uses to describe statements."""
from ichicore.pg.group cimport Described, Shared, Statement
from ichicore.pg.libpq cimport PGresult
from ichicore.rest.rows cimport TypeTable

cdef bytes TYPE_QUERY

cdef list columns_of(const PGresult *res)
cdef bytes unknown_types(TypeTable types, list columns)
cdef int learn_types(TypeTable types, list columns, const PGresult *res) except -1
cdef Described describe(Shared shared, Statement statement, list columns, unsigned int defaults)
