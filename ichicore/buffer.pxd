"""A buffer that grows, and an owner for it."""

cdef extern from "jsonbuf.h" nogil:
    ctypedef struct jb_buf:
        char *data
        size_t len
        size_t cap
    void jb_init(jb_buf *b)
    void jb_free(jb_buf *b)
    int jb_room(jb_buf *b, size_t more)
    int jb_put(jb_buf *b, const void *p, size_t n)
    int jb_byte(jb_buf *b, char c)


cdef class Buffer:
    cdef jb_buf buf
    cdef bytes done(self)
