"""Query string of a Postgres REST request to syntax nodes, in one pass over decoded bytes.

The parser takes what clients send in practice. Whatever it does not recognize, wrong or rare, it
hands to grammar.parse, which knows the whole grammar and words the errors; tests hold the two to
the same answers.
"""
cimport cython
from cpython.list cimport PyList_AsTuple
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memchr, memcmp

from ichicore.http.escapes cimport unescape
from ichicore.rest.ast cimport (
    Field, Filter, JsonStep, Logic, OrderTerm, Query, SelectField, SelectRelation,
)
from ichicore.rest.operators cimport (
    LIST, NO_OPERATOR, PATTERN, QUANTIFIABLE, TEXT_SEARCH, TRUTH, Kind, Operator, find_operator,
    kind_of,
)

from ichicore.http.target import canonical
from ichicore.rest import grammar

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* s, Py_ssize_t size, const char* errors)
    bint Py_UNICODE_ISALPHA(unsigned int ch)

cdef enum:
    STACK_BYTES = 2048
    MAX_DEPTH = 64

cdef tuple ROOT = ()
cdef tuple NO_PATH = ()
# In the order of operators.Operator.
cdef tuple OPERATOR_NAMES = (
    "eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch", "in", "is",
    "isdistinct", "fts", "plfts", "phfts", "wfts", "cs", "cd", "ov", "sl", "sr", "nxr", "nxl",
    "adj",
)
cdef object EVERYTHING = SelectField(Field("*"))
cdef tuple SELECT_ALL = (EVERYTHING,)

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


