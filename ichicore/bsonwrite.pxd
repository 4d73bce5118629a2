"""BSON written into a growable buffer. Each raises when memory is exhausted."""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from ichicore.buffer cimport jb_buf, jb_byte, jb_put, jb_room


cdef inline int bw_raw(jb_buf *out, const void *p, size_t n) except -1:
    if jb_put(out, p, n):
        raise MemoryError
    return 0


cdef inline int bw_head(jb_buf *out, int type, const char *key, size_t n) except -1:
    """Type and name of an element; its value follows."""
    cdef char *o
    if jb_room(out, n + 2):
        raise MemoryError
    o = out.data + out.len
    o[0] = <char> type
    memcpy(o + 1, key, n)
    o[n + 1] = 0
    out.len += n + 2
    return 0


cdef inline size_t bw_open(jb_buf *out) except 0x7FFFFFFFFFFFFFFF:
    """Begins a document; what bw_close needs."""
    cdef size_t at = out.len
    if jb_room(out, 4):
        raise MemoryError
    out.len += 4
    return at


cdef inline int bw_close(jb_buf *out, size_t at) except -1:
    cdef int32_t size
    if jb_byte(out, 0):
        raise MemoryError
    if out.len - at > 0x7FFFFFF0:
        raise OverflowError("a document beyond 2 GiB")
    size = <int32_t> (out.len - at)
    memcpy(out.data + at, &size, 4)
    return 0


cdef inline int bw_int32(jb_buf *out, const char *key, size_t n, int32_t v) except -1:
    bw_head(out, 0x10, key, n)
    return bw_raw(out, &v, 4)


cdef inline int bw_int64(jb_buf *out, const char *key, size_t n, int64_t v) except -1:
    bw_head(out, 0x12, key, n)
    return bw_raw(out, &v, 8)


cdef inline int bw_true(jb_buf *out, const char *key, size_t n) except -1:
    bw_head(out, 0x08, key, n)
    return bw_raw(out, b"\1", 1)


cdef inline int bw_text(
    jb_buf *out, const char *key, size_t n, const char *text, size_t size
) except -1:
    cdef int32_t shown = <int32_t> size + 1
    bw_head(out, 0x02, key, n)
    bw_raw(out, &shown, 4)
    bw_raw(out, text, size)
    return bw_raw(out, b"\0", 1)
