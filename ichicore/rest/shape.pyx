"""Splits a query string into its shape and its values without parsing it.

The shape is the raw text with each value replaced by a marker byte, so equal shapes parse to the
same nodes; the values are what query.parse collects in Query.values. Anything out of the ordinary
gives None: the caller then parses in full. Errors are found there too: a wrong query string either
gives None or a shape that no plan was ever made for.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcmp, memcpy

from ichicore.http.escapes cimport unescape
from ichicore.rest.operators cimport (
    LIST, NO_OPERATOR, PATTERN, QUANTIFIABLE, TEXT_SEARCH, TRUTH, Kind, find_operator, kind_of,
)

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* s, Py_ssize_t size, const char* errors)

cdef enum:
    STACK_BYTES = 2048
    MAX_DEPTH = 32          # well inside the parser's own bound
    MAX_LIMITS = 6
    LONGEST_NUMBER = 18

# In place of a value; of a function's argument.
cdef enum:
    VALUE = 1
    ARGUMENT = 2

cdef enum:
    PLAIN_KEY = 1       # may stand in a parameter's name as it is
    LOGIC_NAME = 2      # may stand in a field of a logic tree

cdef unsigned char CLASSES[256]


cdef void fill_classes() noexcept:
    cdef int c
    for c in range(256):
        CLASSES[c] = 0
    for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_$":
        CLASSES[c] = PLAIN_KEY | LOGIC_NAME
    for c in b"->.":
        CLASSES[c] |= PLAIN_KEY
    for c in b"->":
        CLASSES[c] |= LOGIC_NAME


fill_classes()

cdef struct Known:
    const char* at
    Py_ssize_t size


cdef struct Scan:
    char* key               # next free byte of the shape
    char* room              # next free byte for decoded values
    bint rpc
    int limits              # limit and offset parameters so far
    Known seen[MAX_LIMITS]


cdef inline bint is_word(const char* p, Py_ssize_t size, const char* word,
                         Py_ssize_t length) noexcept nogil:
    return size == length and memcmp(p, word, <size_t>length) == 0


cdef inline void copy(Scan* scan, const char* start, const char* stop) noexcept nogil:
    memcpy(scan.key, start, <size_t>(stop - start))
    scan.key += stop - start


cdef inline void mark(Scan* scan, char marker) noexcept nogil:
    scan.key[0] = marker
    scan.key += 1


cdef bytes final_text(const char* p, Py_ssize_t size):
    """The value as bytes; None unless it is UTF-8 without NUL."""
    cdef Py_ssize_t i
    cdef unsigned char seen = 0
    cdef bint nul = False
    for i in range(size):
        seen |= <unsigned char>p[i]
        nul |= p[i] == 0
    if nul:
        return None
    if seen >= 0x80:
        try:
            PyUnicode_DecodeUTF8(p, size, NULL)
        except UnicodeDecodeError:
            return None
    return PyBytes_FromStringAndSize(<char*>p, size)


cdef inline const char* word_end(const char* p, const char* end) noexcept nogil:
    while p < end and c'a' <= p[0] <= c'z':
        p += 1
    return p


cdef const char* operator_end(const char* p, const char* end, Kind* kind,
                              bint* pattern) noexcept nogil:
    """Behind `[not.]operator[(modifier)].`; NULL when that does not stand at p."""
    cdef const char* start
    if end - p > 4 and memcmp(p, b"not.", 4) == 0:
        p += 4
    start = p
    p = word_end(p, end)
    kind[0] = kind_of(find_operator(start, p - start))
    pattern[0] = kind[0] == PATTERN
    if kind[0] == NO_OPERATOR or p == end:
        return NULL
    if p[0] == c'.':
        return p + 1
    if p[0] != c'(':
        return NULL
    start = p + 1
    p = word_end(start, end)
    if p == start or end - p < 2 or p[0] != c')' or p[1] != c'.':
        return NULL
    if kind[0] == QUANTIFIABLE or kind[0] == PATTERN:
        if p - start != 3 or (memcmp(start, b"any", 3) != 0 and memcmp(start, b"all", 3) != 0):
            return NULL
    elif kind[0] != TEXT_SEARCH:
        return NULL
    return p + 2


cdef bint is_truth(const char* p, Py_ssize_t size) noexcept nogil:
    return (is_word(p, size, b"null", 4) or is_word(p, size, b"true", 4)
            or is_word(p, size, b"false", 5) or is_word(p, size, b"not_null", 8)
            or is_word(p, size, b"unknown", 7))


cdef bytes list_text(Scan* scan, const char* p, const char* end, const char** after):
    """(a,b) as the text of an array, `after` behind its parenthesis; None when unusual."""
    cdef char* out = scan.room
    cdef char* start = out
    if p == end or p[0] != c'(' or p + 1 == end or p[1] == c' ' or p[1] == c'\t':
        return None
    p += 1
    out[0] = c'{'
    out[1] = c'"'
    out += 2
    while p < end and p[0] != c')':
        if p[0] == c'"' or p[0] == c'\\':
            return None
        if p[0] == c',':
            memcpy(out, b'","', 3)
            out += 3
        else:
            out[0] = p[0]
            out += 1
        p += 1
    if p == end:
        return None
    after[0] = p + 1
    if out - start == 2:
        return b"{}"
    out[0] = c'"'
    out[1] = c'}'
    return final_text(start, out + 2 - start)


cdef int top_filter(Scan* scan, const char* raw, const char* end, list values) except -1:
    """One filter's raw value; 1 when taken, 0 when unusual."""
    cdef Kind kind
    cdef bint pattern
    cdef const char* p = operator_end(raw, end, &kind, &pattern)
    cdef const char* after
    cdef char* decoded
    cdef char* at
    cdef Py_ssize_t size
    cdef bytes value
    if p == NULL:
        if not scan.rpc:
            return 0
        return argument(scan, raw, end, values)
    copy(scan, raw, p)
    if kind == TRUTH:
        if not is_truth(p, end - p):
            return 0
        copy(scan, p, end)
        return 1
    decoded = scan.room
    size = unescape(p, end - p, decoded)
    if kind == LIST:
        scan.room += size
        value = list_text(scan, decoded, decoded + size, &after)
        scan.room = decoded
        if value is None or after != decoded + size:
            return 0
    else:
        if pattern:
            at = <char*>memchr(decoded, c'*', <size_t>size)
            while at != NULL:
                at[0] = c'%'
                at = <char*>memchr(at, c'*', <size_t>(decoded + size - at))
        value = final_text(decoded, size)
        if value is None:
            return 0
    values.append(value)
    mark(scan, VALUE)
    return 1


