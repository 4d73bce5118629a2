"""Python values as BSON: the small documents that rules make, without PyMongo's way round."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_AsLongLong, PyLong_CheckExact
from libc.stdint cimport int32_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from ichicore.bsonwrite cimport (
    bw_close, bw_head, bw_int32, bw_int64, bw_open, bw_raw, bw_text, bw_true,
)
from ichicore.buffer cimport Buffer, jb_buf

from bson import encode as _slow
from bson.objectid import ObjectId

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyUnicode_CheckExact(object o)

cdef enum:
    MOST_DEPTH = 200


@cython.final
cdef class _Out(Buffer):
    cdef int document(self, dict document, int depth) except -1:
        cdef size_t at = self.open(depth)
        cdef Py_ssize_t n
        cdef const char *key
        for name, value in document.items():
            key = PyUnicode_AsUTF8AndSize(name, &n)
            self.element(key, n, value, depth)
        return bw_close(&self.buf, at)

    cdef int items(self, list values, int depth) except -1:
        cdef size_t at = self.open(depth)
        cdef char digits[24]
        cdef Py_ssize_t i
        for i in range(len(values)):
            snprintf(digits, 24, "%zd", i)
            self.element(digits, strlen(digits), values[i], depth)
        return bw_close(&self.buf, at)

    cdef size_t open(self, int depth) except 0x7FFFFFFFFFFFFFFF:
        if depth > MOST_DEPTH:
            raise ValueError("nested too deep")
        return bw_open(&self.buf)

    cdef int element(self, const char *key, size_t n, object value, int depth) except -1:
        cdef jb_buf *out = &self.buf
        cdef const char *text
        cdef Py_ssize_t size
        cdef long long number
        cdef double real
        cdef bytes packed
        if PyUnicode_CheckExact(value):
            text = PyUnicode_AsUTF8AndSize(value, &size)
            return bw_text(out, key, n, text, size)
        if value is None:
            return bw_head(out, 0x0A, key, n)
        if value is True:
            return bw_true(out, key, n)
        if value is False:
            bw_head(out, 0x08, key, n)
            return bw_raw(out, b"\0", 1)
        if PyLong_CheckExact(value):
            number = PyLong_AsLongLong(value)
            if -0x80000000 <= number <= 0x7FFFFFFF:
                return bw_int32(out, key, n, <int32_t> number)
            return bw_int64(out, key, n, number)
        if PyFloat_CheckExact(value):
            real = PyFloat_AS_DOUBLE(value)
            bw_head(out, 0x01, key, n)
            return bw_raw(out, &real, 8)
        if PyDict_CheckExact(value):
            bw_head(out, 0x03, key, n)
            return self.document(<dict> value, depth + 1)
        if PyList_CheckExact(value):
            bw_head(out, 0x04, key, n)
            return self.items(<list> value, depth + 1)
        if type(value) is ObjectId:
            packed = value.binary
            bw_head(out, 0x07, key, n)
            return bw_raw(out, PyBytes_AS_STRING(packed), 12)
        packed = _slow({"v": value})
        bw_head(out, <unsigned char> packed[4], key, n)
        return bw_raw(out, PyBytes_AS_STRING(packed) + 7, PyBytes_GET_SIZE(packed) - 8)


cdef bytes encode_document(dict document):
    cdef _Out out = _Out()
    out.document(document, 0)
    return out.done()


def encode(dict document not None) -> bytes:
    return encode_document(document)
