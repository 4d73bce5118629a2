# distutils: sources = csrc/bsonjson.c csrc/jsontext.c csrc/pgjson_number.c
"""BSON documents put together without decoding them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t
from libc.string cimport memcmp, memcpy

from ichicore.mongo.bson cimport bj_iter, bj_next, bj_open
from ichicore.rules.encode cimport encode_document

from ichicore.mongo.parts import EMPTY
from ichicore.rules.codec import decode


cdef bytes _empty = EMPTY
cdef size_t MOST_FLAT = 4096  # bytes of two filters whose names are compared


cdef char *_put(char *o, const void *p, size_t n) noexcept:
    memcpy(o, p, n)
    return o + n


cdef char *_size(char *o, size_t n) noexcept:
    cdef int32_t size = <int32_t> n
    return _put(o, &size, 4)


cdef bint _disjoint(bytes first, bytes second) except -1:
    """Whether no name is in both documents."""
    cdef bj_iter one
    cdef bj_iter other
    _open(&one, first)
    while _next(&one):
        _open(&other, second)
        while _next(&other):
            if (one.name_len == other.name_len
                    and memcmp(one.name, other.name, one.name_len) == 0):
                return False
    return True


cpdef bytes both(bytes first, bytes second):
    cdef size_t a = PyBytes_GET_SIZE(first)
    cdef size_t b = PyBytes_GET_SIZE(second)
    cdef bytes made
    cdef char *o
    if second == _empty:
        return first
    if first == _empty:
        return second
    if a + b < MOST_FLAT and _disjoint(first, second):
        made = PyBytes_FromStringAndSize(NULL, a + b - 5)
        o = _size(PyBytes_AS_STRING(made), a + b - 5)
        o = _put(o, PyBytes_AS_STRING(first) + 4, a - 5)
        o = _put(o, PyBytes_AS_STRING(second) + 4, b - 4)
        return made
    # size, "\x04$and\0", the list: size, "\x030\0", first, "\x031\0", second, 0; 0
    made = PyBytes_FromStringAndSize(NULL, a + b + 22)
    o = PyBytes_AS_STRING(made)
    o = _size(o, a + b + 22)
    o = _put(o, b"\x04$and\0", 6)
    o = _size(o, a + b + 11)
    o = _put(o, b"\x030\0", 3)
    o = _put(o, PyBytes_AS_STRING(first), a)
    o = _put(o, b"\x031\0", 3)
    o = _put(o, PyBytes_AS_STRING(second), b)
    o[0] = 0
    o[1] = 0
    return made


cpdef bytes under(bytes name, bytes document):
    return _wrap(b"\x03" + name + b"\0" + document)


cdef bytes _wrap(bytes elements):
    """A document of encoded elements."""
    cdef size_t n = PyBytes_GET_SIZE(elements)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, n + 5)
    cdef char *o = _size(PyBytes_AS_STRING(made), n + 5)
    o = _put(o, PyBytes_AS_STRING(elements), n)
    o[0] = 0
    return made


cdef inline bytes _elements(bytes document):
    """What is within a document."""
    return document[4:PyBytes_GET_SIZE(document) - 1]


cdef int _next(bj_iter *it) except -1:
    cdef int found = bj_next(it)
    if found < 0:
        raise ValueError("not BSON")
    return found


cdef int _open(bj_iter *it, bytes document) except -1:
    if bj_open(it, <const unsigned char *> PyBytes_AS_STRING(document),
               PyBytes_GET_SIZE(document)):
        raise ValueError("not BSON")
    return 0


def merge_operator(bytes update not None, str operator not None, dict values not None) -> bytes:
    cdef bytes name = operator.encode()
    cdef bytes more = _elements(encode_document(values))
    cdef bj_iter it
    cdef const unsigned char *begin = <const unsigned char *> PyBytes_AS_STRING(update) + 4
    cdef const unsigned char *end = begin + PyBytes_GET_SIZE(update) - 5
    cdef bytes before
    cdef bytes inner
    cdef bytes after
    _open(&it, update)
    while _next(&it):
        if (it.type == 3 and it.name_len == <size_t> PyBytes_GET_SIZE(name)
                and memcmp(it.name, PyBytes_AS_STRING(name), it.name_len) == 0):
            before = PyBytes_FromStringAndSize(<const char *> begin, it.value - begin)
            inner = PyBytes_FromStringAndSize(<const char *> it.value + 4, it.value_len - 5)
            after = PyBytes_FromStringAndSize(
                <const char *> it.value + it.value_len, end - (it.value + it.value_len))
            return _wrap(before + _wrap(inner + more) + after)
    return _wrap(_elements(update) + b"\x03" + name + b"\0" + _wrap(more))


def overwrite(bytes document not None, dict values not None) -> bytes:
    for path in values:
        if "." in path:
            return _overwrite(decode(document), values)
    return _wrap(_kept(document, {path.encode() for path in values})
                 + _elements(encode_document(values)))


cdef bytes _kept(bytes document, set names):
    """The elements of a document but for those with these names."""
    cdef bj_iter it
    cdef list kept = []
    cdef const char *start
    _open(&it, document)
    while _next(&it):
        if PyBytes_FromStringAndSize(it.name, it.name_len) not in names:
            start = it.name - 1
            kept.append(PyBytes_FromStringAndSize(
                start, <const char *> it.value + it.value_len - start))
    return b"".join(kept)


cdef bytes _overwrite(dict made, dict values):
    for path, value in values.items():
        node = made
        *heads, last = path.split(".")
        for head in heads:
            below = node.get(head)
            if not isinstance(below, dict):
                below = node[head] = {}
            node = below
        node[last] = value
    return encode_document(made)


def without(bytes document not None, str name not None) -> bytes:
    return _wrap(_kept(document, {name.encode()}))
