from libc.stdint cimport int64_t, uint32_t

from ichicore.mongo.tape cimport Tape


cdef class Filters(Tape):
    cdef int expression(self, uint32_t index, const char *key, size_t n, int depth) except -1
    cdef int filter(self, uint32_t index, int depth, bint top, str prefix) except -1
    cdef int clauses(self, uint32_t index, int depth, bint top, str prefix) except -1
    cdef int condition(self, uint32_t index, int depth, str path, bint is_id) except -1
    cdef int either(self, uint32_t index, const char *name, size_t n) except -1
    cdef int operators(self, uint32_t index, int depth, str path, bint is_id) except -1
    cdef int operator(
        self, int code, uint32_t index, uint32_t beside, int depth, str path, bint is_id) except -1
    cdef int membership(self, uint32_t index, int depth, bint is_id) except -1
    cdef int exists(self, uint32_t index) except -1
    cdef int types(self, uint32_t index) except -1
    cdef int all_of(self, uint32_t index, int depth, str path) except -1
    cdef bint logical(self, uint32_t index) noexcept
    cdef int element(self, uint32_t index, int depth, str path) except -1
    cdef int modulus(self, uint32_t index) except -1
    cdef int regular(self, uint32_t index, uint32_t beside) except -1
    cdef int pattern(self, uint32_t index, int64_t options) except -1
    cdef bytes projection(self, uint32_t index)
    cdef bint sort(self, uint32_t index) except -1
    cdef int push_sort(self, uint32_t index) except -1
