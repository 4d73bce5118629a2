"""What the executor reads of results besides rows."""
from ichicore.pg.libpq cimport PGresult

cdef str text_or_none(const char *p)
cdef object error_of(const PGresult *res, int index)
cdef Py_ssize_t number(const char *digits) noexcept
cdef bint is_stale(object error, const PGresult *res) except -1
