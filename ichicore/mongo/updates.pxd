from libc.stdint cimport uint32_t

from ichicore.mongo.stages cimport Stages


cdef class Updates(Stages):
    cdef bytes update(self, dict members, uint32_t parent)
    cdef int match_names(self, uint32_t index) except -1
    cdef int filters(self, uint32_t index) except -1
    cdef int change(self, str operator, uint32_t index, str path) except -1
    cdef int pushed(self, str operator, uint32_t index, str path) except -1
    cdef int sort_reads(self, uint32_t index, str path) except -1
    cdef int pulled(self, uint32_t index, str path) except -1
    cdef int bits(self, uint32_t index) except -1
