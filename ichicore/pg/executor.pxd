"""What other modules of the core use of executors."""
from libc.stdint cimport uintptr_t

from ichicore.pg.group cimport Described, Group, Shared, Statement
from ichicore.pg.libpq cimport PGcancel, PGconn, PGresult, jb_buf
from ichicore.rest.rows cimport RowFormat

cdef struct Command:
    int kind
    int index
    void *group                     # borrowed from Executor._groups; NULL for our own commands
    void *prepared                  # borrowed from Group._prepared


cdef class Prepared:
    cdef bytes name
    cdef tuple key
    cdef bint there                 # the server has confirmed it
    cdef unsigned long long used
    cdef Described described


cdef class Cancel:
    cdef PGcancel *_cancel


cdef class Executor:
    cdef PGconn *_conn
    cdef readonly Shared shared
    cdef object _spool_factory
    cdef dict _statements           # key -> Prepared
    cdef int _limit
    cdef unsigned long long _tick
    cdef unsigned long long _serial
    cdef Command *_ring
    cdef unsigned int _ring_size    # a power of two
    cdef unsigned int _head
    cdef unsigned int _tail
    cdef object _groups             # deque of Group, in the order sent
    cdef list _garbage              # names of statements to deallocate
    cdef jb_buf _buf
    cdef object _spool
    cdef Py_ssize_t _spilled
    cdef Py_ssize_t _rows
    cdef RowFormat _format
    cdef bint _armed
    cdef bint _failed_encoding
    cdef bint _commit_failed
    cdef unsigned int _defaults     # settings with their default in this session
    cdef Group _paused
    cdef Described _probe_described
    cdef list _probe_columns
    cdef double _last_done
    cdef bint _inside               # some thread is at work in here
    cdef readonly bint lost
    cdef readonly str lost_reason
    cdef readonly int depth
    cdef readonly int slow_depth
    cdef readonly int cancels       # cancel requests made on this connection so far
    cdef readonly bint wants_write
    cdef public bint writing        # the owner watches for room to write
    cdef readonly list retry        # groups that may be run again: nothing of them was kept
    cdef public bint exclusive
    cdef public bint reserved
    cdef public bint cancelling
    cdef public bint closing
    cdef public double idle_since
    cdef bytes _parameter(self, bytes name)
    cdef str _message(self)
    cdef bint _takes(self)
    cpdef submit(self, Group group, double now)
    cdef int _check(self, Group group) except -1
    cdef int _push(self, int kind, int index, Group group, Prepared prepared) except -1
    cdef bint _send(self, Group group) except -1
    cdef Prepared _known(self, tuple key, Group group)
    cdef int _confirm(self, Prepared prepared) except -1
    cdef Prepared _prepare(self, tuple key, bytes text, Group group, int index)
    cdef _evict(self)
    cdef _drop_garbage(self)
    cdef bint _execute(self, Group group, int index, bytes name, bint binary) except -1
    cdef bint _probe(self, Group group, Statement statement) except -1
    cdef bint _flush(self) except -1
    cpdef int on_readable(self, double now) except -1
    cdef int _pump(self, double now) except -1
    cdef int _arm(self, Command *command) except -1
    cdef bint _take(self, Command *command, PGresult *res, double now) except -1
    cdef void _pop(self) noexcept
    cdef int _failed(self, Command *command, Group group, PGresult *res, bint first) except -1
    cdef object _error_of(self, PGresult *res, int index)
    cdef _forget(self, str sql)
    cdef int _resume(self, Group group) except -1
    cdef int _learn_types(self, PGresult *res) except -1
    cdef int _settle(self, Group group, Statement statement) except -1
    cdef int _rows_of(self, Command *command, Group group, PGresult *res, int status) except -1
    cdef int _encode(self, Command *command, Group group, Described described,
                     PGresult *res) except -1
    cdef RowFormat _reformat(self, Command *command, Group group, PGresult *res)
    cdef int _spill(self, Group group) except -1
    cdef object _body(self, Described described)
    cdef int _drop_body(self) except -1
    cdef int _finish(self, Group group, double now) except -1
    cdef bint _hit_by_other(self, Group group)
    cdef int _deliver(self, Group group) except -1
    cdef int _fail(self, str reason) except -1