cdef int argument(Scan* scan, const char* raw, const char* end, list values) except -1:
    """A function's argument: a value that, decoded, could be no operator expression."""
    cdef char* decoded = scan.room
    cdef Py_ssize_t size = unescape(raw, end - raw, decoded)
    cdef const char* stop
    cdef bytes value
    if size >= 4 and memcmp(decoded, b"not.", 4) == 0:
        return 0
    stop = word_end(decoded, decoded + size)
    if stop < decoded + size and (stop[0] == c'.' or stop[0] == c'(') \
            and kind_of(find_operator(decoded, stop - decoded)) != NO_OPERATOR:
        return 0
    value = final_text(decoded, size)
    if value is None:
        return 0
    values.append(value)
    mark(scan, ARGUMENT)
    return 1


cdef int logic(Scan* scan, const char* raw, const char* end, list values) except -1:
    """(a.eq.1,or(...)): its decoded text without the values is the shape."""
    cdef const char* p = scan.room
    cdef const char* stop
    cdef const char* start
    cdef int depth = 0
    cdef Kind kind
    cdef bint pattern
    cdef char* at
    cdef bytes value
    cdef Py_ssize_t size = unescape(raw, end - raw, scan.room)
    stop = p + size
    scan.room += size
    if p == stop or p[0] != c'(':
        return 0
    while True:
        # p stands at an opening parenthesis or a comma: an item follows.
        if p[0] == c'(':
            depth += 1
            if depth > MAX_DEPTH:
                return 0
        mark(scan, p[0])
        p += 1
        while p < stop and p[0] == c' ':
            p += 1
        start = p
        if stop - p > 4 and memcmp(p, b"not.", 4) == 0:
            p += 4
        if stop - p > 4 and memcmp(p, b"and(", 4) == 0:
            copy(scan, start, p + 3)
            p += 3
            continue
        if stop - p > 3 and memcmp(p, b"or(", 3) == 0:
            copy(scan, start, p + 2)
            p += 2
            continue
        p = start
        while p < stop and CLASSES[<unsigned char>p[0]] & LOGIC_NAME:
            p += 1
        if p == start or p == stop or p[0] != c'.':
            return 0
        p = operator_end(p + 1, stop, &kind, &pattern)
        if p == NULL or p == stop:
            return 0
        copy(scan, start, p)
        if kind == LIST:
            value = list_text(scan, p, stop, &p)
            if value is None:
                return 0
            values.append(value)
            mark(scan, VALUE)
        else:
            if p[0] == c'"' or p[0] == c'{':
                return 0
            start = p
            while p < stop and p[0] != c',' and p[0] != c')':
                p += 1
            if kind == TRUTH:
                if not is_truth(start, p - start):
                    return 0
                copy(scan, start, p)
            else:
                if pattern:
                    at = <char*>memchr(start, c'*', <size_t>(p - start))
                    while at != NULL:
                        at[0] = c'%'
                        at = <char*>memchr(at, c'*', <size_t>(p - at))
                value = final_text(start, p - start)
                if value is None:
                    return 0
                values.append(value)
                mark(scan, VALUE)
        while p < stop and p[0] == c')':
            depth -= 1
            mark(scan, c')')
            p += 1
            if depth == 0:
                return p == stop
        if p == stop or p[0] != c',':
            return 0


