"""Where the quick groups of a pool go, for callers in any thread.

The loop's thread owns a pool. Another thread may hand it a group while it holds the interpreter's
lock, which keeps the two apart but for one case: Python code that a connection calls while it is
at work may let go of the lock. Such a connection says so, and is left alone.
"""
cimport cython

from ichicore.pg.executor cimport Executor
from ichicore.pg.group cimport MODE_NONE, Group, Shared, Statement

# What `told` is asked to do, in the loop's thread.
WAKE = "wake"       # mind the time: something is in flight
GROW = "grow"       # open another connection
AFTER = "after"     # see to a connection: it is lost, or has more to write

# Seconds of work that quick groups share a connection for before the next one is taken. Less of it
# goes faster together: each wake-up of a server process costs as much as a quick statement.
cdef double TOGETHER = 0.004
# Writes in flight on one connection: the next is there when the first has been committed, while
# commits of several connections share a flush of the log.
cdef int WRITES = 2


@cython.final
cdef class Placing:
    """executors: shared with the pool, which adds and removes. depth: quick groups in flight on
    one connection."""

    def __init__(self, list executors not None, Shared shared not None, int depth, int most,
                 double timeout):
        self.executors = executors
        self.shared = shared
        self.depth = depth
        self.most = most
        self.timeout = timeout
        self.waiting = ()

    cdef bint held(self) except -1:
        """Whether anybody waits for a connection."""
        for queue in self.waiting:
            if queue:
                return True
        return False

    cpdef bint put(self, Group group, double now) except -1:
        """Sends a quick group that has its waiter. False when it has to go through the pool: it
        may be slow, others wait already, or no connection can take it now."""
        cdef Executor executor
        if self.closed or self.held() or (
                self.shared.slow_sql and self.shared.is_slow(group)):
            return False
        executor = self.choose(group)
        if executor is None or executor._inside:
            return False
        if self.timeout:
            group.deadline = now + self.timeout
        executor.submit(group, now)
        self.groups += 1
        if not self.busy:
            self.busy = True
            self.told(WAKE, None)
        if executor.wants_write or executor.lost:
            self.told(AFTER, executor)
        if not self.growing and self.crowded(executor, group):
            self.growing = True
            self.told(GROW, None)
        return True

    cpdef Executor choose(self, Group group):
        """The connection for a quick group: the first on which little stands before it, else the
        one with the least; None when all are full or busy with slow ones. What reads stays away
        from writes if it can: their commits may wait for those of others."""
        cdef Executor one, best = None
        cdef int share = self.share(group)
        cdef bint reads = not group.writes()
        for one in self.executors:
            if not one._takes() or one.slow_depth or one.reserved or one.depth >= self.depth:
                continue
            if one.depth < share and not (reads and one.writes):
                return one
            if best is None or one.depth < best.depth:
                best = one
        return best

    cdef int share(self, Group group) except -1:
        """How many groups like this one may well share a connection."""
        cdef Statement main = group.measured()
        cdef double service
        if main is None:
            return 1
        if main.result == MODE_NONE:
            return WRITES
        service = main.service
        if service * self.depth <= TOGETHER:
            return self.depth
        return max(1, <int> (TOGETHER / service))

    cpdef bint crowded(self, Executor executor, Group group) except -1:
        """Whether another connection is worth having, and may be opened, now that this one has
        taken the group."""
        return len(self.executors) < self.most and (
            executor.depth > self.share(group) or (executor.writes > 0 and not group.writes())
        )

    def grown(self):
        """The pool has looked at whether to open a connection."""
        self.growing = False


@cython.final
cdef class Reader:
    """What the loop calls when a connection has something to read.

    clock: seconds, the pool's. more: called with an error or None when there is more to do than to
    hand out results: groups that wait or are to be run again, a connection that is lost.
    """

    cdef Executor executor
    cdef Placing placing
    cdef object clock
    cdef object more

    def __init__(self, Executor executor not None, Placing placing not None, clock, more):
        self.executor = executor
        self.placing = placing
        self.clock = clock
        self.more = more

    def __call__(self):
        cdef Executor executor = self.executor
        try:
            executor.on_readable(self.clock())
        except Exception as error:  # the executor has given its connection up
            self.more(error)
            return
        if executor.retry or executor.lost or executor.cancelling or \
                executor.wants_write != executor.writing or self.placing.held():
            self.more(None)


def idle(list executors not None):
    """A connection with nothing in flight that takes a group now, or None."""
    cdef Executor one
    for one in executors:
        if one.depth == 0 and one._takes():
            return one
    return None
