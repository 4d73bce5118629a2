"""WebSocket connections (RFC 6455, server side) over file descriptors that are handed in.

A Wire holds any number of connections and one epoll descriptor, which the owner's event loop
watches. Nothing here waits: reads and writes take what the kernel has ready. A frame is a bytes
object that is encoded once and queued, by reference, for any number of connections; the frames
queued for one connection leave in one system call.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from ichicore.live.frames cimport close_frame, encode_bytes
from ichicore.live.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL,
    SHUT_WR, SOCK_CLOEXEC, SOCK_NONBLOCK, TCP_NODELAY, TCP_NOTSENT_LOWAT, accept4, c_close,
    clear, epoll_create1, epoll_ctl, epoll_event, epoll_wait, getpeername, inet_ntop, iovec,
    msghdr, recv, send, sendmsg, setsockopt, shutdown, sockaddr, sockaddr_in, sockaddr_in6,
    sockaddr_storage,
)
from ichicore.live.reading cimport read_frames

cdef enum:
    SCRATCH = 65536  # bytes of one read
    SPARING = 4096  # the same, of who has sent too fast before: their frames are handled in one go
    MAX_HEAD = 16384  # bytes of an HTTP request
    EVENTS = 128  # connections looked at in one round
    VECTORS = 64  # frames of one write
    JOINT = 32768  # bytes of several frames that are copied together before they are written
    UNSENT = 131072  # bytes the kernel may hold unsent for one peer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def encode(bytes payload not None, int opcode=1):
    """A server's frame, unmasked, in one piece."""
    return encode_bytes(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), opcode)


@cython.final
cdef class Peer:
    """One connection. owner: whatever its handler keeps for it. expires: a time of the clock that
    Wire.sweep is given, from which on it is reported, 0 for never. local: from a worker, which opens
    a unix socket for each of its own. queued: bytes not yet written."""

    def __dealloc__(self):
        PyMem_Free(self.message)
        PyMem_Free(self.control)
        if self.out != NULL:
            self.drop_frames()
        if self.fd >= 0:
            c_close(self.fd)

    @property
    def open(self):
        """Whether frames can be sent."""
        return self.state == OPEN

    @property
    def waiting(self):
        """Whether its request has not been answered."""
        return self.state == REQUEST

    @property
    def address(self):
        """The other end's IP address, "" for a unix socket."""
        cdef sockaddr_storage found
        cdef unsigned int size = sizeof(found)
        cdef char text[64]
        cdef const char *read = NULL
        if self.fd < 0 or getpeername(self.fd, <sockaddr *>&found, &size) != 0:
            return ""
        if found.ss_family == AF_INET:
            read = inet_ntop(AF_INET, &(<sockaddr_in *>&found).sin_addr, text, sizeof(text))
        elif found.ss_family == AF_INET6:
            read = inet_ntop(AF_INET6, &(<sockaddr_in6 *>&found).sin6_addr, text, sizeof(text))
        return "" if read == NULL else (<bytes>text).decode("ascii")

    def upgrade(self, bytes response not None, owner):
        """Answers the request and opens the connection."""
        if self.state != REQUEST:
            raise ValueError("the request has been answered")
        self.owner = owner
        self.append(response)
        self.state = OPEN
        self.go_on()

    def hold(self, uint32_t seconds=0):
        """Reads nothing of it until go_on(); what has been read already is handed on. seconds: that
        its request may wait for an answer."""
        if self.state > OPEN:
            return
        self.held = 1
        if self.state == REQUEST:
            self.deadline = self.wire.now + seconds + 1
        else:
            self.hasty = 1
        self.wire.listen_to(self)

    def go_on(self):
        """Reads on."""
        if self.held:
            self.held = 0
            if self.state != DEAD:
                self.wire.listen_to(self)

    def refuse(self, bytes response not None):
        """Answers the request and ends the connection."""
        if self.state == REQUEST:
            self.append(response)
            self.state = ENDING
            self.go_on()
            self.deadline = self.wire.now + self.wire.close_seconds

    def send(self, bytes frame not None):
        """Queues an encoded frame; False when the connection is not open or too far behind."""
        return self.push(frame) == 1

    def close(self, int code=1000, bytes reason not None=b"", bytes last=None):
        """Sends `last`, an encoded frame, and CLOSE; what waits in the queue is dropped when the
        peer has fallen behind. Calls the handler's closed()."""
        cdef Wire wire = self.wire
        if self.state == REQUEST:
            wire.destroy(self, 1006)
        if self.state != OPEN:
            return
        if self.is_slow:
            self.shorten()
        if last is not None:
            self.append(last)
        self.append(close_frame(code, reason))
        self.state = CLOSE_SENT
        self.go_on()
        self.deadline = wire.now + wire.close_seconds
        wire.tell_closed(self, code)

    def abort(self):
        """Ends the connection at once."""
        self.wire.destroy(self, 1006)

    cdef int push(self, bytes frame) except -1:
        if self.state != OPEN:
            return 0
        if self.queued and self.queued + PyBytes_GET_SIZE(frame) > self.wire.max_buffer:
            if not self.is_slow:
                self.is_slow = 1
                self.wire.slow.append(self)
                self.wire.rouse()  # so that the owner hears of it soon
            return 0
        self.append(frame)
        return 1

    cdef int append(self, bytes frame) except -1:
        cdef PyObject **grown
        cdef Py_ssize_t count = self.out_end - self.out_head
        if PyBytes_GET_SIZE(frame) == 0:
            return 0
        if self.out_end == self.out_capacity:
            if self.out_head:
                memmove(self.out, self.out + self.out_head, count * sizeof(PyObject *))
            else:
                self.out_capacity = self.out_capacity * 2 if self.out_capacity else 4
                grown = <PyObject **>PyMem_Realloc(self.out, self.out_capacity * sizeof(PyObject *))
                if grown == NULL:
                    self.out_capacity = self.out_end
                    raise MemoryError
                self.out = grown
            self.out_head = 0
            self.out_end = count
        Py_INCREF(frame)
        self.out[self.out_end] = <PyObject *>frame
        self.out_end += 1
        self.queued += PyBytes_GET_SIZE(frame)
        if not self.dirty and not self.wants_out:
            self.wire.mark(self)
        return 0

    cdef int shorten(self) except -1:
        """Drops the queued frames of which nothing has been written."""
        cdef Py_ssize_t keep = self.out_head + (1 if self.out_offset else 0)
        while self.out_end > keep:
            self.out_end -= 1
            self.queued -= PyBytes_GET_SIZE(<bytes>self.out[self.out_end])
            Py_DECREF(<object>self.out[self.out_end])
        return 0

    cdef int drop_frames(self) except -1:
        while self.out_head < self.out_end:
            Py_DECREF(<object>self.out[self.out_head])
            self.out_head += 1
        PyMem_Free(self.out)
        self.out = NULL
        self.out_head = self.out_end = self.out_capacity = self.out_offset = self.queued = 0
        return 0


