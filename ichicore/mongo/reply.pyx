# distutils: sources = csrc/bsonjson.c csrc/jsontext.c csrc/pgjson_number.c
"""Raw replies of the database as JSON answers: BSON to JSON without an object per document."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport SIZE_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from ichicore.buffer cimport Buffer, jb_buf, jb_byte, jb_put, jb_room
from ichicore.mongo.bson cimport (
    BJ_ALL, BJ_DEEP, BJ_DROP, BJ_KEEP, BJ_NO_MEMORY, PJ_POW10_MAX, PJ_POW10_MIN, bj_document,
    bj_elements, bj_field, bj_iter, bj_mode, bj_next, bj_open, bj_value, pj_set_pow10,
)

from ichicore import powers

for _power in powers.table(PJ_POW10_MIN, PJ_POW10_MAX):
    pj_set_pow10(_power[0], _power[1], _power[2])


@cython.final
cdef class Fields:
    """A FieldRule for the encoder; kept by the rule."""

    cdef bj_field *all
    cdef Py_ssize_t used
    cdef bj_mode mode
    cdef list names

    def __cinit__(self, rule):
        self.names = []
        self.mode = BJ_KEEP if rule.allow else BJ_DROP
        self.all = <bj_field *> calloc(_count(rule._tree) + 1, sizeof(bj_field))
        if self.all == NULL:
            raise MemoryError
        self.fill(rule._tree)

    def __dealloc__(self):
        free(self.all)

    cdef bj_field *fill(self, dict tree) except? NULL:
        """The nodes of a level, as a list; its first, NULL for none."""
        cdef bj_field *previous = NULL
        cdef bj_field *first = NULL
        cdef bj_field *node
        cdef bytes name
        for key, below in tree.items():
            if key == "":
                continue
            node = &self.all[self.used]
            self.used += 1
            name = key.encode()
            self.names.append(name)
            node.name = PyBytes_AS_STRING(name)
            node.len = PyBytes_GET_SIZE(name)
            node.whole = below.get("") is True
            if not node.whole:
                node.below = self.fill(below)
            if previous != NULL:
                previous.next = node
            else:
                first = node
            previous = node
        return first


cdef Py_ssize_t _count(dict tree) except -1:
    cdef Py_ssize_t found = 0
    for key, below in tree.items():
        if key != "":
            found += 1 + _count(below)
    return found


cdef Fields _fields(object read):
    if read is None:
        return None
    found = read.encoder
    if found is None:
        found = read.encoder = Fields(read)
    return found


cdef int _check(int found) except -1:
    """Raises for what is no JSON."""
    if found == 0:
        return 0
    if found == BJ_NO_MEMORY:
        raise MemoryError
    if found == BJ_DEEP:
        raise ValueError("a document that is nested too deep")
    raise ValueError("not BSON")


@cython.final
cdef class _Out(Buffer):
    cdef int put(self, bytes text) except -1:
        return _check(jb_put(&self.buf, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)))


cdef int _document(_Out out, const unsigned char *p, size_t n, Fields fields) except -1:
    if fields is None:
        return _check(bj_document(&out.buf, p, n, BJ_ALL, NULL))
    return _check(bj_document(&out.buf, p, n, fields.mode, fields.all if fields.used else NULL))


cdef inline const unsigned char *_start(bytes data) noexcept:
    return <const unsigned char *> PyBytes_AS_STRING(data)


cdef bint _named(bj_iter *it, const char *name, size_t n) noexcept nogil:
    return it.name_len == n and memcmp(it.name, name, n) == 0


cdef int _find(
    const unsigned char *p, size_t n, const char *name, size_t len, bj_iter *it
) except -1:
    """Whether a document has a member; `it` is at it."""
    cdef int step
    _check(bj_open(it, p, n))
    while True:
        step = bj_next(it)
        if step < 0:
            _check(step)
        if step == 0:
            return 0
        if _named(it, name, len):
            return 1


cdef int _batch(bytes reply, bj_iter *it) except -1:
    """The array of documents of a cursor reply; `it` is at it."""
    cdef int step
    cdef bj_iter outer
    if not _find(_start(reply), PyBytes_GET_SIZE(reply), b"cursor", 6, &outer) or outer.type != 3:
        raise ValueError("not a reply with a cursor")
    _check(bj_open(it, outer.value, outer.value_len))
    while True:
        step = bj_next(it)
        if step < 0:
            _check(step)
        if step == 0:
            raise ValueError("not a reply with a cursor")
        if it.type == 4 and (_named(it, b"firstBatch", 10) or _named(it, b"nextBatch", 9)):
            return 0


def to_json(bytes document not None, read=None) -> bytes:
    cdef _Out out = _Out()
    _document(out, _start(document), PyBytes_GET_SIZE(document), _fields(read))
    return out.done()


def find_reply(replies, Py_ssize_t limit, read=None) -> bytes:
    cdef _Out out = _Out()
    cdef Fields fields = _fields(read)
    cdef bj_iter it
    cdef size_t count = 0
    cdef size_t total = 0
    cdef size_t most
    cdef bytes reply
    for reply in replies:
        total += PyBytes_GET_SIZE(reply)
    _check(jb_room(&out.buf, total + total // 4 + 64))
    out.put(b'{"docs":[')
    total = 0
    for reply in replies:
        _batch(reply, &it)
        most = <size_t> limit - total if total < <size_t> limit else 0
        _check(bj_elements(
            &out.buf, it.value, it.value_len, BJ_ALL if fields is None else fields.mode,
            NULL if fields is None or not fields.used else fields.all, most, total == 0, &count))
        total += count
    out.put(b'],"count":%d,"truncated":%s}' % (
        min(total, <size_t> limit), b"true" if total > <size_t> limit else b"false"))
    return out.done()


cpdef bytes doc_reply(bytes reply, object read=None):
    cdef bj_iter it
    cdef bj_iter inner
    cdef int step
    if _find(_start(reply), PyBytes_GET_SIZE(reply), b"cursor", 6, &it):
        _batch(reply, &it)
        _check(bj_open(&inner, it.value, it.value_len))
        step = bj_next(&inner)
        if step < 0:
            _check(step)
        if step == 0:
            return b'{"doc":null}'
        return _one(&inner, read)
    if _find(_start(reply), PyBytes_GET_SIZE(reply), b"value", 5, &it):
        return _one(&it, read)
    return b'{"doc":null}'


cdef bytes _one(bj_iter *it, object read):
    cdef _Out out
    if it.type != 3:
        return b'{"doc":null}'
    out = _Out()
    _check(jb_room(&out.buf, it.value_len + it.value_len // 4 + 32))
    out.put(b'{"doc":')
    _document(out, it.value, it.value_len, _fields(read))
    out.put(b"}")
    return out.done()


def one_reply(bytes document, read=None) -> bytes:
    cdef _Out out
    if document is None:
        return b'{"doc":null}'
    out = _Out()
    out.put(b'{"doc":')
    _document(out, _start(document), PyBytes_GET_SIZE(document), _fields(read))
    out.put(b"}")
    return out.done()


def distinct_reply(bytes reply not None, Py_ssize_t limit) -> bytes:
    cdef _Out out = _Out()
    cdef bj_iter it
    cdef size_t count = 0
    if not _find(_start(reply), PyBytes_GET_SIZE(reply), b"values", 6, &it) or it.type != 4:
        raise ValueError("not a reply of distinct")
    out.put(b'{"values":[')
    _check(bj_elements(&out.buf, it.value, it.value_len, BJ_ALL, NULL, limit, 1, &count))
    out.put(b'],"truncated":true}' if count > <size_t> limit else b'],"truncated":false}')
    return out.done()


def documents(bytes reply not None) -> list:
    cdef bj_iter it
    cdef bj_iter inner
    cdef int step
    cdef list found = []
    _batch(reply, &it)
    _check(bj_open(&inner, it.value, it.value_len))
    while True:
        step = bj_next(&inner)
        if step < 0:
            _check(step)
        if step == 0:
            return found
        if inner.type == 3:
            found.append(PyBytes_FromStringAndSize(<const char *> inner.value, inner.value_len))


def cursor_id(bytes reply not None) -> int:
    cdef bj_iter outer
    cdef bj_iter it
    if not _find(_start(reply), PyBytes_GET_SIZE(reply), b"cursor", 6, &outer) or outer.type != 3:
        raise ValueError("not a reply with a cursor")
    if not _find(outer.value, outer.value_len, b"id", 2, &it):
        return 0
    if it.type == 0x12:
        return (<const long long *> it.value)[0]
    return (<const int *> it.value)[0] if it.type == 0x10 else 0


cdef long long _whole(bj_iter *it) noexcept:
    """A number that is whole; -1 for what is none."""
    cdef double real
    if it.type == 0x10:
        return (<const int *> it.value)[0]
    if it.type == 0x12:
        return (<const long long *> it.value)[0]
    if it.type == 0x01:
        real = (<const double *> it.value)[0]
        if 0 <= real < 9e15 and <double> <long long> real == real:
            return <long long> real
    return -1


cpdef bint succeeded(bytes reply) except -1:
    cdef bj_iter it
    return (_find(_start(reply), PyBytes_GET_SIZE(reply), b"ok", 2, &it) != 0
            and _whole(&it) == 1)


def count(bytes reply not None) -> int:
    cdef bj_iter it
    if not _find(_start(reply), PyBytes_GET_SIZE(reply), b"n", 1, &it) or _whole(&it) < 0:
        raise ValueError("not a reply of count")
    return _whole(&it)


def written(bytes reply not None):
    cdef bj_iter it
    cdef int step
    cdef long long matched = -1
    cdef long long modified = 0
    cdef bint ok = False
    _check(bj_open(&it, _start(reply), PyBytes_GET_SIZE(reply)))
    while True:
        step = bj_next(&it)
        if step < 0:
            _check(step)
        if step == 0:
            break
        if _named(&it, b"ok", 2):
            ok = _whole(&it) == 1
        elif _named(&it, b"n", 1):
            matched = _whole(&it)
        elif _named(&it, b"nModified", 9):
            modified = _whole(&it)
        elif (_named(&it, b"writeErrors", 11) or _named(&it, b"writeConcernError", 17)
                or _named(&it, b"upserted", 8)):
            return None
    return (matched, modified) if ok and matched >= 0 and modified >= 0 else None


def id_text(bytes document not None):
    cdef _Out out
    cdef bj_iter it
    cdef bytes text
    if not _find(_start(document), PyBytes_GET_SIZE(document), b"_id", 3, &it):
        return None
    if it.type == 2:
        return it.value[4:it.value_len - 1].decode("utf-8", "replace")
    out = _Out()
    if it.type == 3:
        _document(out, it.value, it.value_len, None)
    else:
        _check(bj_value(&out.buf, it.type, it.value, it.value_len))
    text = out.done()
    return text[1:len(text) - 1].decode() if text[0] == c'"' else text.decode()
