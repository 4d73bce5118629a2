"""What the short way uses of a pool's placing."""
from ichicore.pg.executor cimport Executor
from ichicore.pg.group cimport Group, Shared


cdef class Placing:
    cdef readonly list executors    # the pool's open connections
    cdef readonly int depth
    cdef readonly int most          # connections at most
    cdef readonly Shared shared
    cdef public double timeout      # seconds a statement may take; 0 is no end
    cdef public bint busy           # somebody minds the time
    cdef public bint closed
    cdef public tuple waiting       # queues of those that wait for a connection
    cdef public object told         # (what, executor) of what the loop is to do
    cdef public unsigned long long groups
    cdef bint growing
    cdef bint held(self) except -1
    cdef int share(self, Group group) except -1
    cpdef Executor choose(self, Group group)
    cpdef bint crowded(self, Executor executor, Group group) except -1
    cpdef bint put(self, Group group, double now) except -1
