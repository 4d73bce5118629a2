"""Filters and logic trees of a query string."""
from ichicore.rest.ast cimport Field, Filter, Logic
from ichicore.rest.reader cimport Reader

cdef enum:
    MAX_DEPTH = 64


cdef class Conditions(Reader):
    cdef Filter expression(self, Field field, bint inside)
    cdef void stars(self, const char* start, const char* stop) noexcept
    cdef str truth(self)
    cdef const char* quoted_end(self, const char* p) noexcept
    cdef str list_literal(self)
    cdef str logic_value(self, bint pattern)
    cdef int group_start(self, bint* negated, bint* conjunction) noexcept
    cdef object logic_item(self, int depth)
    cdef Logic group(self, bint negated, bint conjunction, int depth)
