# distutils: sources = csrc/reqtarget.c csrc/reqbody.c csrc/reqvalues.c csrc/handover.c
"""What is done with the bytes of connections before the HTTP server sees them.

Requests whose target holds quotes, angle brackets and other bytes that have to be encoded.

Clients such as curl send them as they are (`?select=data->>name`), and the HTTP server refuses such
a request with an empty 400. `install` has them encoded between the socket and that server.

Connections that open a WebSocket of /realtime are passed to the process that holds all sockets, with
their request, where `hand_over` names it: no message of theirs then goes through the HTTP server.

Header values with bytes beyond ASCII, which that server gives to nobody: they are encoded, and
`decoded` gives them by the header that such a request has.

Small bodies that come with their request's head, of which `keep_bodies` has a copy kept: `body` gives
it by the header that such a request has.
"""
import secrets
from urllib.parse import unquote_to_bytes

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

cdef extern from "<sys/types.h>":
    ctypedef long ssize_t

cdef extern from "reqtarget.h":
    enum: ICHI_HEAD
    ctypedef struct ichi_stream:
        long long body
        int mode
    ssize_t ichi_stream_feed(ichi_stream* stream, char* buf, ssize_t n, size_t room) noexcept
    int ichi_stream_install(const char* name) noexcept
    int ichi_stream_find(unsigned short port, int start) noexcept

cdef extern from "reqbody.h":
    int ichi_body_begin(const char* name, const char* prefix) noexcept
    void* ichi_body_take(unsigned long long number, const char** bytes, size_t* size) noexcept
    void ichi_body_free(void* taken) noexcept

cdef extern from "reqvalues.h":
    void ichi_values_begin(const char* name) noexcept

cdef extern from "handover.h":
    int ichi_opens_socket(const char* head, size_t n) noexcept
    int ichi_hand_over_to(const char* address) noexcept


# The header that tells where a request's body is kept. Clients cannot know its name; whoever reads
# the headers of a request takes it out.
BODY_HEADER = "x-body-" + secrets.token_hex(8)

# The same for the names of those headers whose values are encoded. It comes twice.
ENCODED_HEADER = "x-encoded-" + secrets.token_hex(8)
ichi_values_begin(ENCODED_HEADER.encode())


cdef class Stream:
    """What has been received on one connection, for tests."""

    cdef ichi_stream state

    def __init__(self):
        self.state.mode = ICHI_HEAD
        self.state.body = 0

    def feed(self, bytes received not None, Py_ssize_t room=-1):
        """The bytes that the HTTP server sees instead. room: size of the buffer they are in."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(received)
        cdef bytes buffer
        cdef ssize_t size
        if room < n:
            room = n if room >= 0 else 3 * n
        buffer = PyBytes_FromStringAndSize(NULL, room)
        memcpy(PyBytes_AS_STRING(buffer), PyBytes_AS_STRING(received), <size_t>n)
        size = ichi_stream_feed(&self.state, PyBytes_AS_STRING(buffer), n, <size_t>room)
        return buffer[:size]


def install(str library not None):
    """Whether the loaded library whose path holds the text `library` is given encoded targets now,
    on connections that it accepts from here on."""
    return ichi_stream_install(library.encode()) == 1


def accepted(unsigned short port):
    """Descriptors of connections that the library has accepted from clients at this port, the
    newest of each descriptor. One of them may be closed, or be something else by now."""
    cdef list found = []
    cdef int fd = ichi_stream_find(port, 0)
    while fd >= 0:
        found.append(fd)
        fd = ichi_stream_find(port, fd + 1)
    return found


def opens_socket(bytes head not None):
    """Whether the bytes are one whole request for a WebSocket of /realtime."""
    return ichi_opens_socket(PyBytes_AS_STRING(head), <size_t>PyBytes_GET_SIZE(head)) == 1


def hand_over(str address not None):
    """Has connections that open a WebSocket passed to whoever listens at a unix socket of packets,
    from now on, whether or not somebody does already. False where that cannot be done."""
    return ichi_hand_over_to(address.encode()) == 0


def keep_bodies(str prefix not None):
    """Has bodies of requests whose target starts with `prefix` kept from now on, too."""
    if not ichi_body_begin(BODY_HEADER.encode(), prefix.encode()):
        raise ValueError("the prefix is too long, or one too many")


def decoded(str value not None):
    """A value that is encoded, as the client sent it."""
    return unquote_to_bytes(value)


def body(str number not None):
    """The body that is kept under what the header says, once; None when there is none any more."""
    cdef const char* bytes_
    cdef size_t size
    cdef void* taken = ichi_body_take(int(number), &bytes_, &size)
    if taken is NULL:
        return None
    try:
        return PyBytes_FromStringAndSize(bytes_, <Py_ssize_t>size)
    finally:
        ichi_body_free(taken)
