"""Python values as BSON: the small documents that rules make, without PyMongo's way round."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_AsLongLong, PyLong_CheckExact
from libc.stdint cimport int32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen

from bson import encode as _slow
from bson.objectid import ObjectId

cdef extern from "jsonbuf.h" nogil:
    ctypedef struct jb_buf:
        char *data
        size_t len
    void jb_init(jb_buf *b)
    void jb_free(jb_buf *b)
    int jb_room(jb_buf *b, size_t more)
    int jb_put(jb_buf *b, const void *p, size_t n)
    int jb_byte(jb_buf *b, char c)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_CheckExact(object o)

cdef enum:
    MOST_DEPTH = 200


@cython.final
@cython.freelist(8)
cdef class _Out:
    cdef jb_buf buf

    def __cinit__(self):
        jb_init(&self.buf)

    def __dealloc__(self):
        jb_free(&self.buf)

    cdef int put(self, const void *p, size_t n) except -1:
        if jb_put(&self.buf, p, n):
            raise MemoryError
        return 0

    cdef int head(self, int type, const char *key, size_t n) except -1:
        cdef char *o
        if jb_room(&self.buf, n + 2):
            raise MemoryError
        o = self.buf.data + self.buf.len
        o[0] = <char> type
        memcpy(o + 1, key, n)
        o[n + 1] = 0
        self.buf.len += n + 2
        return 0

    cdef int document(self, dict document, int depth) except -1:
        cdef size_t at = self.open(depth)
        cdef Py_ssize_t n
        cdef const char *key
        for name, value in document.items():
            key = PyUnicode_AsUTF8AndSize(name, &n)
            self.element(key, n, value, depth)
        return self.close(at)

    cdef int items(self, list values, int depth) except -1:
        cdef size_t at = self.open(depth)
        cdef char digits[24]
        cdef Py_ssize_t i
        for i in range(len(values)):
            snprintf(digits, 24, "%zd", i)
            self.element(digits, strlen(digits), values[i], depth)
        return self.close(at)

    cdef size_t open(self, int depth) except 0x7FFFFFFFFFFFFFFF:
        cdef size_t at = self.buf.len
        if depth > MOST_DEPTH:
            raise ValueError("nested too deep")
        if jb_room(&self.buf, 4):
            raise MemoryError
        self.buf.len += 4
        return at

    cdef int close(self, size_t at) except -1:
        cdef int32_t size
        if jb_byte(&self.buf, 0):
            raise MemoryError
        size = <int32_t> (self.buf.len - at)
        memcpy(self.buf.data + at, &size, 4)
        return 0

    cdef int element(self, const char *key, size_t n, object value, int depth) except -1:
        cdef const char *text
        cdef Py_ssize_t size
        cdef int32_t shown
        cdef long long number
        cdef double real
        cdef bytes packed
        if PyUnicode_CheckExact(value):
            text = PyUnicode_AsUTF8AndSize(value, &size)
            shown = <int32_t> size + 1
            self.head(0x02, key, n)
            self.put(&shown, 4)
            return self.put(text, size + 1)
        if value is None:
            return self.head(0x0A, key, n)
        if value is True or value is False:
            self.head(0x08, key, n)
            return self.put(b"\1" if value is True else b"\0", 1)
        if PyLong_CheckExact(value):
            number = PyLong_AsLongLong(value)
            if -0x80000000 <= number <= 0x7FFFFFFF:
                shown = <int32_t> number
                self.head(0x10, key, n)
                return self.put(&shown, 4)
            self.head(0x12, key, n)
            return self.put(&number, 8)
        if PyFloat_CheckExact(value):
            real = PyFloat_AS_DOUBLE(value)
            self.head(0x01, key, n)
            return self.put(&real, 8)
        if PyDict_CheckExact(value):
            self.head(0x03, key, n)
            return self.document(<dict> value, depth + 1)
        if PyList_CheckExact(value):
            self.head(0x04, key, n)
            return self.items(<list> value, depth + 1)
        if type(value) is ObjectId:
            packed = value.binary
            self.head(0x07, key, n)
            return self.put(PyBytes_AS_STRING(packed), 12)
        packed = _slow({"v": value})
        self.head(<unsigned char> packed[4], key, n)
        return self.put(PyBytes_AS_STRING(packed) + 7, PyBytes_GET_SIZE(packed) - 8)


cdef bytes encode_document(dict document):
    cdef _Out out = _Out()
    out.document(document, 0)
    return PyBytes_FromStringAndSize(out.buf.data, out.buf.len)


def encode(dict document not None) -> bytes:
    return encode_document(document)
