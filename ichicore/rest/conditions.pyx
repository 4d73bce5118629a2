"""Filters and logic trees of a query string: operators, their values, and/or groups."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_AsTuple
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcmp

from ichicore.rest.ast cimport Field, Filter, Logic
from ichicore.rest.operators cimport (
    LIST, NO_OPERATOR, PATTERN, QUANTIFIABLE, TEXT_SEARCH, TRUTH, Kind, Operator, find_operator,
    kind_of,
)
from ichicore.rest.reader cimport Reader, is_blank

from ichicore.rest.reader import Unusual

# In the order of operators.Operator.
cdef tuple OPERATOR_NAMES = (
    "eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch", "in", "is",
    "isdistinct", "fts", "plfts", "phfts", "wfts", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl",
    "adj",
)
# What follows `is`: as it may be written, and as it is kept.
cdef list TRUTHS = [(word.encode(), word) for word in (
    "null", "not_null", "true", "false", "unknown",
)]


cdef class Conditions(Reader):
    """Reads what rows have to meet."""

    cdef Filter expression(self, Field field, bint inside):
        """[not.]operator.value; None where neither the negation nor an operator is found.

        inside: the value belongs to a logic tree and ends at a comma or parenthesis.
        """
        cdef Filter found
        cdef Operator op
        cdef Kind kind
        cdef bint negated = False
        cdef const char* start
        cdef const char* p
        if self.end - self.p >= 4 and memcmp(self.p, b"not.", 4) == 0:
            negated = True
            self.p += 4
        start = p = self.p
        while p < self.end and c'a' <= p[0] <= c'z':
            p += 1
        op = find_operator(start, p - start)
        kind = kind_of(op)
        if kind == NO_OPERATOR or p == self.end:
            if negated:
                raise Unusual
            return None
        found = Filter.__new__(Filter)
        found.field = field
        found.op = <str>OPERATOR_NAMES[<int>op]
        found.negated = negated
        found.slot = -1
        if p[0] != c'.':
            if p[0] != c'(':
                if negated:
                    raise Unusual
                return None
            self.p = p + 1
            if kind == TEXT_SEARCH:
                found.config = self.identifier()
            elif (kind == QUANTIFIABLE or kind == PATTERN) and self.end - self.p >= 3:
                if memcmp(self.p, b"any", 3) == 0:
                    found.quantifier = "any"
                elif memcmp(self.p, b"all", 3) == 0:
                    found.quantifier = "all"
                else:
                    raise Unusual
                self.p += 3
            else:
                raise Unusual
            if self.end - self.p < 2 or self.p[0] != c')' or self.p[1] != c'.':
                raise Unusual
            p = self.p + 1
        self.p = p + 1
        if kind == TRUTH:
            found.value = self.truth()
            return found
        if kind == LIST:
            found.value = self.list_literal()
        elif inside:
            found.value = self.logic_value(kind == PATTERN)
        else:
            if kind == PATTERN:
                self.stars(self.p, self.end)
            found.value = self.text(self.p, self.end)
        found.slot = <int>len(self.values)
        self.values.append(found.value)
        return found

    cdef void stars(self, const char* start, const char* stop) noexcept:
        """* becomes %, in place: the buffer is the parser's own."""
        cdef char* at = <char*>memchr(start, c'*', <size_t>(stop - start))
        while at != NULL:
            at[0] = c'%'
            at = <char*>memchr(at, c'*', <size_t>(stop - at))

    cdef str truth(self):
        cdef Py_ssize_t size = self.end - self.p
        cdef char low[8]
        cdef Py_ssize_t i
        cdef Py_ssize_t n = size if size < 8 else 8
        cdef bytes name
        cdef str word
        for i in range(n):
            low[i] = self.p[i]
            if c'A' <= low[i] <= c'Z':
                low[i] = low[i] + 32
        for name, word in TRUTHS:
            if n >= PyBytes_GET_SIZE(name) and memcmp(
                    low, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name)) == 0:
                self.p += PyBytes_GET_SIZE(name)
                return word
        raise Unusual

    cdef const char* quoted_end(self, const char* p) noexcept:
        """Behind the closing quote when a comma, a parenthesis or the end follows, else NULL."""
        p += 1
        while p < self.end and p[0] != c'"':
            if p[0] == c'\\':
                p += 1
            p += 1
        if p >= self.end:
            return NULL
        p += 1
        if p == self.end or p[0] == c',' or p[0] == c')':
            return p
        return NULL

    cdef str list_literal(self):
        """(a,"b",c) as the text of a Postgres array."""
        cdef const char* p
        cdef const char* stop
        cdef char* out
        cdef char* room
        cdef char small[512]
        cdef Py_ssize_t most
        cdef bint in_quotes
        self.blanks()
        if self.p == self.end or self.p[0] != c'(':
            raise Unusual
        self.p += 1
        self.blanks()
        p = self.p
        # Each element costs two quotes and a comma, each of its bytes at most two.
        most = 5 * (self.end - p) + 8
        room = small
        if most > 512:
            room = <char*>PyMem_Malloc(<size_t>most)
        if room == NULL:
            raise MemoryError
        try:
            out = room
            out[0] = c'{'
            out += 1
            while True:
                out[0] = c'"'
                out += 1
                stop = NULL
                in_quotes = p < self.end and p[0] == c'"'
                if in_quotes:
                    stop = self.quoted_end(p)
                if stop != NULL:
                    p += 1
                    while p < stop - 1:
                        if p[0] == c'\\':
                            p += 1
                        if p[0] == c'"' or p[0] == c'\\':
                            out[0] = c'\\'
                            out += 1
                        out[0] = p[0]
                        out += 1
                        p += 1
                    p = stop
                else:
                    while p < self.end and p[0] != c',' and p[0] != c')':
                        if p[0] == c'"' or p[0] == c'\\':
                            out[0] = c'\\'
                            out += 1
                        out[0] = p[0]
                        out += 1
                        p += 1
                out[0] = c'"'
                out += 1
                if p == self.end:
                    raise Unusual
                if p[0] == c')':
                    break
                out[0] = c','
                out += 1
                p += 1
            self.p = p + 1
            self.blanks()
            if out - room == 3:
                return "{}"
            out[0] = c'}'
            return self.text(room, out + 1)
        finally:
            if room != small:
                PyMem_Free(room)

    cdef str logic_value(self, bint pattern):
        cdef const char* start = self.p
        cdef const char* p = start
        cdef str value
        if p < self.end and p[0] == c'"' and self.quoted_end(p) != NULL:
            value = self.quoted()
            return value.replace("*", "%") if pattern else value
        if p < self.end and p[0] == c'{':
            p += 1
            while p < self.end and p[0] != c'{' and p[0] != c'}':
                p += 1
            if p < self.end and p[0] == c'}':
                p += 1
            else:
                p = start
        if p == start:
            while p < self.end and p[0] != c',' and p[0] != c')':
                p += 1
        self.p = p
        if pattern:
            self.stars(start, p)
        return self.text(start, p)

    cdef int group_start(self, bint* negated, bint* conjunction) noexcept:
        """1 when [not.]and( or [not.]or( stands here; then p is behind the parenthesis."""
        cdef const char* p = self.p
        negated[0] = False
        if self.end - p >= 4 and memcmp(p, b"not.", 4) == 0:
            negated[0] = True
            p += 4
        if self.end - p >= 4 and memcmp(p, b"and", 3) == 0:
            conjunction[0] = True
            p += 3
        elif self.end - p >= 3 and memcmp(p, b"or", 2) == 0:
            conjunction[0] = False
            p += 2
        else:
            return 0
        while p < self.end and is_blank(p[0]):
            p += 1
        if p == self.end or p[0] != c'(':
            return 0
        self.p = p + 1
        self.blanks()
        return 1

    cdef object logic_item(self, int depth):
        cdef bint negated, conjunction
        cdef Filter found
        cdef Field field
        if self.group_start(&negated, &conjunction):
            return self.group(negated, conjunction, depth)
        self.blanks()
        field = self.field_of(self.name())
        self.blanks()
        if self.p == self.end or self.p[0] != c'.':
            raise Unusual
        self.p += 1
        found = self.expression(field, True)
        if found is None:
            raise Unusual
        return found

    cdef Logic group(self, bint negated, bint conjunction, int depth):
        """The items of a group whose parenthesis has been read, and its end."""
        cdef Logic logic = Logic.__new__(Logic)
        cdef list items = []
        if depth > MAX_DEPTH:
            raise Unusual
        logic.negated = negated
        logic.op = "and" if conjunction else "or"
        while True:
            items.append(self.logic_item(depth + 1))
            self.blanks()
            if self.p == self.end:
                raise Unusual
            self.p += 1
            if (self.p - 1)[0] == c')':
                self.blanks()
                logic.children = PyList_AsTuple(items)
                return logic
            if (self.p - 1)[0] != c',':
                raise Unusual
            self.blanks()
