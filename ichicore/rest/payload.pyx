"""What a JSON request body is and which columns it names, without building its values.

The scan is strict (RFC 8259, UTF-8, bounded nesting): what it accepts, Postgres accepts, except
for texts that no jsonb can hold.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memchr, memcmp

import orjson

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* s, Py_ssize_t size, const char* errors)

cdef enum:
    MAX_DEPTH = 1000
    MAX_KEYS = 64       # compared in place; objects with more are compared as sets
    MOST_KEYS = 20000   # that are named: many more than a table has columns

cdef unsigned char PLAIN[256]       # bytes that may stand in a string as they are, ASCII only


cdef void fill_plain() noexcept:
    cdef int c
    for c in range(256):
        PLAIN[c] = 32 <= c < 0x80 and c != c'"' and c != c'\\'


fill_plain()


cdef inline const char* blanks(const char* p, const char* end) noexcept nogil:
    while p < end and (p[0] == c' ' or p[0] == c'\n' or p[0] == c'\r' or p[0] == c'\t'):
        p += 1
    return p


cdef inline bint is_hex(char c) noexcept nogil:
    return c'0' <= c <= c'9' or c'a' <= c <= c'f' or c'A' <= c <= c'F'


cdef const char* sequence(const char* p, const char* end) noexcept nogil:
    """Behind the UTF-8 sequence of two to four bytes at p, NULL when it is none."""
    cdef unsigned char a = <unsigned char>p[0]
    cdef unsigned char b
    cdef Py_ssize_t size
    cdef Py_ssize_t i
    if a < 0xC2 or a > 0xF4:
        return NULL
    size = 2 if a < 0xE0 else (3 if a < 0xF0 else 4)
    if end - p < size:
        return NULL
    b = <unsigned char>p[1]
    if (a == 0xE0 and b < 0xA0) or (a == 0xED and b > 0x9F) or (a == 0xF0 and b < 0x90) \
            or (a == 0xF4 and b > 0x8F):
        return NULL
    for i in range(1, size):
        if <unsigned char>p[i] & 0xC0 != 0x80:
            return NULL
    return p + size


cdef const char* string_end(const char* p, const char* end) noexcept nogil:
    """Behind the closing quote of the string that opens at p, NULL when it is none."""
    cdef unsigned char c
    p += 1
    while p < end:
        c = <unsigned char>p[0]
        if PLAIN[c]:
            p += 1
        elif c == c'"':
            return p + 1
        elif c == c'\\':
            if end - p < 2:
                return NULL
            c = <unsigned char>p[1]
            if c == c'u':
                if end - p < 6 or not (is_hex(p[2]) and is_hex(p[3]) and is_hex(p[4])
                                       and is_hex(p[5])):
                    return NULL
                p += 6
            elif c == c'"' or c == c'\\' or c == c'/' or c == c'b' or c == c'f' or c == c'n' \
                    or c == c'r' or c == c't':
                p += 2
            else:
                return NULL
        elif c >= 0x80:
            p = sequence(p, end)
            if p == NULL:
                return NULL
        else:
            return NULL
    return NULL


cdef inline const char* digits(const char* p, const char* end) noexcept nogil:
    while p < end and c'0' <= p[0] <= c'9':
        p += 1
    return p


cdef const char* number_end(const char* p, const char* end) noexcept nogil:
    cdef const char* start
    if p[0] == c'-':
        p += 1
    start = p
    p = digits(p, end)
    if p == start or (start[0] == c'0' and p - start > 1):
        return NULL
    if p < end and p[0] == c'.':
        start = p + 1
        p = digits(start, end)
        if p == start:
            return NULL
    if p < end and (p[0] == c'e' or p[0] == c'E'):
        p += 1
        if p < end and (p[0] == c'+' or p[0] == c'-'):
            p += 1
        start = p
        p = digits(p, end)
        if p == start:
            return NULL
    return p


cdef const char* scalar_end(const char* p, const char* end) noexcept nogil:
    if p == end:
        return NULL
    if p[0] == c'"':
        return string_end(p, end)
    if p[0] == c't':
        return p + 4 if end - p >= 4 and memcmp(p, b"true", 4) == 0 else NULL
    if p[0] == c'f':
        return p + 5 if end - p >= 5 and memcmp(p, b"false", 5) == 0 else NULL
    if p[0] == c'n':
        return p + 4 if end - p >= 4 and memcmp(p, b"null", 4) == 0 else NULL
    return number_end(p, end)


cdef const char* value_end(const char* p, const char* end) noexcept nogil:
    """Behind the value at p (blanks before it skipped), NULL when it is none or too deep."""
    cdef unsigned char is_object[MAX_DEPTH]
    cdef int depth = 0
    p = blanks(p, end)
    while True:
        # A value is due at p.
        if p == end:
            return NULL
        if p[0] == c'{' or p[0] == c'[':
            if depth == MAX_DEPTH:
                return NULL
            is_object[depth] = p[0] == c'{'
            depth += 1
            p = blanks(p + 1, end)
            if p == end:
                return NULL
            if p[0] == (c'}' if is_object[depth - 1] else c']'):
                depth -= 1
                p += 1
            else:
                if is_object[depth - 1]:
                    p = member(p, end)
                    if p == NULL:
                        return NULL
                continue
        else:
            p = scalar_end(p, end)
            if p == NULL:
                return NULL
        # A value has ended at p.
        while True:
            if depth == 0:
                return p
            p = blanks(p, end)
            if p == end:
                return NULL
            if p[0] == c',':
                p = blanks(p + 1, end)
                if is_object[depth - 1]:
                    p = member(p, end)
                    if p == NULL:
                        return NULL
                break
            if p[0] != (c'}' if is_object[depth - 1] else c']'):
                return NULL
            depth -= 1
            p += 1


cdef const char* member(const char* p, const char* end) noexcept nogil:
    """Behind the name, the colon and the blanks of an object's member, NULL when it is none."""
    if p == end or p[0] != c'"':
        return NULL
    p = string_end(p, end)
    if p == NULL:
        return NULL
    p = blanks(p, end)
    if p == end or p[0] != c':':
        return NULL
    return blanks(p + 1, end)


