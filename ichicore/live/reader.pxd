"""Reads a message of the server: big-endian numbers, and texts that end with a zero byte."""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr


cdef struct Reader:
    const unsigned char *p
    const unsigned char *end


cdef inline int need(Reader *r, Py_ssize_t n) except -1:
    if r.end - r.p < n:
        raise ValueError("a message ends early")
    return 0


cdef inline uint64_t u64(Reader *r) except? 0:
    cdef uint64_t v = 0
    cdef int i
    need(r, 8)
    for i in range(8):
        v = (v << 8) | r.p[i]
    r.p += 8
    return v


cdef inline uint32_t u32(Reader *r) except? 0:
    cdef uint32_t v
    need(r, 4)
    v = (<uint32_t> r.p[0] << 24) | (<uint32_t> r.p[1] << 16) | (<uint32_t> r.p[2] << 8) | r.p[3]
    r.p += 4
    return v


cdef inline int u16(Reader *r) except? 0:
    cdef int v
    need(r, 2)
    v = (r.p[0] << 8) | r.p[1]
    r.p += 2
    return v


cdef inline int u8(Reader *r) except? 0:
    cdef int v
    need(r, 1)
    v = r.p[0]
    r.p += 1
    return v


cdef inline str name_of(Reader *r):
    """A text that ends with a zero byte."""
    cdef const unsigned char *end = <const unsigned char *> memchr(r.p, 0, r.end - r.p)
    cdef str found
    if end is NULL:
        raise ValueError("a name does not end")
    found = PyUnicode_DecodeUTF8(<const char *> r.p, end - r.p, NULL)
    r.p = end + 1
    return found
