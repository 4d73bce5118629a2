# distutils: sources = csrc/jsontext.c
"""A CSV body (RFC 4180, any line ends) as a JSON array of objects, in one pass that lets go of the
interpreter's lock."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp

from ichicore.buffer cimport jb_buf, jb_byte, jb_free, jb_init, jb_put

cdef extern from "jsontext.h" nogil:
    int jt_string(jb_buf *out, const unsigned char *p, size_t len)

cdef extern from "utf8.h" nogil:
    unsigned int utf8_check(unsigned int state, const unsigned char *text, size_t size)

cdef enum:
    QUOTE = 1       # a quote inside a value without quotes, or one that is not closed
    LENGTHS = 2     # a line of another length
    MEMORY = 3
    ENCODING = 4

UNEVEN = "All lines must have same number of fields"
QUOTES = "parse error (Failed reading: a quote inside a value without quotes)"
ENDED = "parse error (not enough input)"
NOT_UTF8 = "The CSV text is not UTF-8"


cdef struct Value:
    const char* at
    size_t size


cdef struct Span:       # of the keys' text
    size_t start
    size_t size


cdef const char* value(const char* p, const char* end, jb_buf* scratch, Value* found,
                       int* failed) noexcept nogil:
    """Behind the value at p, NULL when it is none. It lies in the body, or in `scratch` when quotes
    stand in it."""
    cdef const char* start
    cdef const char* quote
    cdef bint copied = False
    if p == end or p[0] != c'"':
        start = p
        while p < end and p[0] != c',' and p[0] != c'\n' and p[0] != c'\r':
            if p[0] == c'"':
                failed[0] = QUOTE
                return NULL
            p += 1
        found.at = start
        found.size = p - start
        return p
    start = p = p + 1
    scratch.len = 0
    while True:
        quote = <const char*> memchr(p, c'"', <size_t> (end - p))
        if quote == NULL:
            failed[0] = QUOTE
            return NULL
        if quote + 1 == end or quote[1] != c'"':
            break
        if jb_put(scratch, start, <size_t> (quote + 1 - start)):
            failed[0] = MEMORY
            return NULL
        copied = True
        start = p = quote + 2
    if copied:
        if jb_put(scratch, start, <size_t> (quote - start)):
            failed[0] = MEMORY
            return NULL
        found.at = scratch.data
        found.size = scratch.len
    else:
        found.at = start
        found.size = quote - start
    p = quote + 1
    if p < end and p[0] != c',' and p[0] != c'\n' and p[0] != c'\r':
        failed[0] = QUOTE
        return NULL
    return p


cdef inline const char* behind_line(const char* p, const char* end) noexcept nogil:
    """Behind the line's end at p and the empty lines after it."""
    while p < end and (p[0] == c'\n' or p[0] == c'\r'):
        p += 1
    return p


cdef int put_value(jb_buf* out, Value* found) noexcept nogil:
    if found.size == 4 and memcmp(found.at, b"NULL", 4) == 0:
        return jb_put(out, b"null", 4)
    return jt_string(out, <const unsigned char*> found.at, found.size)


cdef int rows(const char* p, const char* end, const char* keys, const Span* spans, int columns,
              jb_buf* out, jb_buf* scratch, int* length) noexcept nogil:
    """All lines from p on as objects with commas in between; 0 or what is wrong. length: members
    of each, -1 when there is none."""
    cdef Value found
    cdef int failed = MEMORY
    cdef int n
    length[0] = -1
    while p < end:
        if jb_put(out, b",{", 2) if length[0] >= 0 else jb_byte(out, c'{'):
            return MEMORY
        n = 0
        while True:
            p = value(p, end, scratch, &found, &failed)
            if p == NULL:
                return failed
            if n < columns:  # what is beyond them is not looked at
                if (n and jb_byte(out, c',')) or jb_put(
                        out, keys + spans[n].start, spans[n].size) or put_value(out, &found):
                    return MEMORY
                n += 1
            if p == end or p[0] != c',':
                break
            p += 1
        if jb_byte(out, c'}'):
            return MEMORY
        if length[0] < 0:
            length[0] = n
        elif length[0] != n:
            return LENGTHS
        p = behind_line(p, end)
    return 0


def to_json(bytes body not None):
    """(names, JSON): the names that the first line gives, each once, and the lines after it as an
    array of objects. NULL is null, every other value a string. ValueError with what is wrong."""
    cdef const char* p = PyBytes_AS_STRING(body)
    cdef const char* end = p + len(body)
    cdef jb_buf out, scratch, keys
    cdef Value found
    cdef Span* spans = NULL
    cdef list names = []
    cdef list ends = []
    cdef int failed = 0
    cdef int length = -1
    cdef int columns
    cdef int i
    jb_init(&out)
    jb_init(&scratch)
    jb_init(&keys)
    try:
        with nogil:
            if utf8_check(0, <const unsigned char*> p, <size_t> (end - p)):
                failed = ENCODING
        p = behind_line(p, end)
        if not failed and p == end:
            raise ValueError(ENDED)
        while not failed:
            p = value(p, end, &scratch, &found, &failed)
            if p == NULL:
                break
            names.append(found.at[:found.size].decode())
            ends.append(keys.len)
            if jt_string(&keys, <const unsigned char*> found.at, found.size) or jb_byte(
                    &keys, c':'):
                raise MemoryError
            if p == end or p[0] != c',':
                break
            p += 1
        if not failed:
            if p == end:  # the header is a line, which ends
                raise ValueError(ENDED)
            columns = <int> len(names)
            spans = <Span*> malloc(<size_t> columns * sizeof(Span))
            if spans == NULL:
                raise MemoryError
            ends.append(keys.len)
            for i in range(columns):
                spans[i].start = ends[i]
                spans[i].size = ends[i + 1] - ends[i]
            with nogil:
                if jb_byte(&out, c'['):
                    failed = MEMORY
                else:
                    failed = rows(behind_line(p, end), end, keys.data, spans, columns, &out,
                                  &scratch, &length)
                if not failed and jb_byte(&out, c']'):
                    failed = MEMORY
        if failed == MEMORY:
            raise MemoryError
        if failed:
            raise ValueError(NOT_UTF8 if failed == ENCODING else QUOTES if failed == QUOTE
                             else UNEVEN)
        return (
            tuple(dict.fromkeys(names[:length] if length > 0 else ())),
            PyBytes_FromStringAndSize(out.data, <Py_ssize_t> out.len),
        )
    finally:
        free(spans)
        jb_free(&out)
        jb_free(&scratch)
        jb_free(&keys)
