# distutils: libraries = pq
"""The JSON array of one result's rows, in memory or, once it is large, in a file."""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from ichicore.buffer cimport jb_byte, jb_free, jb_init
from ichicore.pg.libpq cimport PJ_NO_MEMORY, PGresult, PQntuples
from ichicore.rest.rows cimport RowFormat

from ichicore.pg.errors import PgError

# Bodies stay in memory up to SPILL_AT; beyond it they go to a file in pieces of SPILL_PIECE.
cdef size_t SPILL_AT = 4 << 20
cdef size_t SPILL_PIECE = 256 << 10
cdef size_t KEPT = 1 << 20      # capacity that the buffer keeps between bodies


cdef object unwritable(object failure):
    """The error of a group whose body could not be written to its file."""
    return PgError(
        "53100", "ERROR", "a large result could not be written to a temporary file",
        str(failure.strerror),
    )


@cython.final
cdef class Body:
    """One body after the other, in one buffer. spool: called without arguments for a file-like
    object with write(bytes) and close() when a body grows large."""

    def __cinit__(self, object spool):
        jb_init(&self.buf)
        self.factory = spool

    def __dealloc__(self):
        jb_free(&self.buf)

    cdef bint begun(self) noexcept:
        return self.form is not None

    cdef int begin(self, RowFormat form) except -1:
        self.form = form
        self.rows = 0
        self.buf.len = 0
        if jb_byte(&self.buf, b'['):
            raise MemoryError
        return 0

    cdef object append(self, const PGresult *res, int index):
        """Adds the rows of a result of statement `index`. The error that makes the body useless,
        or None."""
        cdef int row, rc = 0, count = PQntuples(res)
        cdef RowFormat form = self.form
        cdef object error = None
        for row in range(count):
            if self.rows and jb_byte(&self.buf, b','):
                raise MemoryError
            rc = form.append(&self.buf, res, row)
            if rc:
                break
            self.rows += 1
            if self.buf.len >= SPILL_PIECE and (
                    self.spool is not None or self.buf.len >= SPILL_AT):
                error = self.spill() or error
        if rc == PJ_NO_MEMORY:
            raise MemoryError
        if rc:
            return PgError("XX000", "ERROR", "a value came in an unknown binary form",
                           statement=index)
        return error

    cdef object spill(self):
        """Writes what is in memory to the file. The error, or None."""
        cdef object error = None
        if self.spool is None:
            self.spool = self.factory()
            self.spilled = 0
        try:
            self.spool.write(PyBytes_FromStringAndSize(self.buf.data, self.buf.len))
        except OSError as failure:
            error = unwritable(failure)
        self.spilled += self.buf.len
        self.buf.len = 0
        if self.buf.cap > 2 * SPILL_AT:
            jb_free(&self.buf)
        return error

    cdef object end(self):
        """The body as bytes or as the file, which is the caller's from now on. Raises OSError when
        the file cannot be written."""
        cdef object body
        if jb_byte(&self.buf, b']'):
            raise MemoryError
        self.size = self.buf.len
        body = PyBytes_FromStringAndSize(self.buf.data, self.buf.len)
        if self.spool is not None:
            self.spool.write(body)
            self.size += self.spilled
            body = self.spool
            self.spool = None
        self.drop()
        return body

    cdef int drop(self) except -1:
        """Forgets a body that was begun."""
        self.form = None
        if self.spool is not None:
            self.spool.close()
            self.spool = None
        self.buf.len = 0
        if self.buf.cap > KEPT:
            jb_free(&self.buf)
        return 0
