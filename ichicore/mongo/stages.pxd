from libc.stdint cimport uint32_t

from ichicore.mongo.filters cimport Filters


cdef class Stages(Filters):
    cdef tuple pipeline(self, uint32_t index)
    cdef int check_stages(self, uint32_t index) except -1
    cdef int nested_pipeline(self, uint32_t index, bint nested) except -1
    cdef int stage(self, uint32_t index, bint nested) except -1
    cdef int wrapped(self, uint32_t index, bint number) except -1
    cdef int fields(self, uint32_t index, int depth) except -1
    cdef int unset(self, uint32_t index) except -1
    cdef int group(self, uint32_t index) except -1
    cdef int accumulator(self, uint32_t index) except -1
    cdef int stage_sort(self, uint32_t index) except -1
    cdef int unwind(self, uint32_t index) except -1
    cdef int buckets(self, uint32_t index, bint automatic) except -1
    cdef int facet(self, uint32_t index) except -1
    cdef int lookup(self, uint32_t index) except -1
    cdef int union_with(self, uint32_t index) except -1
    cdef int reference(self, uint32_t index) except -1
    cdef int operand(self, str name, uint32_t index, int depth) except -1
    cdef int bindings(self, uint32_t index, int depth) except -1
    cdef int matcher(self, uint32_t index, int depth) except -1
    cdef int check_range(self, uint32_t index) except -1
