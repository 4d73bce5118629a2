"""The request target: percent-decoding and the canonical form of a query string."""
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcmp

from ichicore.http.escapes cimport hex_digit, unescape

cdef extern from "Python.h":
    str PyUnicode_DecodeASCII(const char* s, Py_ssize_t size, const char* errors)
    bytes PyBytes_FromStringAndSize(const char* s, Py_ssize_t size)

cdef enum:
    STACK_PAIRS = 32
    STACK_BYTES = 1024

cdef unsigned char SAFE[256]


cdef void fill_safe() noexcept:
    cdef int c
    for c in range(256):
        SAFE[c] = 0
    for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~":
        SAFE[c] = 1


fill_safe()

cdef struct Pair:
    const char* key         # decoded
    Py_ssize_t key_size
    const char* value       # raw
    Py_ssize_t value_size


cdef inline char* put(char* out, unsigned char c) noexcept nogil:
    if SAFE[c]:
        out[0] = <char>c
        return out + 1
    out[0] = c'%'
    out[1] = (<const char*>b"0123456789ABCDEF")[c >> 4]
    out[2] = (<const char*>b"0123456789ABCDEF")[c & 15]
    return out + 3


cdef inline char* put_raw(char* out, const char* p, Py_ssize_t size) noexcept nogil:
    """Decode and encode again in one go."""
    cdef Py_ssize_t i = 0
    cdef int high, low
    cdef unsigned char c
    while i < size:
        c = <unsigned char>p[i]
        i += 1
        if c == c'+':
            c = 32
        elif c == c'%' and i + 1 < size:
            high = hex_digit(<unsigned char>p[i])
            low = hex_digit(<unsigned char>p[i + 1])
            if high >= 0 and low >= 0:
                c = <unsigned char>(high * 16 + low)
                i += 2
        out = put(out, c)
    return out


cdef inline int compare(const Pair* a, const Pair* b) noexcept nogil:
    cdef Py_ssize_t shared = a.key_size if a.key_size < b.key_size else b.key_size
    cdef int order = memcmp(a.key, b.key, <size_t>shared)
    if order != 0:
        return order
    return (a.key_size > b.key_size) - (a.key_size < b.key_size)


cdef Py_ssize_t split(const char* raw, const char* end, Pair* found, char* keys,
                      Py_ssize_t most) noexcept nogil:
    """The pairs sorted by key, those of one key in order; -1 when there are more than `most`."""
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t at
    cdef const char* stop
    cdef const char* equal
    cdef Pair new
    while raw < end:
        equal = NULL
        stop = raw
        while stop < end and stop[0] != c'&' and stop[0] != c';':
            if stop[0] == c'=' and equal == NULL:
                equal = stop
            stop += 1
        if count == most:
            return -1
        if equal == NULL:
            equal = stop
        new.key = keys
        new.key_size = unescape(raw, equal - raw, keys)
        keys += new.key_size
        new.value = equal + 1
        new.value_size = stop - equal - 1 if stop > equal else 0
        at = count
        while at > 0 and compare(&found[at - 1], &new) > 0:
            found[at] = found[at - 1]
            at -= 1
        found[at] = new
        count += 1
        raw = stop + 1
    return count


cdef char* write(const Pair* found, Py_ssize_t count, char* out) noexcept nogil:
    cdef Py_ssize_t n, i
    for n in range(count):
        if n > 0:
            if compare(&found[n - 1], &found[n]) == 0:
                out[0] = c','
                out = put_raw(out + 1, found[n].value, found[n].value_size)
                continue
            out[0] = c'&'
            out += 1
        for i in range(found[n].key_size):
            out = put(out, <unsigned char>found[n].key[i])
        out[0] = c'='
        out = put_raw(out + 1, found[n].value, found[n].value_size)
    return out


def canonical(bytes raw):
    """The query string sorted by key and encoded anew; values of one key joined by commas."""
    cdef Py_ssize_t size = len(raw)
    cdef const char* start = PyBytes_AS_STRING(raw)
    cdef const char* end = start + size
    cdef Pair few[STACK_PAIRS]
    cdef char small[4 * STACK_BYTES]
    cdef Pair* found = few
    cdef char* room = small
    cdef char* out
    cdef Py_ssize_t count
    cdef Py_ssize_t most = STACK_PAIRS
    if size and start[0] == c'?':
        start += 1
        size -= 1
    if size == 0:
        return ""
    # Keys decoded: size. Written: three bytes for one, and an equals sign for a bare key.
    if 5 * size + 8 > 4 * STACK_BYTES:
        room = <char*>PyMem_Malloc(<size_t>(5 * size + 8))
        if room == NULL:
            raise MemoryError
    try:
        count = split(start, end, found, room, most)
        if count < 0:
            return many(raw)
        out = write(found, count, room + size)
        return PyUnicode_DecodeASCII(room + size, out - room - size, NULL)
    finally:
        if room != small:
            PyMem_Free(room)


cdef str many(bytes raw):
    """As canonical, for more pairs than an insertion sort should see."""
    cdef dict grouped = {}
    cdef list pieces = raw.removeprefix(b"?").replace(b";", b"&").split(b"&")
    if pieces[len(pieces) - 1] == b"":
        pieces.pop()
    for piece in pieces:
        key, _, value = piece.partition(b"=")
        grouped.setdefault(decode(key), []).append(encode(decode(value)))
    return "&".join([f"{encode(key)}={','.join(grouped[key])}" for key in sorted(grouped)])


def decode(bytes raw not None):
    """Percent-decoded bytes, + as a space; an incomplete escape stays as it is."""
    cdef Py_ssize_t size = len(raw)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    cdef Py_ssize_t n = unescape(PyBytes_AS_STRING(raw), size, PyBytes_AS_STRING(out))
    return out if n == size else out[:n]


def encode(bytes raw not None):
    """Percent-encoded text: letters, digits and -_.~ stay."""
    cdef Py_ssize_t size = len(raw)
    cdef Py_ssize_t i
    cdef char* room = <char*>PyMem_Malloc(<size_t>(3 * size + 1))
    cdef char* out = room
    if room == NULL:
        raise MemoryError
    try:
        for i in range(size):
            out = put(out, <unsigned char>raw[i])
        return PyUnicode_DecodeASCII(room, out - room, NULL)
    finally:
        PyMem_Free(room)
