"""Counts of a route's requests: by class of status, and a histogram of their times."""

cdef enum:
    CLASSES = 6
    MOST = 32

cimport cython


@cython.final
cdef class Timer:
    """bounds: upper ends of the histogram's buckets, in seconds, ascending; one more follows."""

    cdef double bounds[MOST]
    cdef unsigned long long counts[MOST]
    cdef unsigned long long statuses[CLASSES]
    cdef int size
    cdef readonly double seconds

    def __init__(self, bounds):
        if len(bounds) >= MOST:
            raise ValueError(f"a histogram has less than {MOST} bounds")
        for bound in bounds:
            self.bounds[self.size] = bound
            self.size += 1

    cpdef void observe(self, int status, double seconds) noexcept:
        """One request that was answered with this status after so many seconds."""
        cdef int i = 0
        if 0 <= status < 100 * CLASSES:
            self.statuses[status // 100] += 1
        while i < self.size and seconds > self.bounds[i]:
            i += 1
        self.counts[i] += 1
        self.seconds += seconds

    def add(self, list classes not None, list buckets not None, double seconds):
        """Another timer's counts on top of this one's. ValueError when it has other buckets."""
        cdef int i
        if len(classes) != CLASSES or len(buckets) != self.size + 1:
            raise ValueError("the counts are of another kind of timer")
        for i in range(CLASSES):
            self.statuses[i] += classes[i]
        for i in range(self.size + 1):
            self.counts[i] += buckets[i]
        self.seconds += seconds

    @property
    def classes(self):
        """Requests by hundreds of their status, 0 to 5."""
        return [self.statuses[i] for i in range(CLASSES)]

    @property
    def buckets(self):
        """Requests by bucket, the last one without an upper end."""
        return [self.counts[i] for i in range(self.size + 1)]
