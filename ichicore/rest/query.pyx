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
    Field, Filter, Logic, OrderTerm, Query, SelectField, SelectRelation,
)
from ichicore.rest.conditions cimport MAX_DEPTH, Conditions
from ichicore.rest.reader cimport NO_PATH, PyUnicode_DecodeUTF8, is_blank

from ichicore.http.target import canonical
from ichicore.rest import grammar
from ichicore.rest.reader import Unusual

cdef enum:
    STACK_BYTES = 2048

cdef tuple ROOT = ()
cdef object EVERYTHING = SelectField(Field("*"))
cdef tuple SELECT_ALL = (EVERYTHING,)


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
cdef class Parser(Conditions):
    """Reads one decoded key or value at a time; values are collected in order."""

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