cdef int number(Scan* scan, const char* key, Py_ssize_t key_size, const char* p,
                const char* end, list values) except -1:
    """limit and offset: digits, each parameter once."""
    cdef int i
    cdef const char* at = p
    if end - p == 0 or end - p > LONGEST_NUMBER or (p[0] == c'0' and end - p > 1):
        return 0
    while at < end:
        if not c'0' <= at[0] <= c'9':
            return 0
        at += 1
    if scan.limits == MAX_LIMITS:
        return 0
    for i in range(scan.limits):
        if is_word(key, key_size, scan.seen[i].at, scan.seen[i].size):
            return 0
    scan.seen[scan.limits].at = key
    scan.seen[scan.limits].size = key_size
    scan.limits += 1
    values.append(PyBytes_FromStringAndSize(<char*>p, end - p))
    mark(scan, VALUE)
    return 1


cdef bint plain_key(const char* p, const char* stop, const char** last) noexcept nogil:
    """Whether a name classifies the same raw and decoded; `last` is its part behind a dot.

    Of escapes only %3E passes, the > of a JSON path, which no reserved name has; and not in the
    last part, which is compared with the reserved names.
    """
    last[0] = p
    while p < stop:
        if p[0] == c'.':
            last[0] = p + 1
        elif not CLASSES[<unsigned char>p[0]] & PLAIN_KEY:
            if stop - p < 3 or p[0] != c'%' or p[1] != c'3' or (p[2] != c'E' and p[2] != c'e'):
                return False
            p += 2
        p += 1
    return True


cdef bint printable(const char* p, const char* end) noexcept nogil:
    """No control byte, which could pass for a marker, and nothing beyond ASCII."""
    cdef unsigned char c
    while p < end:
        c = <unsigned char>p[0]
        if c < 0x20 or c >= 0x7F:
            return False
        p += 1
    return True


cdef int pair(Scan* scan, const char* key, const char* equal, const char* end,
              list values) except -1:
    """One parameter; equal stands at its equals sign. 1 when taken, 0 when unusual."""
    cdef const char* last
    cdef Py_ssize_t size
    if not plain_key(key, equal, &last):
        return 0
    copy(scan, key, equal + 1)
    size = equal - last
    if is_word(last, size, b"order", 5) or (last == key and (
            is_word(key, size, b"select", 6) or is_word(key, size, b"columns", 7)
            or is_word(key, size, b"on_conflict", 11))):
        copy(scan, equal + 1, end)
        return 1
    if is_word(last, size, b"limit", 5) or is_word(last, size, b"offset", 6):
        return number(scan, key, equal - key, equal + 1, end, values)
    if is_word(last, size, b"and", 3) or is_word(last, size, b"or", 2):
        return logic(scan, equal + 1, end, values)
    return top_filter(scan, equal + 1, end, values)


cdef object run(Scan* scan, const char* raw, const char* end):
    cdef const char* stop
    cdef const char* equal
    cdef char* start = scan.key
    cdef char* room = scan.room
    cdef list values = []
    while raw < end:
        equal = NULL
        stop = raw
        while stop < end and stop[0] != c'&':
            if stop[0] == c'=' and equal == NULL:
                equal = stop
            elif stop[0] == c';':
                return None
            stop += 1
        if equal == NULL or not pair(scan, raw, equal, stop, values):
            return None
        scan.room = room
        if stop < end:
            mark(scan, c'&')
        raw = stop + 1
    return PyBytes_FromStringAndSize(start, scan.key - start), values


def scan(bytes raw not None, *, bint rpc=False, bint mutation=False):
    """(shape, values) of a raw query string, or None when it must be parsed in full.

    rpc: as in query.parse. mutation changes nothing here.
    """
    cdef char small[STACK_BYTES]
    cdef char* buffer = small
    cdef Py_ssize_t size = len(raw)
    cdef const char* start = PyBytes_AS_STRING(raw)
    cdef Scan state
    if size == 0:
        return b"", []
    if start[0] == c'?' or not printable(start, start + size):
        return None
    # The shape takes at most half as much again as the text (a marker for an empty value), a value
    # as much for its decoded form and three times that and four bytes when it becomes an array.
    if 6 * size + 16 > STACK_BYTES:
        buffer = <char*>PyMem_Malloc(<size_t>(6 * size + 16))
        if buffer == NULL:
            raise MemoryError
    state.key = buffer
    state.room = buffer + 2 * size + 2
    state.rpc = rpc
    state.limits = 0
    try:
        return run(&state, start, start + size)
    finally:
        if buffer != small:
            PyMem_Free(buffer)
