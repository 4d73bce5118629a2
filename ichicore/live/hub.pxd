from libc.stdint cimport uint64_t

from ichicore.live.wire cimport Peer


cdef class Channel:
    cdef readonly str name
    cdef readonly dict members            # Peer > whether it gets what it sends itself
    cdef readonly dict present            # Peer > (key, value as JSON)
    cdef readonly dict remote             # key > value as JSON, of those on other nodes
    cdef readonly Py_ssize_t present_size # bytes of the values
    cdef bytes quoted

    cdef Py_ssize_t fan(self, bytes frame, Peer sender) except -1
    cdef Py_ssize_t tell(self, bytes frame, Peer sender) except -1


cdef class Group:
    cdef readonly object key
    cdef readonly Source source
    cdef readonly int events
    cdef readonly object rule
    cdef readonly object filter
    cdef readonly bint whole
    cdef readonly dict members            # Peer > number of subscriptions
    cdef tuple terms
    cdef Py_ssize_t slot
    cdef uint64_t stamp


cdef class Source:
    cdef readonly str kind
    cdef readonly str name
    cdef public object fields
    cdef readonly dict groups
    cdef dict index                       # path > value > list of groups
    cdef dict parts                       # path > its names
    cdef list scan
    cdef bytes head

    cdef list candidates(self, dict subject, int bit, uint64_t stamp)
    cdef int gather(self, list found, dict table, object value, tuple names, Py_ssize_t at, int bit,
                    uint64_t stamp) except -1


cdef class Hub:
    cdef readonly dict channels
    cdef readonly dict sources            # (kind, name) > Source
    cdef readonly uint64_t changes, tests, faults
    cdef public object last_fault
    cdef object waiting                   # changes not looked at yet
    cdef readonly Py_ssize_t weight       # bytes of JSON of these
    cdef dict lagging                     # Peer > [bytes that were queued, when]
    cdef double now                       # of this pump(), negative when it waits for nobody
    cdef uint64_t stamp
    cdef int bit                          # of its event
    # the change that is being delivered
    cdef object change
    cdef Source about
    cdef list groups
    cdef Py_ssize_t at
    cdef dict subject
    cdef object old
    cdef bint read, old_read
    cdef int unknown                      # of the record, 1, and the old one, 2, may be more
    cdef list frames
    cdef readonly uint64_t delivered

    cdef int tidy(self, Channel channel) except -1
    cdef bint begin(self, change) except -1
    cdef int look(self) except -1
    cdef int look_back(self) except -1
    cdef int deliver(self, Group group) except -1
    cdef bytes frame_for(self, bint with_old, bint whole)
    cdef bytes write_frame(self, bint with_old, object fields, Py_ssize_t longest)
    cdef bint held_up(self) except -1
