"""Frames as a server sends them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy


cdef inline bytes encode_bytes(const char *payload, Py_ssize_t size, int opcode):
    cdef Py_ssize_t head = 2 if size < 126 else 4 if size < 65536 else 10
    cdef bytes made = PyBytes_FromStringAndSize(NULL, head + size)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(made)
    cdef int i
    at[0] = <unsigned char>(0x80 | opcode)
    if head == 2:
        at[1] = <unsigned char>size
    elif head == 4:
        at[1] = 126
        at[2] = <unsigned char>(size >> 8)
        at[3] = <unsigned char>(size & 0xFF)
    else:
        at[1] = 127
        for i in range(8):
            at[2 + i] = <unsigned char>((size >> (8 * (7 - i))) & 0xFF)
    if size:
        memcpy(at + head, payload, size)
    return made


cdef inline bytes close_frame(int code, bytes reason):
    cdef bytes body = b""
    if code:
        body = bytes(((code >> 8) & 0xFF, code & 0xFF)) + reason[:123]
    return encode_bytes(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 8)


cdef inline bint good_code(int code) noexcept:
    """Whether a peer may send this close code."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
