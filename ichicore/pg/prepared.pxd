"""What the executor uses of prepared statements."""
from ichicore.pg.group cimport Described


cdef class Prepared:
    cdef bytes name
    cdef tuple key
    cdef bint there                 # the server has confirmed it
    cdef unsigned long long used
    cdef Described described


cdef class PreparedCache:
    cdef dict known                 # key -> Prepared
    cdef list garbage               # names of statements to deallocate
    cdef Py_ssize_t limit
    cdef bint nameless
    cdef unsigned long long tick
    cdef unsigned long long serial
    cdef Prepared find(self, tuple key, list own)
    cdef Prepared make(self, tuple key)
    cdef int keep(self, Prepared prepared) except -1
    cdef void touch(self, Prepared prepared) noexcept
    cdef int confirm(self, Prepared prepared) except -1
    cdef int refused(self, Prepared prepared) except -1
    cdef Prepared take(self, tuple key)
    cdef int rename(self, Prepared prepared, tuple key) except -1
    cdef int discard(self, Prepared prepared) except -1
    cdef int forget(self, str sql) except -1
    cdef int evict(self) except -1
    cdef int clear(self) except -1
