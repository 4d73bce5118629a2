"""A buffer that ends with its owner."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize


@cython.freelist(8)
cdef class Buffer:
    """What is written into `buf` by its owner, or by a class made from this one."""

    def __cinit__(self):
        jb_init(&self.buf)

    def __dealloc__(self):
        jb_free(&self.buf)

    cdef bytes done(self):
        """What has been written."""
        return PyBytes_FromStringAndSize(self.buf.data, self.buf.len)
