"""What other modules of the core use of groups."""
from ichicore.rest.rows cimport RowFormat, TypeTable

cdef enum:
    MODE_NONE = 0
    MODE_JSON = 1
    MODE_VALUES = 2


cdef class Statement:
    cdef readonly str sql
    cdef readonly int result
    cdef readonly bint per_role
    cdef readonly bint strip_nulls
    cdef bytes _text
    cdef readonly double service    # seconds that its groups take, a running mean
    cdef bint _sets_format          # its text names a setting that changes how values are written


cdef class Group:
    cdef readonly str role
    cdef readonly list statements   # of Statement
    cdef list _params               # of tuple, one per statement
    cdef list _results
    cdef list _prepared             # keeps entries alive while commands refer to them
    cdef object _waiter
    cdef object _error
    cdef int _next                  # first statement that has not been sent
    cdef bint _plain                # no setting is changed that encoders depend on
    cdef bint _mismatch
    cdef readonly bint abandoned
    cdef public int main            # index of the statement that its time is put down to
    cdef public bint slow
    cdef public bint in_session
    cdef public bint expired
    cdef public int retries
    cdef public int crowded         # times that the server had no room for its locks
    cdef public double deadline     # clock of the pool; 0 is none
    cdef public double sent_at
    cdef readonly int cancels_seen
    cdef Statement measured(self)
    cdef bint writes(self) except -1
    cdef int check(self) except -1
    cpdef add(self, Statement statement, tuple params=*)
    cdef _reset(self)


cdef class Result:
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t affected
    cdef readonly str tag
    cdef readonly object body
    cdef readonly list values
    cdef readonly tuple columns


cdef class Described:
    cdef readonly str sql
    cdef readonly bytes text        # what is prepared: the statement or its wrapped form
    cdef readonly RowFormat format
    cdef readonly Py_ssize_t largest   # bytes of the largest body so far
    cdef readonly bint wrapped
    cdef int runs


cdef class Shared:
    cdef readonly TypeTable types
    cdef readonly dict described
    cdef readonly dict slow_sql     # sql -> score
    cdef readonly int limit
    cdef observe(self, Group group, double seconds)
