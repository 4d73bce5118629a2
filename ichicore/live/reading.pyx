"""The reading half of a connection: bytes of a client to frames and messages (RFC 6455)."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ichicore.live.frames cimport close_frame, encode_bytes, good_code
from ichicore.live.wire cimport CLOSE_SENT, ENDING, OPEN, Peer, Wire

cdef extern from "utf8.h" nogil:
    enum: UTF8_BAD
    uint32_t utf8_check(uint32_t state, const unsigned char *text, size_t size)
    void unmask(unsigned char *to, const unsigned char *source, size_t size,
                const unsigned char *key, size_t phase)


cdef int read_frames(Wire wire, Peer peer, const unsigned char *data, Py_ssize_t size) except -1:
    cdef Py_ssize_t at = 0, take
    cdef bytes whole
    cdef unsigned char *text
    cdef const unsigned char *key
    while at < size and (peer.state == OPEN or peer.state == CLOSE_SENT):
        if not peer.in_payload:
            take = min(size - at, <Py_ssize_t>(peer.head_need - peer.head_size))
            memcpy(peer.head + peer.head_size, data + at, take)
            peer.head_size += <uint8_t>take
            at += take
            if peer.head_size < peer.head_need:
                continue
            if not begin_frame(wire, peer):
                continue
            key = peer.head + peer.head_size - 4
            if (peer.opcode < 8 and peer.final and peer.message_opcode == 0
                    and peer.opcode != 0 and <uint64_t>(size - at) >= peer.frame_size):
                # a whole message lies here: no copy beside the one it is handed on in
                take = <Py_ssize_t>peer.frame_size
                whole = PyBytes_FromStringAndSize(NULL, take)
                text = <unsigned char *>PyBytes_AS_STRING(whole)
                unmask(text, data + at, take, key, 0)
                at += take
                peer.in_payload = 0
                peer.head_size = 0
                peer.head_need = 2
                if peer.opcode == 1 and utf8_check(0, text, take) != 0:
                    wire.fail(peer, 1007, b"the text is not UTF-8")
                    return 0
                if peer.state == OPEN:
                    wire.handler.message(peer, whole, peer.opcode == 1)
                continue
            if peer.frame_size == 0:
                end_frame(wire, peer)
            continue
        key = peer.head + peer.head_size - 4
        take = size - at
        if <uint64_t>take > peer.frame_size - peer.frame_done:
            take = <Py_ssize_t>(peer.frame_size - peer.frame_done)
        if peer.opcode >= 8:
            if peer.control == NULL:
                peer.control = <unsigned char *>PyMem_Malloc(125)
                if peer.control == NULL:
                    raise MemoryError
            unmask(peer.control + peer.frame_done, data + at, take, key, peer.frame_done)
        else:
            wire.keep(peer, data + at, take)
            text = peer.message + peer.message_size - take
            unmask(text, text, take, key, peer.frame_done)
            if (peer.message_opcode or peer.opcode) == 1:
                peer.utf8 = utf8_check(peer.utf8, text, take)
                if peer.utf8 == <uint32_t>UTF8_BAD:
                    wire.fail(peer, 1007, b"the text is not UTF-8")
                    return 0
        at += take
        peer.frame_done += take
        if peer.frame_done == peer.frame_size:
            end_frame(wire, peer)
    return 0


cdef int begin_frame(Wire wire, Peer peer) except -1:
    """Reads a header as far as it has come; 1 when it is whole and good."""
    cdef unsigned char *head = peer.head
    cdef uint64_t size
    cdef int i
    if peer.head_need == 2:
        peer.opcode = head[0] & 15
        peer.final = head[0] >> 7
        size = head[1] & 127
        if head[0] & 0x70:
            wire.fail(peer, 1002, b"a reserved bit is set")
        elif not head[1] & 128:
            wire.fail(peer, 1002, b"the frame is not masked")
        elif peer.opcode > 10 or 2 < peer.opcode < 8:
            wire.fail(peer, 1002, b"unknown opcode")
        elif peer.opcode >= 8 and (not peer.final or size > 125):
            wire.fail(peer, 1002, b"a control frame is long or fragmented")
        elif peer.opcode == 0 and peer.message_opcode == 0:
            wire.fail(peer, 1002, b"nothing to continue")
        elif 0 < peer.opcode < 8 and peer.message_opcode != 0:
            wire.fail(peer, 1002, b"a message within a message")
        else:
            peer.head_need = 6 if size < 126 else 8 if size == 126 else 14
            peer.frames += 1
            if peer.frames > wire.max_frames:
                wire.fail(peer, 1008, b"too many frames")
        return 0
    if peer.head_need == 6:
        size = head[1] & 127
    elif peer.head_need == 8:
        size = (<uint64_t>head[2] << 8) | head[3]
    else:
        size = 0
        for i in range(8):
            size = (size << 8) | head[2 + i]
    if (peer.head_need == 8 and size < 126) or (peer.head_need == 14 and size < 65536) or (
            size >> 63):
        wire.fail(peer, 1002, b"the length is not in its shortest form")
        return 0
    if peer.opcode < 8 and size + <uint64_t>peer.message_size > <uint64_t>wire.max_message:
        wire.fail(peer, 1009, b"the message is too large")
        return 0
    if (peer.opcode == 1 or peer.opcode == 2) and not peer.final:
        peer.message_opcode = peer.opcode
    peer.frame_size = size
    peer.frame_done = 0
    peer.in_payload = 1
    return 1


cdef int end_frame(Wire wire, Peer peer) except -1:
    cdef bytes whole
    cdef bint text
    peer.in_payload = 0
    peer.head_size = 0
    peer.head_need = 2
    if peer.opcode == 8:
        return got_close(wire, peer)
    if peer.opcode == 9:
        if peer.state == OPEN:
            peer.push(encode_bytes(<char *>peer.control, <Py_ssize_t>peer.frame_size, 10))
        PyMem_Free(peer.control)
        peer.control = NULL
        return 0
    if peer.opcode == 10 or not peer.final:
        return 0
    text = (peer.message_opcode or peer.opcode) == 1
    if text and peer.utf8 != 0:
        return wire.fail(peer, 1007, b"the text is not UTF-8")
    whole = PyBytes_FromStringAndSize(<char *>peer.message, peer.message_size)
    PyMem_Free(peer.message)
    peer.message = NULL
    peer.message_size = peer.message_capacity = 0
    peer.message_opcode = 0
    peer.utf8 = 0
    if peer.state == OPEN:
        wire.handler.message(peer, whole, text)
    return 0


cdef int got_close(Wire wire, Peer peer) except -1:
    cdef int code = 0
    cdef Py_ssize_t size = <Py_ssize_t>peer.frame_size
    if size == 1:
        return wire.fail(peer, 1002, b"half a close code")
    if size:
        code = (peer.control[0] << 8) | peer.control[1]
        if not good_code(code):
            return wire.fail(peer, 1002, b"not a close code")
        if utf8_check(0, peer.control + 2, size - 2) != 0:
            return wire.fail(peer, 1007, b"the reason is not UTF-8")
    if peer.state == OPEN:
        peer.append(close_frame(code, b""))
    peer.state = ENDING
    peer.deadline = wire.now + wire.close_seconds
    if peer.out_head == peer.out_end:
        wire.shut(peer)
    return wire.tell_closed(peer, code or 1005)