cdef inline bint is_blank(char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline bint is_ascii(const char* p, Py_ssize_t size) noexcept nogil:
    cdef unsigned char seen = 0
    cdef Py_ssize_t i
    for i in range(size):
        seen |= <unsigned char>p[i]
    return seen < 0x80


cdef inline bint equals(const char* p, Py_ssize_t size, const char* word,
                        Py_ssize_t length) noexcept nogil:
    return size == length and memcmp(p, word, <size_t>length) == 0


@cython.final
@cython.freelist(4)
cdef class Parser:
    """Reads one decoded key or value at a time; values are collected in order."""
    cdef const char* p
    cdef const char* end
    cdef list values

    cdef inline str text(self, const char* start, const char* stop):
        return PyUnicode_DecodeUTF8(start, stop - start, NULL)

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
        return self.text(start, p).strip(grammar.BLANKS)

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

    cdef inline Field field_of(self, str name):
        cdef Field field = Field.__new__(Field)
        field.name = name
        field.path = self.json_path() if self.at_arrow() else NO_PATH
        return field

    # Select

    cdef tuple forest(self, int depth):
        """Items up to the closing parenthesis, the end, or what no item may follow."""
        cdef list items = []
        cdef const char* mark
        if depth > MAX_DEPTH:
            raise Unusual
        if self.p == self.end or self.p[0] == c')':
            return NO_PATH
        while True:
            items.append(self.item(depth))
            mark = self.p
            self.blanks()
            if self.p < self.end and self.p[0] == c',':
                self.p += 1
                continue
            if self.p != mark:
                raise Unusual
            return PyList_AsTuple(items)

    cdef object item(self, int depth):
        cdef SelectField selected
        cdef str name
        cdef str alias = None
        cdef const char* start
        self.blanks()
        if self.p == self.end:
            raise Unusual
        if self.p[0] == c'*':
            self.p += 1
            self.item_end()
            return EVERYTHING
        if self.end - self.p > 3 and memcmp(self.p, b"...", 3) == 0:
            self.p += 3
            return self.embed(self.name(), None, True, depth)
        start = self.p
        name = self.name()
        if self.p < self.end and self.p[0] == c':' and not self.at_cast():
            alias = name
            self.p += 1
            start = self.p
            name = self.name()
        if self.p < self.end:
            if self.p[0] == c'!':
                if name == "count":
                    raise Unusual
                return self.embed(name, alias, False, depth)
            if self.p[0] == c'(':
                if name != "count":
                    return self.embed(name, alias, False, depth)
                if not (self.p - start == 5 and self.end - self.p >= 2 and start[0] == c'c'
                        and self.p[1] == c')'):
                    raise Unusual
                self.p += 2
                selected = SelectField.__new__(SelectField)
                selected.alias = alias
                selected.aggregate = "count"
                if self.at_cast():
                    self.p += 2
                    selected.aggregate_cast = self.identifier()
                self.item_end()
                return selected
        selected = SelectField.__new__(SelectField)
        selected.alias = alias
        selected.field = self.field_of(name)
        self.blanks()
        if self.p == self.end or self.p[0] == c',' or self.p[0] == c')':
            return selected
        if self.at_cast():
            self.p += 2
            selected.cast = self.identifier()
        if self.p < self.end and self.p[0] == c'.':
            selected.aggregate = self.aggregate()
        if self.at_cast():
            self.p += 2
            selected.aggregate_cast = self.identifier()
        self.item_end()
        return selected

    cdef int item_end(self) except -1:
        if self.p < self.end and self.p[0] != c',' and self.p[0] != c')':
            raise Unusual
        return 0

    cdef str aggregate(self):
        """`.sum()` and its like."""
        cdef const char* p = self.p + 1
        cdef Py_ssize_t size = 5 if self.end - p >= 7 and p[0] == c'c' else 3
        cdef str name
        if self.end - p < size + 2 or p[size] != c'(' or p[size + 1] != c')':
            raise Unusual
        if memcmp(p, b"sum", 3) == 0:
            name = "sum"
        elif memcmp(p, b"avg", 3) == 0:
            name = "avg"
        elif memcmp(p, b"max", 3) == 0:
            name = "max"
        elif memcmp(p, b"min", 3) == 0:
            name = "min"
        elif size == 5 and memcmp(p, b"count", 5) == 0:
            name = "count"
        else:
            raise Unusual
        self.p = p + size + 2
        return name

    cdef SelectRelation embed(self, str name, str alias, bint spread, int depth):
        """The rest of an embed, from its ! or ( on."""
        cdef SelectRelation relation = SelectRelation.__new__(SelectRelation)
        cdef int given = 0
        cdef str hint
        relation.name = name
        relation.alias = alias
        relation.spread = spread
        while given < 2 and self.p < self.end and self.p[0] == c'!':
            given += 1
            self.p += 1
            if self.end - self.p >= 4 and memcmp(self.p, b"left", 4) == 0:
                self.p += 4
                if relation.join is None:
                    relation.join = "left"
            elif self.end - self.p >= 5 and memcmp(self.p, b"inner", 5) == 0:
                self.p += 5
                if relation.join is None:
                    relation.join = "inner"
            else:
                hint = self.name()
                if relation.hint is None:
                    relation.hint = hint
        if self.p == self.end or self.p[0] != c'(':
            raise Unusual
        self.p += 1
        relation.children = self.forest(depth + 1)
        if self.p == self.end or self.p[0] != c')':
            raise Unusual
        self.p += 1
        return relation

    # Order, columns

    cdef tuple order(self):
        cdef list terms = []
        cdef OrderTerm term
        cdef str name
        while True:
            self.blanks()
            term = OrderTerm.__new__(OrderTerm)
            name = self.name()
            if self.p < self.end and self.p[0] == c'(':
                self.p += 1
                self.blanks()
                term.relation = name
                term.field = self.field_of(self.name())
                self.blanks()
                if self.p == self.end or self.p[0] != c')':
                    raise Unusual
                self.p += 1
            else:
                term.field = self.field_of(name)
                self.blanks()
            self.modifiers(term)
            terms.append(term)
            if self.p == self.end:
                return PyList_AsTuple(terms)
            self.p += 1

    cdef int modifiers(self, OrderTerm term) except -1:
        """.asc|.desc, .nullsfirst|.nullslast, each optional, then a comma or the end."""
        if self.p < self.end and self.p[0] == c'.':
            if self.end - self.p >= 4 and memcmp(self.p + 1, b"asc", 3) == 0:
                term.direction = "asc"
                self.p += 4
            elif self.end - self.p >= 5 and memcmp(self.p + 1, b"desc", 4) == 0:
                term.direction = "desc"
                self.p += 5
        if self.p < self.end and self.p[0] == c'.':
            if self.end - self.p >= 11 and memcmp(self.p + 1, b"nullsfirst", 10) == 0:
                term.nulls = "nullsfirst"
                self.p += 11
            elif self.end - self.p >= 10 and memcmp(self.p + 1, b"nullslast", 9) == 0:
                term.nulls = "nullslast"
                self.p += 10
            else:
                raise Unusual
        if self.p < self.end and self.p[0] != c',':
            raise Unusual
        return 0

    cdef list names(self):
        """Names separated by commas."""
        cdef list found = [self.name()]
        while True:
            self.blanks()
            if self.p == self.end:
                return found
            if self.p[0] != c',':
                raise Unusual
            self.p += 1
            self.blanks()
            found.append(self.name())

    cdef str tree_path(self, list above):
        """Names separated by dots: the last one, those before it into `above`."""
        cdef str name = self.name()
        while self.p < self.end and self.p[0] == c'.':
            self.p += 1
            above.append(name)
            name = self.name()
        return name

    # Filters

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
        for i in range(n):
            low[i] = self.p[i]
            if c'A' <= low[i] <= c'Z':
                low[i] = low[i] + 32
        if n >= 4 and memcmp(low, b"null", 4) == 0:
            self.p += 4
            return "null"
        if n >= 8 and memcmp(low, b"not_null", 8) == 0:
            self.p += 8
            return "not_null"
        if n >= 4 and memcmp(low, b"true", 4) == 0:
            self.p += 4
            return "true"
        if n >= 5 and memcmp(low, b"false", 5) == 0:
            self.p += 5
            return "false"
        if n >= 7 and memcmp(low, b"unknown", 7) == 0:
            self.p += 7
            return "unknown"
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


cdef struct Seen:
    bint select
    bint columns
    bint conflict


cdef tuple embed_path(list above):
    return PyList_AsTuple(above) if above else ROOT


cdef int set_limit(Query query, tuple path, bint offset, object amount, list values) except -1:
    cdef tuple both = query.limits.get(path)
    cdef tuple slots
    cdef int slot
    if both is None:
        both = (None, None)
        slots = (-1, -1)
    else:
        slots = query.limit_slots[path]
    slot = slots[1] if offset else slots[0]
    if slot < 0:
        slot = <int>len(values)
        values.append(None)
    values[slot] = str(amount)
    if offset:
        query.limits[path] = (both[0], amount)
        query.limit_slots[path] = (slots[0], slot)
    else:
        query.limits[path] = (amount, both[1])
        query.limit_slots[path] = (slot, slots[1])
    return 0


cdef int pair(Parser parser, Query query, Seen* seen, const char* key, Py_ssize_t key_size,
              const char* value, Py_ssize_t size, bint rpc, bint concatenate) except -1:
    """One decoded key and value into the query."""
    cdef const char* last = key + key_size
    cdef Py_ssize_t last_size
    cdef const char* p
    cdef list above
    cdef tuple path
    cdef tuple terms
    cdef str name
    cdef str text
    cdef Field field
    cdef Filter found
    cdef Logic logic
    cdef bint negated, conjunction
    cdef int i
    cdef long long amount
    while last > key and (last - 1)[0] != c'.':
        last -= 1
    last_size = key + key_size - last
    if last == key:
        if equals(key, key_size, b"select", 6):
            if not seen.select:
                seen.select = True
                parser.p, parser.end = value, value + size
                query.select = parser.forest(0)
            return 0
        if equals(key, key_size, b"columns", 7):
            if not seen.columns:
                seen.columns = True
                parser.p, parser.end = value, value + size
                query.columns = tuple(dict.fromkeys(parser.names()))
            return 0
        if equals(key, key_size, b"on_conflict", 11):
            if not seen.conflict:
                seen.conflict = True
                parser.p, parser.end = value, value + size
                query.on_conflict = tuple(parser.names())
            return 0
    above = []
    parser.p, parser.end = key, key + key_size
    if equals(last, last_size, b"order", 5):
        parser.tree_path(above)
        path = embed_path(above)
        parser.p, parser.end = value, value + size
        # A repeated order is parsed even when it is not used, so that its errors are told.
        terms = parser.order()
        for i in range(<int>len(query.order)):
            if (<tuple>query.order[i])[0] == path:
                if concatenate:
                    query.order[i] = (path, <tuple>(<tuple>query.order[i])[1] + terms)
                return 0
        query.order.append((path, terms))
        return 0
    if equals(last, last_size, b"limit", 5) or equals(last, last_size, b"offset", 6):
        parser.tree_path(above)
        if size == 0 or size > 18:
            raise Unusual
        amount = 0
        for i in range(<int>size):
            if not c'0' <= value[i] <= c'9':
                raise Unusual
            amount = amount * 10 + (value[i] - c'0')
        set_limit(query, embed_path(above), last_size == 6, amount, parser.values)
        return 0
    if equals(last, last_size, b"and", 3) or equals(last, last_size, b"or", 2):
        parser.tree_path(above)
        if parser.p != parser.end:
            raise Unusual
        negated = False
        if "not" in above:
            negated = True
            above = [name for name in above if name != "not"]
        p = value
        while p < value + size and is_blank(p[0]):
            p += 1
        if p == value + size or p[0] != c'(':
            raise Unusual
        parser.p, parser.end = p + 1, value + size
        parser.blanks()
        logic = parser.group(negated, last_size == 3, 0)
        query.logic.append((embed_path(above), logic))
        return 0
    name = parser.tree_path(above)
    field = parser.field_of(name)
    parser.p, parser.end = value, value + size
    found = parser.expression(field, False)
    if found is None:
        if not rpc:
            raise Unusual
        text = parser.text(value, value + size)
        query.params.append((name, text))
        query.param_slots.append(len(parser.values))
        parser.values.append(text)
    else:
        query.filters.append((embed_path(above), found))
    query.filter_keys.add(parser.text(key, key + key_size))
    return 0


cdef Query run(const char* raw, Py_ssize_t size, char* buffer, bint rpc, bint concatenate):
    cdef Query query = Query.__new__(Query)
    cdef Parser parser = Parser.__new__(Parser)
    cdef Seen seen
    cdef const char* end = raw + size
    cdef const char* stop
    cdef const char* equal
    cdef Py_ssize_t key_size, value_size
    seen.select = seen.columns = seen.conflict = False
    parser.values = []
    query.values = parser.values
    query.select = SELECT_ALL
    query.filters = []
    query.logic = []
    query.order = []
    query.limits = {}
    query.limit_slots = {}
    query.params = []
    query.param_slots = []
    query.filter_keys = set()
    query.canonical = ""
    if size and raw[0] == c'?':
        raw += 1
    while raw < end:
        equal = NULL
        stop = raw
        while stop < end and stop[0] != c'&' and stop[0] != c';':
            if stop[0] == c'=' and equal == NULL:
                equal = stop
            stop += 1
        if equal == NULL:
            # A key alone is nothing, except that it hides later ones of its name.
            key_size = unescape(raw, stop - raw, buffer)
            if equals(buffer, key_size, b"select", 6):
                seen.select = True
            elif equals(buffer, key_size, b"columns", 7):
                seen.columns = True
            elif equals(buffer, key_size, b"on_conflict", 11):
                seen.conflict = True
        else:
            key_size = unescape(raw, equal - raw, buffer)
            value_size = unescape(equal + 1, stop - equal - 1, buffer + key_size)
            if memchr(buffer, 0, <size_t>(key_size + value_size)) != NULL:
                raise Unusual
            if not is_ascii(buffer, key_size + value_size):
                # Key and value are whole texts each: both must be UTF-8, read or not.
                PyUnicode_DecodeUTF8(buffer, key_size, NULL)
                PyUnicode_DecodeUTF8(buffer + key_size, value_size, NULL)
            pair(parser, query, &seen, buffer, key_size, buffer + key_size, value_size, rpc,
                 concatenate)
        raw = stop + 1
    return query


def parse(raw, *, bint rpc=False, bint mutation=False, bint concatenate_order=False):
    """The Query of a raw (still percent-encoded) query string; ApiError 400 PGRST100 otherwise.

    rpc: a function is called by GET or HEAD, so a pair whose value is no operator expression is
    an argument (Query.params) and no error. mutation: no canonical form is made, which only reads
    answer with. concatenate_order: repeated order parameters add up instead of the first winning.
    """
    cdef bytes data
    cdef char small[STACK_BYTES]
    cdef char* buffer = small
    cdef Py_ssize_t size
    cdef Query query
    data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw
    size = len(data)
    if size > STACK_BYTES:
        buffer = <char*>PyMem_Malloc(<size_t>size)
        if buffer == NULL:
            raise MemoryError
    try:
        query = run(<const char*>data, size, buffer, rpc, concatenate_order)
    except (Unusual, UnicodeDecodeError):
        query = None
    finally:
        if buffer != small:
            PyMem_Free(buffer)
    if query is None:
        return grammar.parse(
            data, rpc=rpc, mutation=mutation, concatenate_order=concatenate_order
        )
    if not mutation:
        query.canonical = canonical(data)
    return query
