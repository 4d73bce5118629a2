"""Names, identifiers and JSON paths of a query string: the words that all its parts share."""
cimport cython
from cpython.list cimport PyList_AsTuple

from ichicore.rest.ast cimport Field, JsonStep

from ichicore.rest import syntax

cdef extern from "Python.h":
    bint Py_UNICODE_ISALPHA(unsigned int ch)

NO_PATH = ()

# Byte classes of the grammar. Bytes from 0x80 on are looked at as code points.
cdef enum:
    NAME = 1        # letter, digit, _ $ and blank
    JSON_KEY = 2    # anything that does not end a JSON key

cdef unsigned char CLASSES[256]


cdef void fill_classes() noexcept:
    cdef int c
    for c in range(256):
        CLASSES[c] = JSON_KEY
    for c in b"(-:.,>)":
        CLASSES[c] = 0
    for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_ $":
        CLASSES[c] |= NAME


fill_classes()


class Unusual(Exception):
    """The input is for the full grammar."""


@cython.freelist(4)
cdef class Reader:

    cdef const char* name_end(self, const char* p) except NULL:
        """End of the letters, digits, blanks, _ and $ from p on."""
        cdef unsigned char c
        cdef int more, i
        cdef unsigned int point
        while p < self.end:
            c = <unsigned char>p[0]
            if c < 0x80:
                if not CLASSES[c] & NAME:
                    return p
                p += 1
                continue
            if c >= 0xF0:
                more, point = 3, c & 0x07
            elif c >= 0xE0:
                more, point = 2, c & 0x0F
            elif c >= 0xC2:
                more, point = 1, c & 0x1F
            else:
                raise Unusual
            if self.end - p <= more:
                raise Unusual
            for i in range(1, more + 1):
                point = (point << 6) | (<unsigned char>p[i] & 0x3F)
            if point > 0x10FFFF or not Py_UNICODE_ISALPHA(point):
                return p
            p += more + 1
        return p

    cdef str identifier(self):
        """Letters, digits, blanks, _ and $ without outer blanks (casts, configurations)."""
        cdef const char* start = self.p
        cdef const char* stop = self.name_end(start)
        if stop == start:
            raise Unusual
        self.p = stop
        while start < stop and start[0] == c' ':
            start += 1
        while stop > start and (stop - 1)[0] == c' ':
            stop -= 1
        return self.text(start, stop)

    cdef str quoted(self):
        """A double-quoted text; backslash takes the next character as it is."""
        cdef const char* start = self.p + 1
        cdef const char* p = start
        cdef bint escaped = False
        cdef bytearray out
        while p < self.end and p[0] != c'"':
            if p[0] == c'\\':
                escaped = True
                p += 1
            p += 1
        if p >= self.end:
            raise Unusual
        self.p = p + 1
        if not escaped:
            return self.text(start, p)
        out = bytearray()
        while start < p:
            if start[0] == c'\\':
                start += 1
            out.append(<unsigned char>start[0])
            start += 1
        return out.decode()

    cdef str name(self):
        """A column, relation or alias: quoted, or identifiers joined by dashes."""
        cdef const char* start = self.p
        cdef const char* stop
        cdef str whole
        if start < self.end and start[0] == c'"':
            return self.quoted()
        whole = self.identifier()
        if not self.at_dash():
            return whole
        while self.at_dash():
            self.p += 1
            stop = self.p
            whole = whole + "-" + self.identifier()
        return whole

    cdef str json_part(self):
        cdef const char* start = self.p
        cdef const char* p = start
        cdef bint plain = True
        cdef unsigned char c
        while p < self.end:
            c = <unsigned char>p[0]
            if not CLASSES[c] & JSON_KEY:
                break
            if c <= 32 or c >= 0x80:
                plain = False
            p += 1
        if p == start:
            raise Unusual
        self.p = p
        if plain:
            return self.text(start, p)
        return self.text(start, p).strip(syntax.BLANKS)

    cdef tuple json_path(self):
        """Any number of -> and ->> steps."""
        cdef list steps = []
        cdef JsonStep step
        cdef const char* start
        cdef const char* digits
        cdef const char* p
        cdef str key
        while self.at_arrow():
            step = JsonStep.__new__(JsonStep)
            self.p += 2
            if self.p < self.end and self.p[0] == c'>':
                self.p += 1
                step.as_text = True
            start = self.p
            digits = start + 1 if start < self.end and start[0] == c'-' else start
            p = digits
            while p < self.end and c'0' <= p[0] <= c'9':
                p += 1
            if p > digits and (
                p == self.end or p[0] == c'.' or p[0] == c','
                or (self.end - p >= 2 and (
                    (p[0] == c'-' and p[1] == c'>') or (p[0] == c':' and p[1] == c':')))
            ):
                step.is_index = True
                step.key = self.text(start, p)
                self.p = p
            elif start < self.end and start[0] == c'"':
                step.key = self.quoted()
            else:
                key = self.json_part()
                while self.at_dash():
                    self.p += 1
                    key = key + "-" + self.json_part()
                step.key = key
            steps.append(step)
        return PyList_AsTuple(steps)

    cdef Field field_of(self, str name):
        cdef Field field = Field.__new__(Field)
        field.name = name
        field.path = self.json_path() if self.at_arrow() else NO_PATH
        return field
