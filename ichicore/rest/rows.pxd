from ichicore.buffer cimport jb_buf
from ichicore.pg.libpq cimport PGresult, pj_codec, pj_column


cdef class TypeTable:
    cdef dict _known                      # oid -> _Codec, or None when Postgres has to write it
    cdef const pj_codec *find(self, unsigned int oid) except? NULL
    cpdef bint knows(self, unsigned int oid)


cdef class RowFormat:
    cdef readonly tuple columns           # names
    cdef readonly tuple oids
    cdef pj_column *_columns
    cdef unsigned int *_oids
    cdef int _count
    cdef bint _strip
    cdef list _keep                       # owners of the keys and codecs
    cdef bint matches(self, const PGresult *res) noexcept
    cdef int append(self, jb_buf *out, const PGresult *res, int row) noexcept nogil
