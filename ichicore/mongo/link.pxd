cdef class Waiter:
    cdef double deadline
    cdef bint queued

    cdef bint turn(self, Link link) except -1
    cdef int answered(self, Link link, bytes answer) except -1
    cdef int broken(self, Link link, str reason) except -1


cdef class Link:
    cdef object sock
    cdef object loop
    cdef int fd
    cdef readonly bint closed
    cdef Waiter waiter
    cdef double deadline
    cdef unsigned int number
    cdef char head[21]
    cdef bytes body
    cdef Py_ssize_t length
    cdef Py_ssize_t have
    cdef bytes unsent
    cdef Py_ssize_t at

    cdef bint start(self, bytes command, Waiter waiter, double deadline) except -1
    cdef int take(self, const char *p, Py_ssize_t n) except -1
    cdef int whole(self) except -1
    cdef int fail(self, str reason) except -1


cdef class Dock:
    cdef list idle
    cdef object queue
    cdef public int limit
    cdef public int open
    cdef readonly int busy
    cdef public double used
    cdef public tuple crowds
    cdef public bint closed

    cdef bint take_back(self, Link link) except -1
    cdef object pop_or_queue(self, Waiter waiter)
