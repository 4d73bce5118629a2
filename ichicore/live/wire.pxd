from libc.stdint cimport uint8_t, uint32_t, uint64_t
from cpython.ref cimport PyObject


cdef enum State:
    REQUEST = 0     # the HTTP request has not been read whole
    OPEN = 1
    CLOSE_SENT = 2  # our CLOSE is queued; the peer's is awaited
    ENDING = 3      # nothing is read any more; ends when all is written and the peer has gone
    DEAD = 4


cdef class Wire:
    cdef object handler
    cdef readonly list peers
    cdef int epoll
    cdef Py_ssize_t max_message, max_buffer
    cdef uint32_t max_frames, idle_seconds, request_seconds, close_seconds
    cdef readonly uint32_t now
    cdef char *scratch
    cdef char *joint                      # the frames of `joined`, one after the other
    cdef PyObject *joined[64]
    cdef Py_ssize_t joined_count, joint_size
    cdef PyObject **dirty
    cdef Py_ssize_t dirty_head, dirty_count, dirty_capacity
    cdef list graves, slow
    cdef bint awake, reading
    cdef readonly uint64_t frames_out, bytes_out

    cdef int mark(self, Peer peer) except -1
    cdef int rouse(self) except -1
    cdef int write(self, Peer peer) except -1
    cdef int join(self, PyObject **frames, Py_ssize_t count) noexcept
    cdef int part(self) noexcept
    cdef int watch(self, Peer peer, bint want) except -1
    cdef int listen_to(self, Peer peer) except -1
    cdef int shut(self, Peer peer) except -1
    cdef int keep(self, Peer peer, const unsigned char *data, Py_ssize_t size) except -1
    cdef int destroy(self, Peer peer, int code) except -1
    cdef int read(self, Peer peer) except -1
    cdef int take_request(self, Peer peer, const char *data, Py_ssize_t size) except -1
    cdef int fail(self, Peer peer, int code, bytes reason) except -1
    cdef int tell_closed(self, Peer peer, int code) except -1


cdef class Peer:
    cdef Wire wire
    cdef public object owner
    cdef public double expires
    cdef readonly bint local
    cdef readonly Py_ssize_t queued
    cdef uint64_t stamp
    cdef int fd
    cdef uint8_t state, told, dirty, wants_out, is_slow, pinged, held, hasty
    cdef Py_ssize_t slot
    cdef uint32_t seen, deadline, frames
    # what is being read
    cdef uint8_t head_size, head_need, opcode, final, in_payload, message_opcode
    cdef unsigned char *control
    cdef uint32_t utf8
    cdef unsigned char head[14]
    cdef uint64_t frame_size, frame_done
    cdef unsigned char *message
    cdef Py_ssize_t message_size, message_capacity
    # frames to write
    cdef PyObject **out
    cdef Py_ssize_t out_head, out_end, out_capacity, out_offset

    cdef int push(self, bytes frame) except -1
    cdef int append(self, bytes frame) except -1
    cdef int drop_frames(self) except -1
    cdef int shorten(self) except -1
