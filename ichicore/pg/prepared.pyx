"""The statements that are prepared on one connection."""
cimport cython


@cython.final
@cython.freelist(64)
cdef class Prepared:
    """A statement prepared on one connection."""


@cython.final
cdef class PreparedCache:
    """At most `limit` prepared statements by key, (sql, role or None, variant). Names of those that
    are forgotten wait in `garbage` to be deallocated. limit 0: none is kept; each time a statement
    is used it is parsed as the nameless one, which the next one replaces."""

    def __cinit__(self, Py_ssize_t limit):
        self.nameless = limit <= 0
        self.limit = max(limit, 8)
        self.known = {}
        self.garbage = []

    cdef Prepared find(self, tuple key, list own):
        """A prepared statement that will be there when a group runs that has `own`, or None. One
        that another group in flight prepares may never be: that group may fail before it comes to
        it."""
        cdef Prepared prepared = <Prepared> self.known.get(key)
        cdef Prepared one
        if prepared is None or prepared.there:
            return prepared
        for one in own:
            if one is prepared:
                return prepared
        return None

    cdef Prepared make(self, tuple key):
        """A new one with a name, not yet kept."""
        cdef Prepared prepared = Prepared()
        prepared.key = key
        if self.nameless:
            prepared.name = b""
            return prepared
        if len(self.known) >= self.limit:
            self.evict()
        self.serial += 1
        prepared.name = b"i%d" % self.serial
        return prepared

    cdef int keep(self, Prepared prepared) except -1:
        if not self.nameless:
            self.touch(prepared)
            self.known[prepared.key] = prepared
        return 0

    cdef void touch(self, Prepared prepared) noexcept:
        self.tick += 1
        prepared.used = self.tick

    cdef int confirm(self, Prepared prepared) except -1:
        """The server has prepared a statement, which another may have replaced meanwhile."""
        prepared.there = True
        if not self.nameless and self.known.get(prepared.key) is not prepared:
            self.garbage.append(prepared.name)
        return 0

    cdef int refused(self, Prepared prepared) except -1:
        """The server has not prepared it."""
        if self.known.get(prepared.key) is prepared:
            del self.known[prepared.key]
        return 0

    cdef Prepared take(self, tuple key):
        """The one of a key, which is forgotten; its name stays taken."""
        return <Prepared> self.known.pop(key, None)

    cdef int rename(self, Prepared prepared, tuple key) except -1:
        prepared.key = key
        self.known[key] = prepared
        return 0

    cdef int discard(self, Prepared prepared) except -1:
        self.garbage.append(prepared.name)
        return 0

    cdef int forget(self, str sql) except -1:
        """Every form of a statement."""
        cdef Prepared prepared
        cdef tuple key
        for key in [key for key in self.known if key[0] == sql]:
            prepared = <Prepared> self.known.pop(key)
            self.garbage.append(prepared.name)
        return 0

    cdef int evict(self) except -1:
        """Forgets the eighth of the statements that was used longest ago. They are deallocated
        before the next group; the groups in flight come earlier on the connection."""
        cdef list by_age = sorted(self.known.values(), key=_last_use)
        cdef Prepared prepared
        for prepared in by_age[:max(1, len(by_age) // 8)]:
            del self.known[prepared.key]
            self.garbage.append(prepared.name)
        return 0

    cdef int clear(self) except -1:
        """Nothing is prepared on the server any more."""
        self.known.clear()
        self.garbage.clear()
        return 0


def _last_use(Prepared prepared):
    return prepared.used