cdef int set_up(int fd) noexcept:
    """What a TCP socket of ours is told; others take no notice."""
    cdef int one = 1, unsent = UNSENT
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent))
    return 0


@cython.final
cdef class Wire:
    """handler: has request(peer, head: bytes), which calls peer.upgrade or peer.refuse;
    message(peer, data: bytes, text: bool); closed(peer, code), once for each connection that was
    open; slow(peer), when frames for it had to be dropped; wake(), when flush() should be called
    soon. max_message, max_buffer: bytes of a message, and of what may wait for one peer.
    max_frames: a second, control frames and fragments included. idle_seconds: without a byte until
    the connection counts as gone; it is pinged at half of that."""

    def __cinit__(self):
        self.epoll = -1

    def __init__(self, handler, *, Py_ssize_t max_message=65536, Py_ssize_t max_buffer=1 << 20,
                 uint32_t max_frames=200, uint32_t idle_seconds=60, uint32_t request_seconds=10,
                 uint32_t close_seconds=5):
        self.handler = handler
        self.peers = []
        self.graves = []
        self.slow = []
        self.max_message = max_message
        self.max_buffer = max_buffer
        self.max_frames = max_frames
        self.idle_seconds = idle_seconds
        self.request_seconds = request_seconds
        self.close_seconds = close_seconds
        self.scratch = <char *>PyMem_Malloc(SCRATCH)
        self.joint = <char *>PyMem_Malloc(JOINT)
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        if self.scratch == NULL or self.joint == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.dirty_count):
            Py_DECREF(<object>self.dirty[(self.dirty_head + i) % self.dirty_capacity])
        PyMem_Free(self.dirty)
        self.part()
        PyMem_Free(self.scratch)
        PyMem_Free(self.joint)
        if self.epoll >= 0:
            c_close(self.epoll)

    @property
    def pending(self):
        """How many connections have frames that flush() will write."""
        return self.dirty_count

    def fileno(self):
        """To be watched for reading; then call ready()."""
        return self.epoll

    def accept(self, int listener, int most=64):
        """Takes up to `most` waiting connections of a listening socket. Gives how many; OSError
        when the process or the machine has no room for more."""
        cdef int fd, count = 0
        while count < most:
            fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                if errno == EAGAIN:
                    break
                if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    raise OSError(errno, "no room for another connection")
                if errno == EINTR:
                    continue
                count += 1  # one that ended while it waited
                continue
            count += 1
            set_up(fd)
            self.adopt(fd)
        return count

    def take(self, int fd, bytes head not None):
        """Takes over a socket of which a request has been read already, which is handled here. The
        descriptor is ours, whatever happens."""
        cdef Peer peer
        set_up(fd)
        try:
            peer = self.adopt(fd)
        except OSError:
            c_close(fd)
            raise
        peer.local = 0
        self.take_request(peer, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))

    def adopt(self, int fd):
        """Takes over a connected, non-blocking socket; gives its Peer."""
        cdef Peer peer = Peer.__new__(Peer)
        cdef epoll_event event
        cdef sockaddr_storage name
        cdef unsigned int size = sizeof(name)
        peer.wire = self
        peer.fd = fd
        peer.seen = self.now
        peer.deadline = self.now + self.request_seconds
        peer.head_need = 2
        if getpeername(fd, <sockaddr *>&name, &size) == 0:
            peer.local = name.ss_family == AF_UNIX
        event.events = EPOLLIN
        event.data.ptr = <void *>peer
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event) != 0:
            raise OSError(errno, "epoll_ctl")
        peer.slot = len(self.peers)
        self.peers.append(peer)
        return peer

    def ready(self):
        """Reads from and writes to the connections that are ready, a limited number of them; the
        descriptor stays readable while there are more."""
        cdef epoll_event events[EVENTS]
        cdef int count, i
        cdef uint8_t queued
        cdef Peer peer
        count = epoll_wait(self.epoll, events, EVENTS, 0)
        self.reading = True
        try:
            for i in range(count):
                peer = <Peer>events[i].data.ptr
                if peer.state == DEAD:
                    continue
                if events[i].events & EPOLLOUT:
                    self.write(peer)
                if peer.state != DEAD and events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR):
                    queued = peer.dirty
                    peer.dirty = 1  # what it is answered is written below
                    try:
                        self.read(peer)
                    finally:
                        peer.dirty = queued
                    if peer.state != DEAD and peer.out_head < peer.out_end and not peer.wants_out:
                        self.write(peer)  # answers do not wait behind a fan-out
        finally:
            self.reading = False
            self.part()
            self.graves.clear()

    def flush(self, int most=256):
        """Writes what is queued for up to `most` connections, those first that have waited longest.
        True when more are left."""
        cdef Peer peer
        cdef PyObject *taken
        cdef int done = 0
        self.awake = False
        while self.dirty_count and done < most:
            taken = self.dirty[self.dirty_head]
            self.dirty_head = (self.dirty_head + 1) % self.dirty_capacity
            self.dirty_count -= 1
            peer = <Peer>taken
            Py_DECREF(peer)
            peer.dirty = 0
            if peer.state != DEAD and peer.out_head < peer.out_end and not peer.wants_out:
                self.write(peer)
                done += 1
        self.part()
        while self.slow:
            peer = self.slow.pop()
            if peer.state == OPEN:
                self.handler.slow(peer)
        if self.dirty_count:
            self.awake = True
            return True
        return False

    def sweep(self, uint32_t now, double clock):
        """To be called once a second. now: seconds of a clock that does not jump. clock: what
        `expires` is compared with. Ends what has been silent or slow to close; gives the peers that
        have expired."""
        cdef Peer peer
        cdef list expired = []
        cdef uint32_t silent
        self.now = now
        for peer in list(self.peers):
            peer.frames = 0
            if peer.state == OPEN:
                silent = now - peer.seen if now > peer.seen else 0
                if silent >= self.idle_seconds:
                    self.destroy(peer, 1006)
                    continue
                if silent >= self.idle_seconds // 2 and not peer.pinged:
                    peer.pinged = 1
                    peer.push(b"\x89\x00")
                if peer.expires and peer.expires <= clock:
                    expired.append(peer)
            elif now >= peer.deadline:
                self.destroy(peer, 1006)
        return expired

    def close_all(self):
        """Ends everything at once."""
        for peer in list(self.peers):
            self.destroy(peer, 1006)
        self.graves.clear()

    cdef int mark(self, Peer peer) except -1:
        cdef PyObject **grown
        cdef Py_ssize_t capacity, i
        if not peer.dirty:
            if self.dirty_count == self.dirty_capacity:
                capacity = self.dirty_capacity * 2 if self.dirty_capacity else 64
                grown = <PyObject **>PyMem_Malloc(capacity * sizeof(PyObject *))
                if grown == NULL:
                    raise MemoryError
                for i in range(self.dirty_count):
                    grown[i] = self.dirty[(self.dirty_head + i) % self.dirty_capacity]
                PyMem_Free(self.dirty)
                self.dirty = grown
                self.dirty_head = 0
                self.dirty_capacity = capacity
            Py_INCREF(peer)
            self.dirty[(self.dirty_head + self.dirty_count) % self.dirty_capacity] = (
                <PyObject *>peer
            )
            self.dirty_count += 1
            peer.dirty = 1
        return self.rouse()

    cdef int rouse(self) except -1:
        if not self.awake:
            self.awake = True
            self.handler.wake()
        return 0

    cdef int write(self, Peer peer) except -1:
        """Writes all that the kernel takes."""
        cdef iovec vectors[VECTORS]
        cdef msghdr message
        cdef ssize_t sent
        cdef Py_ssize_t count, i, left
        cdef bytes frame
        cdef bint want = False
        while peer.out_head < peer.out_end:
            count = min(peer.out_end - peer.out_head, VECTORS)
            frame = <bytes>peer.out[peer.out_head]
            if count == 1:
                sent = send(peer.fd, PyBytes_AS_STRING(frame) + peer.out_offset,
                            PyBytes_GET_SIZE(frame) - peer.out_offset,
                            MSG_NOSIGNAL | MSG_DONTWAIT)
            elif peer.out_offset == 0 and peer.queued <= JOINT and self.join(
                    peer.out + peer.out_head, count):
                sent = send(peer.fd, self.joint, self.joint_size, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                for i in range(count):
                    frame = <bytes>peer.out[peer.out_head + i]
                    vectors[i].iov_base = PyBytes_AS_STRING(frame)
                    vectors[i].iov_len = PyBytes_GET_SIZE(frame)
                vectors[0].iov_base = <char *>vectors[0].iov_base + peer.out_offset
                vectors[0].iov_len -= peer.out_offset
                clear(&message)
                message.msg_iov = vectors
                message.msg_iovlen = count
                sent = sendmsg(peer.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    want = True
                    break
                self.destroy(peer, 1006)
                return 0
            self.bytes_out += sent
            peer.queued -= sent
            sent += peer.out_offset
            peer.out_offset = 0
            while sent > 0:
                frame = <bytes>peer.out[peer.out_head]
                left = PyBytes_GET_SIZE(frame)
                if sent < left:
                    peer.out_offset = sent
                    break
                sent -= left
                Py_DECREF(frame)
                peer.out_head += 1
                self.frames_out += 1
        if peer.out_head == peer.out_end:
            peer.out_head = peer.out_end = 0
            if peer.out_capacity > 16:
                PyMem_Free(peer.out)
                peer.out = NULL
                peer.out_capacity = 0
        self.watch(peer, want)
        if peer.state == ENDING and peer.out_head == peer.out_end:
            self.shut(peer)
        return 0

    cdef int join(self, PyObject **frames, Py_ssize_t count) noexcept:
        """Copies frames into `joint`. Receivers of a fan-out mostly have the same ones queued: then
        they lie there already."""
        cdef Py_ssize_t i, size, at = 0
        if count == self.joined_count and memcmp(
                frames, self.joined, count * sizeof(PyObject *)) == 0:
            return 1
        self.part()
        for i in range(count):
            size = PyBytes_GET_SIZE(<bytes>frames[i])
            if at + size > JOINT:
                return 0
            memcpy(self.joint + at, PyBytes_AS_STRING(<bytes>frames[i]), size)
            at += size
        for i in range(count):
            Py_INCREF(<object>frames[i])  # their addresses must not be given to others meanwhile
            self.joined[i] = frames[i]
        self.joined_count = count
        self.joint_size = at
        return 1

    cdef int part(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self.joined_count):
            Py_DECREF(<object>self.joined[i])
        self.joined_count = 0
        return 0

    cdef int watch(self, Peer peer, bint want) except -1:
        """Asks to be told when the peer can be written to, or no longer."""
        if want != peer.wants_out:
            peer.wants_out = want
            self.listen_to(peer)
        return 0

    cdef int listen_to(self, Peer peer) except -1:
        cdef epoll_event event
        event.events = (0 if peer.held else EPOLLIN) | (EPOLLOUT if peer.wants_out else 0)
        event.data.ptr = <void *>peer
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, peer.fd, &event)
        return 0

    cdef int shut(self, Peer peer) except -1:
        """All is written: tells the peer, whose own end is awaited so that nothing that is under
        way to it gets lost."""
        shutdown(peer.fd, SHUT_WR)
        return 0

    cdef int destroy(self, Peer peer, int code) except -1:
        cdef Peer last
        if peer.state == DEAD:
            return 0
        if peer.state != OPEN:
            peer.told = 1
        peer.state = DEAD
        # closing is not enough while another process still has a descriptor of the same socket
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, peer.fd, NULL)
        c_close(peer.fd)
        peer.fd = -1
        last = self.peers.pop()
        if last is not peer:
            self.peers[peer.slot] = last
            last.slot = peer.slot
        peer.drop_frames()
        PyMem_Free(peer.message)
        peer.message = NULL
        peer.message_size = peer.message_capacity = 0
        PyMem_Free(peer.control)
        peer.control = NULL
        if self.reading:
            self.graves.append(peer)  # events of this round may still name it
        self.tell_closed(peer, code)
        peer.owner = None
        return 0

    cdef int tell_closed(self, Peer peer, int code) except -1:
        if not peer.told:
            peer.told = 1
            self.handler.closed(peer, code)
        return 0

    cdef int read(self, Peer peer) except -1:
        cdef ssize_t size
        while True:
            size = recv(peer.fd, self.scratch, SPARING if peer.hasty else SCRATCH, MSG_DONTWAIT)
            if size >= 0 or errno != EINTR:
                break
        if size < 0 and errno == EAGAIN:
            return 0
        if size <= 0:
            self.destroy(peer, 1006)
            return 0
        peer.seen = self.now
        peer.pinged = 0
        if peer.state == REQUEST:
            return self.take_request(peer, self.scratch, size)
        return read_frames(self, peer, <unsigned char *>self.scratch, size)

    cdef int take_request(self, Peer peer, const char *data, Py_ssize_t size) except -1:
        """Collects the HTTP request up to its empty line."""
        cdef Py_ssize_t end
        cdef bytes whole = PyBytes_FromStringAndSize(<char *>peer.message, peer.message_size)
        whole += data[:size]
        end = whole.find(b"\r\n\r\n")
        if end < 0 and len(whole) <= MAX_HEAD:
            self.keep(peer, <const unsigned char *>data, size)
            return 0
        PyMem_Free(peer.message)
        peer.message = NULL
        peer.message_size = peer.message_capacity = 0
        self.handler.request(peer, whole[:end] if 0 <= end <= MAX_HEAD else whole[:MAX_HEAD + 1])
        if peer.state == OPEN and len(whole) > end + 4:
            rest = whole[end + 4:]
            return read_frames(self, peer, <const unsigned char *>PyBytes_AS_STRING(rest), len(rest))
        if peer.state == REQUEST and not peer.held:
            self.destroy(peer, 1006)
        return 0

    cdef int keep(self, Peer peer, const unsigned char *data, Py_ssize_t size) except -1:
        """Room for, and a copy of, bytes that belong to an unfinished message."""
        cdef Py_ssize_t need = peer.message_size + size, capacity
        cdef unsigned char *grown
        if need > peer.message_capacity:
            capacity = max(need, min(peer.message_capacity * 2, self.max_message))
            grown = <unsigned char *>PyMem_Realloc(peer.message, capacity)
            if grown == NULL:
                raise MemoryError
            peer.message = grown
            peer.message_capacity = capacity
        memcpy(peer.message + peer.message_size, data, size)
        peer.message_size = need
        return 0

    cdef int fail(self, Peer peer, int code, bytes reason) except -1:
        """Ends a connection that breaks the protocol."""
        if peer.state == OPEN:
            peer.append(close_frame(code, reason))
        peer.state = ENDING
        peer.go_on()
        peer.deadline = self.now + self.close_seconds
        if peer.out_head == peer.out_end:
            self.shut(peer)
        return self.tell_closed(peer, code)
