from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcmp

from ichicore.buffer cimport jb_buf

cdef extern from "jsontape.h" nogil:
    enum:
        TJ_NULL
        TJ_FALSE
        TJ_TRUE
        TJ_INT
        TJ_DOUBLE
        TJ_STRING
        TJ_ARRAY
        TJ_OBJECT
    enum:
        TJ_OK
        TJ_NO_MEMORY
        TJ_SYNTAX
        TJ_DEEP
        TJ_TWICE
        TJ_NUMBER
        TJ_MANY
    ctypedef union tj_value:
        int64_t i
        double d
        const char *text
    ctypedef struct tj_node:
        const char *key
        tj_value v
        uint32_t key_len
        uint32_t len
        uint32_t next
        uint32_t start
        uint32_t end
        uint8_t type
    ctypedef struct tj_tape:
        tj_node *nodes
        uint32_t used
        uint32_t at
    void tj_free(tj_tape *t)

cdef extern from "jsontape.h":
    int tj_parse(tj_tape *t, const char *source, size_t len)

cdef enum:
    INT32_MIN = -0x80000000
    INT32_MAX = 0x7FFFFFFF


cdef inline bint same(const char *text, size_t n, const char *other, size_t m) noexcept nogil:
    return n == m and memcmp(text, other, n) == 0


cdef inline bint is_hex_id(const tj_node *node) noexcept nogil:
    cdef uint32_t i
    cdef char c
    if node.type != TJ_STRING or node.len != 24:
        return False
    for i in range(24):
        c = node.v.text[i]
        if not (c'0' <= c <= c'9' or c'a' <= c <= c'f' or c'A' <= c <= c'F'):
            return False
    return True


cdef inline unsigned char digit(char c) noexcept nogil:
    if c <= c'9':
        return <unsigned char> (c - c'0')
    return <unsigned char> ((c | 32) - c'a' + 10)


cdef inline size_t number_text(char *digits, uint32_t v) noexcept nogil:
    """A number in decimal digits; how many."""
    cdef char tmp[16]
    cdef size_t n = 0
    cdef size_t i
    while True:
        tmp[n] = <char> (c'0' + v % 10)
        n += 1
        v //= 10
        if v == 0:
            break
    for i in range(n):
        digits[i] = tmp[n - 1 - i]
    return n


cdef class Tape:
    cdef tj_tape tape
    cdef jb_buf out
    cdef bytes body
    cdef object caps
    cdef list reads
    cdef list writes
    cdef list terms
    cdef list array_filters
    cdef list named_filters
    cdef set named
    cdef bint expression_used
    cdef bint upsert
    cdef int stages

    cdef int no_json(self, int found) except -1
    cdef str where(self, uint32_t index)
    cdef int bad(self, uint32_t index, str message) except -1
    cdef int missing(self, uint32_t parent, str name, str message) except -1
    cdef int forbidden(self, uint32_t index) except -1
    cdef str text(self, const char *p, size_t n)
    cdef str key(self, uint32_t index)
    cdef str string(self, uint32_t index)
    cdef bint dollar(self, uint32_t index) noexcept
    cdef bint has_operator(self, uint32_t index) noexcept
    cdef bint is_extended(self, uint32_t index)
    cdef int64_t find(self, uint32_t index, const char *name, size_t n) noexcept
    cdef object python(self, uint32_t index)
    cdef int head(self, int type, const char *key, size_t n) except -1
    cdef size_t open(self) except 0x7FFFFFFFFFFFFFFF
    cdef int close(self, size_t at) except -1
    cdef int raw(self, const void *p, size_t n) except -1
    cdef int int32(self, const char *key, size_t n, int32_t v) except -1
    cdef int utf8(self, const char *key, size_t n, const char *p, uint32_t size) except -1
    cdef int identifier(self, uint32_t index, const char *key, size_t n) except -1
    cdef int encoded(self, object value, const char *key, size_t n) except -1
    cdef bytes taken(self, size_t start)
    cdef str path(self, uint32_t index, const char *p, size_t n, bint positions)
    cdef int refuse_part(self, uint32_t index, const char *p, size_t n) except -1
    cdef bint position(self, const char *p, size_t n) noexcept
    cdef int name(self, uint32_t index) except -1
    cdef int deep(self, uint32_t index, int depth) except -1
    cdef int value(self, uint32_t index, const char *key, size_t n, int depth) except -1
    cdef int items(self, uint32_t index, int depth) except -1
    cdef bint extended(self, uint32_t index, const char *key, size_t n) except -1
    cdef object number_value(self, uint32_t index)
    cdef int number(self, uint32_t index, const char *key, size_t n) except -1
    cdef int32_t integer(self, uint32_t index, int64_t low) except? -1
    cdef int direction(self, uint32_t index) except 0
    cdef bytes document(self, uint32_t index, bint insert)
    cdef int large(self, uint32_t index) except -1
