"""Commands of single operations as BSON: their members one after the other, to which the sender adds
what goes with every command."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t

from ichicore.bsonwrite cimport (
    bw_close, bw_head, bw_int32, bw_int64, bw_open, bw_raw, bw_text, bw_true,
)
from ichicore.buffer cimport Buffer
from ichicore.mongo.tape cimport number_text

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


@cython.final
cdef class _Out(Buffer):
    cdef int text(self, bytes key, str value) except -1:
        cdef Py_ssize_t n
        cdef const char *p = PyUnicode_AsUTF8AndSize(value, &n)
        return bw_text(&self.buf, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), p, n)

    cdef int document(self, bytes key, bytes value) except -1:
        bw_head(&self.buf, 0x03, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return bw_raw(&self.buf, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))

    cdef int documents(self, bytes key, values) except -1:
        """A list."""
        cdef char digits[16]
        cdef size_t at
        cdef unsigned int i = 0
        bw_head(&self.buf, 0x04, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        at = bw_open(&self.buf)
        for value in values:
            bw_head(&self.buf, 0x03, digits, number_text(digits, i))
            bw_raw(&self.buf, PyBytes_AS_STRING(<bytes?> value), PyBytes_GET_SIZE(value))
            i += 1
        return bw_close(&self.buf, at)

    cdef int flag(self, bytes key, bint value) except -1:
        bw_head(&self.buf, 0x08, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return bw_raw(&self.buf, b"\1" if value else b"\0", 1)


def find(str collection not None, bytes filter not None, int32_t limit, *, bytes projection=None,
         bytes sort=None, int32_t skip=0) -> bytes:
    cdef _Out out = _Out()
    out.text(b"find", collection)
    out.document(b"filter", filter)
    bw_int32(&out.buf, b"limit", 5, limit)
    if projection is not None:
        out.document(b"projection", projection)
    if sort is not None:
        out.document(b"sort", sort)
    if skip:
        bw_int32(&out.buf, b"skip", 4, skip)
    if limit == 1:
        bw_true(&out.buf, b"singleBatch", 11)
    else:
        bw_int32(&out.buf, b"batchSize", 9, limit)
    return out.done()


def aggregate(str collection not None, pipeline, int32_t limit, bint disk) -> bytes:
    cdef _Out out = _Out()
    cdef size_t at
    out.text(b"aggregate", collection)
    out.documents(b"pipeline", pipeline)
    bw_head(&out.buf, 0x03, b"cursor", 6)
    at = bw_open(&out.buf)
    bw_int32(&out.buf, b"batchSize", 9, limit)
    bw_close(&out.buf, at)
    out.flag(b"allowDiskUse", disk)
    return out.done()


def count(str collection not None, bytes filter not None) -> bytes:
    cdef _Out out = _Out()
    out.text(b"count", collection)
    out.document(b"query", filter)
    return out.done()


def distinct(str collection not None, str field not None, bytes filter not None) -> bytes:
    cdef _Out out = _Out()
    out.text(b"distinct", collection)
    out.text(b"key", field)
    out.document(b"query", filter)
    return out.done()


cdef bytes _writes(bytes name, str collection, bytes key, items, bint ordered):
    cdef _Out out = _Out()
    out.text(name, collection)
    out.documents(key, items)
    out.flag(b"ordered", ordered)
    return out.done()


def insert(str collection not None, documents, bint ordered) -> bytes:
    return _writes(b"insert", collection, b"documents", documents, ordered)


def update(str collection not None, statements, bint ordered=True) -> bytes:
    return _writes(b"update", collection, b"updates", statements, ordered)


def delete(str collection not None, statements, bint ordered=True) -> bytes:
    return _writes(b"delete", collection, b"deletes", statements, ordered)


def update_statement(bytes filter not None, bytes change not None, bint multi=False,
                     bint upsert=False, array_filters=()) -> bytes:
    cdef _Out out = _Out()
    cdef size_t at = bw_open(&out.buf)
    out.document(b"q", filter)
    out.document(b"u", change)
    if multi:
        bw_true(&out.buf, b"multi", 5)
    if upsert:
        bw_true(&out.buf, b"upsert", 6)
    if array_filters:
        out.documents(b"arrayFilters", array_filters)
    bw_close(&out.buf, at)
    return out.done()


def delete_statement(bytes filter not None, bint multi) -> bytes:
    cdef _Out out = _Out()
    cdef size_t at = bw_open(&out.buf)
    out.document(b"q", filter)
    bw_int32(&out.buf, b"limit", 5, 0 if multi else 1)
    bw_close(&out.buf, at)
    return out.done()


def find_and_modify(str collection not None, bytes query not None, *, bytes update=None,
                    bint after=False, bint upsert=False, bytes sort=None, bytes fields=None,
                    array_filters=()) -> bytes:
    cdef _Out out = _Out()
    out.text(b"findAndModify", collection)
    out.document(b"query", query)
    if update is None:
        bw_true(&out.buf, b"remove", 6)
    else:
        out.document(b"update", update)
        out.flag(b"new", after)
        out.flag(b"upsert", upsert)
    if sort is not None:
        out.document(b"sort", sort)
    if array_filters:
        out.documents(b"arrayFilters", array_filters)
    if fields is not None:
        out.document(b"fields", fields)
    return out.done()


def numbered(bytes elements not None, bytes session not None, long long number) -> bytes:
    """A write under the number that a session gives it. session: members that name it."""
    cdef _Out out = _Out()
    bw_raw(&out.buf, PyBytes_AS_STRING(elements), PyBytes_GET_SIZE(elements))
    bw_raw(&out.buf, PyBytes_AS_STRING(session), PyBytes_GET_SIZE(session))
    bw_int64(&out.buf, b"txnNumber", 9, number)
    return out.done()


cdef bytes _sent(bytes elements, int32_t milliseconds, bytes tail):
    cdef _Out out = _Out()
    cdef size_t at = bw_open(&out.buf)
    bw_raw(&out.buf, PyBytes_AS_STRING(elements), PyBytes_GET_SIZE(elements))
    if milliseconds:
        bw_int32(&out.buf, b"maxTimeMS", 9, milliseconds)
    bw_raw(&out.buf, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
    bw_close(&out.buf, at)
    return out.done()


def sealed(bytes elements not None, double seconds, bytes tail not None) -> bytes:
    """The document that is sent: a command's members, the time that it may take, and `tail`, the
    members that every command to the database has."""
    return _sent(elements, max(1, <int32_t> (seconds * 1000)), tail)


def whole(bytes elements not None, bytes tail not None) -> bytes:
    """The same without a time."""
    return _sent(elements, 0, tail)
