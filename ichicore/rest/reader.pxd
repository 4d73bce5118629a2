"""What reads a query string's keys and values, from decoded bytes."""
from ichicore.rest.ast cimport Field

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* s, Py_ssize_t size, const char* errors)

cdef tuple NO_PATH


cdef inline bint is_blank(char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef class Reader:
    """One decoded key or value at a time, from p to end. values: collected in order."""
    cdef const char* p
    cdef const char* end
    cdef list values

    cdef inline str text(self, const char* start, const char* stop):
        return PyUnicode_DecodeUTF8(start, stop - start, NULL)

    cdef inline bint at_dash(self) noexcept:
        return (self.p < self.end and self.p[0] == c'-'
                and (self.p + 1 == self.end or self.p[1] != c'>'))

    cdef inline bint at_arrow(self) noexcept:
        return self.end - self.p >= 2 and self.p[0] == c'-' and self.p[1] == c'>'

    cdef inline bint at_cast(self) noexcept:
        return self.end - self.p >= 2 and self.p[0] == c':' and self.p[1] == c':'

    cdef inline void blanks(self) noexcept:
        while self.p < self.end and is_blank(self.p[0]):
            self.p += 1

    cdef const char* name_end(self, const char* p) except NULL
    cdef str identifier(self)
    cdef str quoted(self)
    cdef str name(self)
    cdef str json_part(self)
    cdef tuple json_path(self)
    cdef Field field_of(self, str name)
