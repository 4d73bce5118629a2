"""What the executor uses of bodies."""
from ichicore.buffer cimport jb_buf
from ichicore.pg.libpq cimport PGresult
from ichicore.rest.rows cimport RowFormat

cdef object unwritable(object failure)


cdef class Body:
    cdef jb_buf buf
    cdef object factory
    cdef object spool
    cdef Py_ssize_t spilled
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t size   # bytes of the body that ended last
    cdef RowFormat form
    cdef bint begun(self) noexcept
    cdef int begin(self, RowFormat form) except -1
    cdef object append(self, const PGresult *res, int index)
    cdef object end(self)
    cdef int drop(self) except -1
    cdef object spill(self)