cdef struct Key:
    const char* at      # behind the opening quote
    Py_ssize_t size     # up to the closing one


cdef str key_text(const char* p, Py_ssize_t size):
    if memchr(p, c'\\', <size_t>size) != NULL:
        # Raises for half of a surrogate pair, which is no text.
        return orjson.loads(b'"' + p[:size] + b'"')
    return PyUnicode_DecodeUTF8(p, size, NULL)


cdef const char* ahead(const char* p, const char* end, const Key* keys, int n,
                       bint uniform) noexcept nogil:
    """From the element at p to the first that is the last one, is broken or, of uniform objects,
    has other keys or too many."""
    cdef Key others[MAX_KEYS]
    cdef const char* start
    cdef int m
    while True:
        start = p
        if uniform:
            p = keys_of(p, end, others, &m)
            if p == NULL or not same(keys, n, others, m):
                return start
        else:
            p = value_end(p, end)
            if p == NULL:
                return start
        p = blanks(p, end)
        if p == end or p[0] != c',':
            return start
        p = blanks(p + 1, end)


cdef const char* keys_of(const char* p, const char* end, Key* keys, int* count) noexcept nogil:
    """Walk the object at p; its keys into `keys`. NULL when it is no object. count: MAX_KEYS + 1
    when there are too many."""
    cdef const char* start
    count[0] = 0
    if p == end or p[0] != c'{':
        return NULL
    p = blanks(p + 1, end)
    if p < end and p[0] == c'}':
        return p + 1
    while True:
        start = p
        p = member(p, end)
        if p == NULL:
            return NULL
        if count[0] < MAX_KEYS:
            keys[count[0]].at = start + 1
            keys[count[0]].size = string_end(start, end) - start - 2
            count[0] += 1
        else:
            count[0] = MAX_KEYS + 1
        p = value_end(p, end)
        if p == NULL:
            return NULL
        p = blanks(p, end)
        if p == end:
            return NULL
        if p[0] == c'}':
            return p + 1
        if p[0] != c',':
            return NULL
        p = blanks(p + 1, end)


cdef bint same(const Key* a, int n, const Key* b, int m) noexcept nogil:
    """Whether the same keys stand in the same order, byte for byte."""
    cdef int i
    if n != m or n > MAX_KEYS:
        return False
    for i in range(n):
        if a[i].size != b[i].size or memcmp(a[i].at, b[i].at, <size_t>a[i].size) != 0:
            return False
    return True


cdef tuple names_of(const char* p, const char* end):
    """Names of the object at p, which has been walked, each once, in order of appearance; of the
    first MOST_KEYS members."""
    cdef dict found = {}
    cdef const char* start
    cdef int count = 0
    p = blanks(p + 1, end)
    while p[0] != c'}' and count < MOST_KEYS:
        start = p
        p = member(p, end)
        found[key_text(start + 1, string_end(start, end) - start - 2)] = None
        count += 1
        p = blanks(value_end(p, end), end)
        if p[0] == c',':
            p = blanks(p + 1, end)
    return tuple(found)


def scan(bytes body not None):
    """(kind, keys, uniform) of a JSON text, or None when it is no JSON.

    kind: object, array or scalar. keys: of the object, or of the first object of the array, each
    once, in order of appearance. uniform: the array holds objects only, all with these keys.
    """
    try:
        return scan_text(body)
    except orjson.JSONDecodeError:
        return None


cdef tuple scan_text(bytes body):
    cdef const char* p = PyBytes_AS_STRING(body)
    cdef const char* end = p + len(body)
    cdef const char* start
    cdef const char* first = NULL
    cdef Key keys[MAX_KEYS]
    cdef Key others[MAX_KEYS]
    cdef int n = 0
    cdef int m = 0
    cdef frozenset wanted = None
    cdef bint uniform = True
    p = blanks(p, end)
    if p == end:
        return None
    start = p
    if p[0] != c'[':
        with nogil:
            p = value_end(p, end)
        if p == NULL or blanks(p, end) != end:
            return None
        if start[0] == c'{':
            return "object", names_of(start, end), True
        return "scalar", (), False
    p = blanks(p + 1, end)
    if p < end and p[0] == c']':
        return ("array", (), True) if blanks(p + 1, end) == end else None
    while True:
        if first != NULL or not uniform:
            with nogil:
                p = ahead(p, end, keys, n, uniform)
        start = p
        if p < end and p[0] == c'{' and uniform:
            if first == NULL:
                first = p
                p = keys_of(p, end, keys, &n)
            else:
                p = keys_of(p, end, others, &m)
                if p != NULL and not same(keys, n, others, m):
                    if wanted is None:
                        wanted = frozenset(names_of(first, end))
                    uniform = frozenset(names_of(start, end)) == wanted
        else:
            uniform = False
            p = value_end(p, end)
        if p == NULL:
            return None
        p = blanks(p, end)
        if p == end:
            return None
        if p[0] == c']':
            break
        if p[0] != c',':
            return None
        p = blanks(p + 1, end)
    if blanks(p + 1, end) != end:
        return None
    return "array", () if first == NULL else names_of(first, end), uniform
