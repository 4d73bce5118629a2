"""Connections to a document server over plain sockets: OP_MSG, one command at a time on each.

A loop watches the descriptors; what it finds readable is read here, and handed to who waits for it.
A command may be sent from another thread than the loop's: nothing here gives the interpreter's lock
up between looking and doing, but for calls of Python's code, which come last.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

from collections import deque

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t send(int fd, const void *data, size_t n, int flags)
    ssize_t recv(int fd, void *data, size_t n, int flags)

cdef enum:
    OP_MSG = 2013
    HEAD = 21           # length, id, answer to, code, flags, kind of the section
    MAX_MESSAGE = 48_000_000
    SCRATCH = 65536

cdef char scratch[SCRATCH]
cdef unsigned int numbers = 0


cdef class Waiter:
    """Who waits for an answer, and for a connection first. Told once, in the loop's thread.

    deadline: of waiting for a connection. queued: it does.
    """

    cdef bint turn(self, Link link) except -1:
        """A busy connection is its own now; false when it needs none any more."""
        return False

    cdef int answered(self, Link link, bytes answer) except -1:
        """answer: the document of the server's message. The connection may be used again."""
        return 0

    cdef int broken(self, Link link, str reason) except -1:
        """The connection has ended; the command may have been carried out. reason: "" when its
        time is over."""
        return 0


@cython.final
cdef class Promise(Waiter):
    """Waits by a future. failed: makes the exception of a reason."""

    cdef object future
    cdef object failed

    def __init__(self, future, failed):
        self.future = future
        self.failed = failed

    cdef int answered(self, Link link, bytes answer) except -1:
        if not self.future.done():
            self.future.set_result(answer)
        return 0

    cdef int broken(self, Link link, str reason) except -1:
        if not self.future.done():
            self.future.set_exception(self.failed(reason))
        return 0


