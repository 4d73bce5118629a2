"""What other modules of the core use of executors."""
from libc.stdint cimport uintptr_t

from ichicore.pg.body cimport Body
from ichicore.pg.group cimport Described, Group, Shared, Statement
from ichicore.pg.libpq cimport PGcancel, PGconn, PGresult
from ichicore.pg.prepared cimport Prepared, PreparedCache
from ichicore.pg.ring cimport Command, Ring
from ichicore.rest.rows cimport RowFormat


cdef class Cancel:
    cdef PGcancel *_cancel


cdef class Executor:
    cdef PGconn *_conn
    cdef readonly Shared shared
    cdef PreparedCache _statements
    cdef Body _body                 # of the result that is being read
    cdef Ring _ring
    cdef object _groups             # deque of Group, in the order sent
    cdef bint _armed
    cdef bint _commit_failed
    cdef unsigned int _defaults     # settings with their default in this session
    cdef Group _paused
    cdef list _probe_columns
    cdef double _last_done
    cdef bint _inside               # some thread is at work in here
    cdef readonly bint lost
    cdef readonly str lost_reason
    cdef readonly int depth
    cdef readonly int slow_depth
    cdef readonly int writes        # groups in flight that return nothing: their commits wait
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
    cdef bint _send(self, Group group) except -1
    cdef Prepared _prepare(self, tuple key, bytes text, Group group, int index)
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
    cdef int _forget(self, str sql) except -1
    cdef int _resume(self, Group group) except -1
    cdef int _settle(self, Group group, Statement statement) except -1
    cdef int _rows_of(self, Command *command, Group group, PGresult *res, int status) except -1
    cdef int _encode(self, Command *command, Group group, Described described,
                     PGresult *res) except -1
    cdef RowFormat _reformat(self, Command *command, Group group, PGresult *res)
    cdef object _ended(self, Group group, Described described)
    cdef int _finish(self, Group group, double now) except -1
    cdef bint _hit_by_other(self, Group group)
    cdef bint _had_no_room(self, Group group, double took) except -1
    cdef int _deliver(self, Group group) except -1
    cdef int _fail(self, str reason) except -1
