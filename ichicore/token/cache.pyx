"""A bounded map for verified tokens, cheap to read: two generations instead of an ordered list."""

import cython


@cython.final
cdef class GenerationCache:
    """At most about `capacity` entries; those not read for a whole generation are dropped.

    A hit in the young generation moves nothing. When the young one is full it becomes the old one
    and the previous old one is dropped, so an entry lives for at least capacity / 2 insertions
    after its last use.
    """

    cdef dict young
    cdef dict old
    cdef readonly Py_ssize_t half
    cdef readonly unsigned long long hits
    cdef readonly unsigned long long misses

    def __init__(self, Py_ssize_t capacity):
        if capacity < 2:
            raise ValueError("a cache holds at least two entries")
        self.half = capacity // 2
        self.clear()

    cpdef object get(self, object key):
        """The value of a key, or None."""
        cdef object value = self.young.get(key)
        if value is not None:
            self.hits += 1
            return value
        value = self.old.get(key)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self.put(key, value)
        return value

    cpdef void put(self, object key, object value) except *:
        """Adds or replaces an entry; None is no value."""
        if value is None:
            raise ValueError("None cannot be cached")
        if len(self.young) >= self.half and key not in self.young:
            self.old = self.young
            self.young = {}
        self.young[key] = value

    cpdef void drop(self, object key) except *:
        """Forgets one entry, if it is there."""
        self.young.pop(key, None)
        self.old.pop(key, None)

    cpdef void clear(self) except *:
        """Forgets all."""
        self.young = {}
        self.old = {}

    def __len__(self):
        return len(self.young.keys() | self.old.keys())