@cython.final
cdef class Link:
    """One connection. sock: connected, not blocking; it is closed with the link."""

    def __init__(self, sock, loop):
        self.sock = sock
        self.loop = loop
        self.fd = sock.fileno()
        loop.add_reader(self.fd, self.readable)

    @property
    def usable(self):
        return not self.closed and self.waiter is None

    def send(self, bytes command not None, Waiter waiter not None, double deadline) -> bool:
        """Sends a command that names its `$db`. False when nothing was sent. deadline: by the
        monotonic clock; see expire()."""
        return self.start(command, waiter, deadline)

    cdef bint start(self, bytes command, Waiter waiter, double deadline) except -1:
        global numbers
        cdef Py_ssize_t size = HEAD + PyBytes_GET_SIZE(command)
        cdef bytes message
        cdef char *o
        cdef ssize_t sent
        if self.closed or self.waiter is not None or size > MAX_MESSAGE:
            return False
        numbers = (numbers + 1) & 0x7FFFFFFF
        self.number = numbers
        message = PyBytes_FromStringAndSize(NULL, size)
        o = PyBytes_AS_STRING(message)
        _put32(o, <uint32_t> size)
        _put32(o + 4, self.number)
        _put32(o + 8, 0)
        _put32(o + 12, OP_MSG)
        _put32(o + 16, 0)
        o[20] = 0
        memcpy(o + HEAD, PyBytes_AS_STRING(command), size - HEAD)
        while True:
            sent = send(self.fd, o, size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                break
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                return False  # its reader is about to find it ended
            sent = 0
            break
        self.have = 0
        self.waiter = waiter
        self.deadline = deadline
        if sent < size:
            self.unsent = message
            self.at = sent
            self.loop.call_soon_threadsafe(self.watch)
        return True

    def watch(self):
        """Called by the loop: the rest of a command is written as the server takes it."""
        if not self.closed and self.unsent is not None:
            self.loop.add_writer(self.fd, self.writable)

    def writable(self):
        """Called by the loop."""
        cdef ssize_t sent
        if self.unsent is None:
            self.loop.remove_writer(self.fd)
            return
        sent = send(self.fd, PyBytes_AS_STRING(self.unsent) + self.at,
                    PyBytes_GET_SIZE(self.unsent) - self.at, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                self.fail("the connection broke")
            return
        self.at += sent
        if self.at == PyBytes_GET_SIZE(self.unsent):
            self.unsent = None
            self.loop.remove_writer(self.fd)

    def readable(self):
        """Called by the loop."""
        cdef ssize_t n
        cdef bint into_body = self.body is not None and self.length - self.have >= SCRATCH
        if self.closed:
            return
        if into_body:
            n = recv(self.fd, PyBytes_AS_STRING(self.body) + self.have - HEAD,
                     self.length - self.have, MSG_DONTWAIT)
        else:
            n = recv(self.fd, scratch, SCRATCH, MSG_DONTWAIT)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                self.fail("the connection broke")
        elif n == 0:
            self.fail("the server closed the connection")
        elif into_body:
            self.have += n
            if self.have == self.length:
                self.whole()
        else:
            self.take(scratch, n)

    cdef int take(self, const char *p, Py_ssize_t n) except -1:
        """Bytes that have arrived."""
        cdef Py_ssize_t part
        if self.waiter is None:
            return self.fail("an answer that nobody asked for")
        if self.have < HEAD:
            part = min(HEAD - self.have, n)
            memcpy(self.head + self.have, p, part)
            self.have += part
            p += part
            n -= part
            if self.have < HEAD:
                return 0
            self.length = <int32_t> _get32(self.head)
            if (self.length < HEAD + 5 or self.length > MAX_MESSAGE
                    or _get32(self.head + 8) != self.number or _get32(self.head + 12) != OP_MSG
                    or (_get32(self.head + 16) & 0xFFFF) > 1 or self.head[20] != 0):
                return self.fail("an answer of another kind")
            self.body = PyBytes_FromStringAndSize(NULL, self.length - HEAD)
        part = self.length - self.have
        if n > part:
            return self.fail("more than one answer")
        memcpy(PyBytes_AS_STRING(self.body) + self.have - HEAD, p, n)
        self.have += n
        return self.whole() if n == part else 0

    cdef int whole(self) except -1:
        cdef Waiter waiter = self.waiter
        cdef bytes body = self.body
        self.waiter = None
        self.body = None
        if self.unsent is not None:
            self.unsent = None  # it answers what it has not read
            self.close()
        if _get32(self.head + 16) & 1:  # a checksum follows the document
            body = body[:PyBytes_GET_SIZE(body) - 4]
        return waiter.answered(self, body)

    cdef int fail(self, str reason) except -1:
        cdef Waiter waiter = self.waiter
        self.waiter = None
        self.close()
        return waiter.broken(self, reason) if waiter is not None else 0

    def expire(self, double now):
        """Ends a command whose time is over, and the connection with it."""
        if self.waiter is not None and now > self.deadline:
            self.fail("")

    def close(self):
        """In the loop's thread. Who waits is told, as of a connection that broke."""
        if self.closed:
            return
        self.closed = True
        self.loop.remove_reader(self.fd)
        if self.unsent is not None:
            self.unsent = None
            self.loop.remove_writer(self.fd)
        self.body = None
        self.sock.close()
        if self.waiter is not None:
            self.fail("the connection was closed")


cdef inline int _put32(char *o, uint32_t v) noexcept nogil:
    memcpy(o, &v, 4)
    return 0


cdef inline uint32_t _get32(const char *p) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, p, 4)
    return v


@cython.final
cdef class Dock:
    """The connections of one store, counted: idle ones, busy ones, and who waits for one in
    another thread than the loop's.

    limit: connections at most. open: that are open or being opened. used: when last, by the
    monotonic clock. crowds: queues of those who wait in the loop's thread. closed: what comes back
    is not used again.
    """

    def __init__(self, int limit):
        self.limit = limit
        self.idle = []
        self.queue = deque()
        self.crowds = ()

    def __len__(self):
        """Idle connections."""
        return len(self.idle)

    @property
    def waiting(self):
        """How many wait in other threads."""
        return len(self.queue)

    def pop(self):
        """The connection used last, which is busy then; None when all are."""
        if not self.idle:
            return None
        self.busy += 1
        return self.idle.pop()

    def pop_oldest(self):
        """The idle connection used longest ago, to be closed; None when there is none."""
        return self.idle.pop(0) if self.idle else None

    def count(self):
        """A connection that has been opened is busy."""
        self.busy += 1

    def gone(self):
        """A busy connection is used no more."""
        self.busy -= 1

    def put(self, connection):
        """A busy connection is idle, unless somebody waits for it in another thread. Whether it
        is idle."""
        cdef Waiter waiter
        while self.queue and type(connection) is Link:
            waiter = self.queue.popleft()
            if waiter.turn(<Link> connection):
                return False
        self.busy -= 1
        self.idle.append(connection)
        return True

    cdef bint take_back(self, Link link) except -1:
        """As put(), where nobody waits in the loop's thread. False when nothing has been done."""
        if self.closed or link.closed or link.waiter is not None:
            return False
        for crowd in self.crowds:
            if crowd:
                return False
        self.put(link)
        return True

    cdef object pop_or_queue(self, Waiter waiter):
        """As pop(), from another thread. None when all are busy; the waiter has its turn later if
        no more may be opened, and `queued` is set."""
        waiter.queued = False
        if self.idle:
            self.busy += 1
            return self.idle.pop()
        if self.open >= self.limit and self.busy > 0:
            waiter.queued = True
            self.queue.append(waiter)
        return None

    def late(self, double now):
        """Who has waited until its deadline, and waits no more."""
        found = []
        while self.queue and (<Waiter> self.queue[0]).deadline < now:
            found.append(self.queue.popleft())
        return found

    def flush(self):
        """Everybody who waits in other threads; they wait no more."""
        found = list(self.queue)
        self.queue.clear()
        return found
