# distutils: sources = csrc/jsontape.c
"""Request bodies to BSON-ready operations: JSON checked against the grammar of each operation.

The body is parsed once into a flat list of nodes; walking them writes BSON and notes which paths
are read and written. Where a mistake is, is found out only when there is one.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy

from ichicore.mongo.bson cimport jb_buf, jb_byte, jb_free, jb_init, jb_put, jb_room
from ichicore.mongo.command cimport (
    TJ_ARRAY, TJ_DEEP, TJ_DOUBLE, TJ_FALSE, TJ_INT, TJ_MANY, TJ_NO_MEMORY, TJ_NULL, TJ_NUMBER,
    TJ_OBJECT, TJ_STRING, TJ_TRUE, TJ_TWICE, tj_free, tj_node, tj_parse, tj_tape,
)

from bson import encode as _bson_encode
from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.mongo.parts import EMPTY, Command, Part
from ichicore.mongo.reply import id_text
from ichicore.rules.extended import READERS
from ichicore.rules.patterns import PatternError, check_pattern

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *s, Py_ssize_t size, const char *errors)

cdef int MOST_DEPTH = grammar.MOST_DEPTH
cdef uint32_t MOST_LIST = grammar.MOST_LIST
cdef int64_t INT32_MIN = -(1 << 31)
cdef int64_t INT32_MAX = (1 << 31) - 1
cdef frozenset READS = frozenset(grammar.READS)
cdef frozenset INSERTS = frozenset(grammar.INSERTS)
cdef frozenset UPDATES = frozenset(grammar.UPDATES)
cdef dict MEMBERS = grammar.MEMBERS

cdef enum:
    Q_EQ
    Q_NE
    Q_GT
    Q_IN
    Q_NIN
    Q_NOT
    Q_EXISTS
    Q_TYPE
    Q_ALL
    Q_ELEMENT
    Q_SIZE
    Q_MOD
    Q_REGEX
    Q_OPTIONS

cdef dict QUERY = {
    "$eq": Q_EQ, "$ne": Q_NE, "$gt": Q_GT, "$gte": Q_GT, "$lt": Q_GT, "$lte": Q_GT, "$in": Q_IN,
    "$nin": Q_NIN, "$not": Q_NOT, "$exists": Q_EXISTS, "$type": Q_TYPE, "$all": Q_ALL,
    "$elemMatch": Q_ELEMENT, "$size": Q_SIZE, "$mod": Q_MOD, "$regex": Q_REGEX,
    "$options": Q_OPTIONS,
}
assert set(QUERY) == grammar.QUERY


def check_collection(str name not None) -> None:
    if not grammar.COLLECTION.fullmatch(name) or name.startswith("system."):
        raise ApiError(400, "invalid_collection", f"not a name of a collection: {name[:130]}")


def parse(str operation not None, bytes body not None, caps):
    cdef _Reader reader
    cdef dict members
    if operation not in grammar.OPERATIONS:
        raise ApiError(404, "unknown_operation", f"unknown operation: {operation[:40]}")
    reader = _Reader(body, caps)
    members = reader.members(operation, 0, False)
    spans = {
        name: (reader.tape.nodes[<uint32_t> at].start, reader.tape.nodes[<uint32_t> at].end)
        for name, at in members.items()
    }
    if operation == "bulkWrite":
        ordered = reader.flag(members, "ordered", False)
        return Command(operation, reader.batch(members), caps, body, spans, ordered)
    ordered = reader.flag(members, "ordered", True)
    return Command(operation, (reader.part(operation, members, 0),), caps, body, spans, ordered)


cdef inline bint _is(const char *text, size_t n, const char *other, size_t m) noexcept nogil:
    return n == m and memcmp(text, other, n) == 0


cdef inline bint _is_hex_id(const tj_node *node) noexcept nogil:
    cdef uint32_t i
    cdef char c
    if node.type != TJ_STRING or node.len != 24:
        return False
    for i in range(24):
        c = node.v.text[i]
        if not (c'0' <= c <= c'9' or c'a' <= c <= c'f' or c'A' <= c <= c'F'):
            return False
    return True


cdef inline unsigned char _digit(char c) noexcept nogil:
    if c <= c'9':
        return <unsigned char> (c - c'0')
    return <unsigned char> ((c | 32) - c'a' + 10)


@cython.final
cdef class _Reader:
    """One body. Methods that write an element append it to `out`; they return 0, or raise."""

    cdef tj_tape tape
    cdef jb_buf out
    cdef bytes body
    cdef object caps
    cdef list reads
    cdef list writes
    cdef list terms
    cdef list array_filters
    cdef list named_filters
    cdef set named
    cdef bint expression_used
    cdef bint upsert
    cdef int stages

    def __cinit__(self, bytes body, caps):
        cdef int found
        self.body = body  # strings of the tape are parts of it
        self.caps = caps
        jb_init(&self.out)
        found = tj_parse(&self.tape, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        if found:
            self.no_json(found)
        if self.tape.nodes[0].type != TJ_OBJECT:
            raise ApiError(400, "bad_request", "the body must be a JSON object")

    def __dealloc__(self):
        tj_free(&self.tape)
        jb_free(&self.out)

    # --- mistakes

    cdef int no_json(self, int found) except -1:
        cdef tj_node *node
        if found == TJ_NO_MEMORY:
            raise MemoryError
        if found == TJ_DEEP:
            message = "nested too deep"
        elif found == TJ_TWICE:
            node = &self.tape.nodes[self.tape.at]
            message = f"the member {self.text(node.key, node.key_len)[:80]!r} appears twice in one " \
                      "object"
        elif found == TJ_NUMBER:
            message = "a number beyond 64 bits; use $numberDecimal"
        elif found == TJ_MANY:
            raise ApiError(413, "payload_too_large", "the body has too many values")
        else:
            message = "the body is not JSON"
        raise ApiError(400, "bad_request", message)

    cdef str where(self, uint32_t index):
        """The path of a node in the body, such as "filter.$or[1].a"."""
        cdef uint32_t at = 0
        cdef uint32_t child
        cdef int number
        cdef str path = ""
        while at != index:
            child = at + 1
            number = 0
            while index >= self.tape.nodes[child].next:
                child = self.tape.nodes[child].next
                number += 1
            if self.tape.nodes[at].type == TJ_OBJECT:
                name = self.key(child)[:200]
                path = f"{path}.{name}" if path else name
            else:
                path = f"{path}[{number}]"
            at = child
        return path[:400]

    cdef int bad(self, uint32_t index, str message) except -1:
        raise ApiError(400, "bad_request", f"{self.where(index) or 'body'}: {message}")

    cdef int missing(self, uint32_t parent, str name, str message) except -1:
        where = self.where(parent)
        raise ApiError(400, "bad_request", f"{where + '.' if where else ''}{name}: {message}")

    cdef int forbidden(self, uint32_t index) except -1:
        raise ApiError(
            400, "operator_not_allowed", f"{self.where(index)}: operator not allowed")

    # --- nodes

    cdef inline str text(self, const char *p, size_t n):
        return PyUnicode_DecodeUTF8(p, n, NULL)

    cdef inline str key(self, uint32_t index):
        return PyUnicode_DecodeUTF8(
            self.tape.nodes[index].key, self.tape.nodes[index].key_len, NULL)

    cdef inline str string(self, uint32_t index):
        return PyUnicode_DecodeUTF8(
            self.tape.nodes[index].v.text, self.tape.nodes[index].len, NULL)

    cdef inline bint dollar(self, uint32_t index) noexcept:
        """Whether a member's name begins with '$'."""
        return self.tape.nodes[index].key_len > 0 and self.tape.nodes[index].key[0] == c'$'

    cdef bint has_operator(self, uint32_t index) noexcept:
        """Whether an object has a member whose name begins with '$'."""
        cdef uint32_t child = index + 1
        while child < self.tape.nodes[index].next:
            if self.dollar(child):
                return True
            child = self.tape.nodes[child].next
        return False

    cdef bint is_extended(self, uint32_t index):
        """Whether an object is a value of extended JSON by its name."""
        return (self.tape.nodes[index].len == 1 and self.dollar(index + 1)
                and self.key(index + 1) in READERS)

    cdef int64_t find(self, uint32_t index, const char *name, size_t n) noexcept:
        """The member of an object, or -1."""
        cdef uint32_t child = index + 1
        while child < self.tape.nodes[index].next:
            if _is(self.tape.nodes[child].key, self.tape.nodes[child].key_len, name, n):
                return child
            child = self.tape.nodes[child].next
        return -1

    cdef object python(self, uint32_t index):
        """A node as Python's value."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child
        if node.type == TJ_NULL:
            return None
        if node.type == TJ_FALSE:
            return False
        if node.type == TJ_TRUE:
            return True
        if node.type == TJ_INT:
            return node.v.i
        if node.type == TJ_DOUBLE:
            return node.v.d
        if node.type == TJ_STRING:
            return self.string(index)
        child = index + 1
        if node.type == TJ_ARRAY:
            items = []
            while child < node.next:
                items.append(self.python(child))
                child = self.tape.nodes[child].next
            return items
        found = {}
        while child < node.next:
            found[self.key(child)] = self.python(child)
            child = self.tape.nodes[child].next
        return found

    # --- bodies

    cdef dict members(self, str operation, uint32_t index, bint in_batch):
        """Members by their standard names, with their nodes; null counts as absent."""
        cdef dict known = MEMBERS[operation]
        cdef dict found = {}
        cdef uint32_t child = index + 1
        while child < self.tape.nodes[index].next:
            key = self.key(child)
            name = known.get(key)
            if name is None:
                if not (in_batch and key == "op"):
                    self.bad(child, f"unknown member; known are {', '.join(sorted(known))}")
            elif self.tape.nodes[child].type != TJ_NULL:
                if name in found:
                    self.bad(child, "given twice, by two names")
                found[name] = child
            child = self.tape.nodes[child].next
        return found

    cdef bint flag(self, dict members, str name, bint default) except -1:
        cdef uint32_t index
        found = members.get(name)
        if found is None:
            return default
        index = found
        if self.tape.nodes[index].type == TJ_TRUE:
            return True
        if self.tape.nodes[index].type != TJ_FALSE:
            self.bad(index, "true or false is expected")
        return False

    cdef int64_t whole(self, dict members, str name) except -1:
        cdef uint32_t index
        cdef tj_node *node
        found = members.get(name)
        if found is None:
            return 0
        index = found
        node = &self.tape.nodes[index]
        if node.type == TJ_INT and 0 <= node.v.i <= INT32_MAX:
            return node.v.i
        if node.type == TJ_DOUBLE and 0 <= node.v.d <= INT32_MAX and floor(node.v.d) == node.v.d:
            return <int64_t> node.v.d
        self.bad(index, "a whole number from 0 is expected")
        return 0

    cdef tuple batch(self, dict members):
        cdef uint32_t index
        cdef uint32_t child
        cdef int64_t op
        cdef list parts = []
        found = members.get("ops")
        if found is None:
            self.missing(0, "ops", "a list of at least one operation is expected")
        index = found
        if self.tape.nodes[index].type != TJ_ARRAY or self.tape.nodes[index].len == 0:
            self.bad(index, "a list of at least one operation is expected")
        if self.tape.nodes[index].len > <uint32_t> self.caps.max_docs:
            raise ApiError(413, "too_many_docs", f"more than {self.caps.max_docs} operations")
        child = index + 1
        while child < self.tape.nodes[index].next:
            op = self.find(child, b"op", 2) if self.tape.nodes[child].type == TJ_OBJECT else -1
            if op < 0 or self.tape.nodes[op].type != TJ_STRING:
                self.bad(child, 'an object with "op" is expected')
            operation = self.string(<uint32_t> op)
            if operation not in grammar.BULK_OPERATIONS:
                self.bad(<uint32_t> op, "not an operation of bulkWrite")
            parts.append(self.part(operation, self.members(operation, child, True), child))
            child = self.tape.nodes[child].next
        return tuple(parts)

    cdef bytes taken(self, size_t start):
        """What was written since `start`, which is then forgotten."""
        cdef bytes found = PyBytes_FromStringAndSize(self.out.data + start, self.out.len - start)
        self.out.len = start
        return found

    cdef object part(self, str operation, dict members, uint32_t parent):
        cdef uint32_t index
        cdef size_t start = self.out.len
        cdef object part = Part(operation)
        self.reads = []
        self.writes = []
        self.terms = []
        self.array_filters = []
        self.named_filters = []
        self.named = set()
        self.expression_used = False
        self.upsert = False
        if operation in INSERTS:
            self.inserts(part, operation, members, parent)
            return part
        if operation == "aggregate":
            found = members.get("pipeline")
            if found is None:
                self.missing(parent, "pipeline", "a list of stages is expected")
            self.stages = 0
            part.pipeline = self.pipeline(<uint32_t> found)
            part.limit = self.caps.max_docs
            part.look_ahead = True
            return part
        self.upsert = self.flag(members, "upsert", False)
        part.upsert = self.upsert
        found = members.get("filter")
        if found is None:
            if operation not in READS:
                self.missing(parent, "filter", "is missing")
        else:
            index = found
            self.filter(index, 0, True, "")
            part.filter = self.taken(start)
            part.expression = self.expression_used
        if operation == "find" or operation == "findOne":
            part.skip = self.whole(members, "skip")
            part.limit = 1
        if operation == "find":
            limit = self.whole(members, "limit")
            if limit == 0:
                limit = min(self.caps.default_limit, self.caps.max_docs)
                part.look_ahead = True
            if limit > self.caps.max_docs:
                limit = self.caps.max_docs
                part.look_ahead = True
            part.limit = limit
        elif operation == "distinct":
            found = members.get("field")
            if found is None or self.tape.nodes[<uint32_t> found].type != TJ_STRING:
                self.missing(parent, "field", "a path is expected")
            index = found
            part.field = self.path(index, self.tape.nodes[index].v.text,
                                   self.tape.nodes[index].len, False)
            self.reads.append(part.field)
            part.limit = self.caps.max_docs
        found = members.get("projection")
        if found is not None:
            part.projection = self.projection(<uint32_t> found)
        found = members.get("sort")
        if found is not None:
            index = found
            if self.sort(index):
                part.sort = self.taken(start)
        found = members.get("return_document")
        if found is not None:
            index = found
            text = self.string(index) if self.tape.nodes[index].type == TJ_STRING else None
            if text != "after" and text != "before":
                self.bad(index, '"after" or "before" is expected')
            part.after = text == "after"
        if operation == "replaceOne":
            found = members.get("replacement")
            if found is None:
                self.missing(parent, "replacement", "an object is expected")
            part.replacement = self.document(<uint32_t> found, False)
        elif operation in UPDATES:
            part.update = self.update(members, parent)
            part.array_filters = tuple(self.array_filters)
        if self.upsert:
            self.equality_terms(<uint32_t> members["filter"])
            part.terms = tuple(self.terms)
        part.reads = tuple(self.reads)
        part.writes = tuple(self.writes)
        return part

    cdef int equality_terms(self, uint32_t index) except -1:
        """What an upsert takes over from its filter: ANDed equalities at the top."""
        cdef uint32_t child = index + 1
        cdef uint32_t member
        cdef int64_t inner
        while child < self.tape.nodes[index].next:
            if self.dollar(child):
                if self.key(child) == "$and":
                    member = child + 1
                    while member < self.tape.nodes[child].next:
                        self.equality_terms(member)
                        member = self.tape.nodes[member].next
            elif (self.tape.nodes[child].type == TJ_OBJECT and self.has_operator(child)
                    and not self.is_extended(child)):
                inner = self.find(child, b"$eq", 3)
                if inner >= 0:
                    self.term(child, <uint32_t> inner)
            else:
                self.term(child, child)
            child = self.tape.nodes[child].next
        return 0

    cdef int term(self, uint32_t named, uint32_t index) except -1:
        cdef size_t start = self.out.len
        cdef size_t at = self.open()
        cdef str path = self.key(named)
        if path == "_id" and _is_hex_id(&self.tape.nodes[index]):
            self.identifier(index, b"v", 1)
        else:
            self.value(index, b"v", 1, 0)
        self.close(at)
        self.terms.append((path, self.taken(start)))
        return 0

    cdef int inserts(self, object part, str operation, dict members, uint32_t parent) except -1:
        cdef uint32_t index
        cdef uint32_t child
        cdef list made = []
        cdef list ids = []
        if operation == "insertOne":
            found = members.get("doc")
            if found is None:
                self.missing(parent, "doc", "an object is expected")
            index = found
            data = self.document(index, True)
            part.documents = (data,)
            part.ids = (id_text(data),)
            return 0
        found = members.get("docs")
        if found is None:
            self.missing(parent, "docs", "a list of at least one document is expected")
        index = found
        if self.tape.nodes[index].type != TJ_ARRAY or self.tape.nodes[index].len == 0:
            self.bad(index, "a list of at least one document is expected")
        if self.tape.nodes[index].len > <uint32_t> self.caps.max_docs:
            raise ApiError(
                413, "too_many_docs", f"more than {self.caps.max_docs} documents at once")
        child = index + 1
        while child < self.tape.nodes[index].next:
            data = self.document(child, True)
            made.append(data)
            ids.append(id_text(data))
            child = self.tape.nodes[child].next
        part.documents = tuple(made)
        part.ids = tuple(ids)
        return 0

    # --- BSON

    cdef int head(self, int type, const char *key, size_t n) except -1:
        cdef char *o
        if jb_room(&self.out, n + 2):
            raise MemoryError
        o = self.out.data + self.out.len
        o[0] = <char> type
        memcpy(o + 1, key, n)
        o[n + 1] = 0
        self.out.len += n + 2
        return 0

    cdef size_t open(self) except 0x7FFFFFFFFFFFFFFF:
        cdef size_t at = self.out.len
        if jb_room(&self.out, 4):
            raise MemoryError
        self.out.len += 4
        return at

    cdef int close(self, size_t at) except -1:
        cdef int32_t size
        if jb_byte(&self.out, 0):
            raise MemoryError
        if self.out.len - at > 0x7FFFFFF0:
            raise ApiError(413, "payload_too_large", "the body is too large")
        size = <int32_t> (self.out.len - at)
        memcpy(self.out.data + at, &size, 4)
        return 0

    cdef int raw(self, const void *p, size_t n) except -1:
        if jb_put(&self.out, p, n):
            raise MemoryError
        return 0

    cdef int int32(self, const char *key, size_t n, int32_t v) except -1:
        self.head(0x10, key, n)
        return self.raw(&v, 4)

    cdef int utf8(self, const char *key, size_t n, const char *p, uint32_t size) except -1:
        cdef int32_t shown = <int32_t> size + 1
        self.head(0x02, key, n)
        self.raw(&shown, 4)
        self.raw(p, size)
        return self.raw(b"\0", 1)

    cdef int identifier(self, uint32_t index, const char *key, size_t n) except -1:
        """24 hexadecimal digits as an ObjectId."""
        cdef char packed[12]
        cdef int i
        cdef const char *p = self.tape.nodes[index].v.text
        for i in range(12):
            packed[i] = <char> (_digit(p[2 * i]) << 4 | _digit(p[2 * i + 1]))
        self.head(0x07, key, n)
        return self.raw(packed, 12)

    cdef int encoded(self, object value, const char *key, size_t n) except -1:
        """A value of Python's."""
        cdef bytes data = _bson_encode({"v": value})
        cdef const char *p = PyBytes_AS_STRING(data)
        self.head(<unsigned char> p[4], key, n)
        return self.raw(p + 7, PyBytes_GET_SIZE(data) - 8)

    # --- names and values

    cdef str path(self, uint32_t index, const char *p, size_t n, bint positions):
        """A dotted path, as text; `index` is told when it is none."""
        cdef size_t start = 0
        cdef size_t i
        cdef str text = self.text(p, n)
        if len(text) > grammar.MOST_PATH or n == 0:
            self.bad(index, "not a path of a field")
        for i in range(n + 1):
            if i < n and p[i] != c'.':
                if p[i] == 0:
                    self.bad(index, "not a path of a field")
                continue
            if i == start or _is(p + start, i - start, b"__proto__", 9):
                self.bad(index, "not a path of a field")
            if p[start] == c'$' and not (
                    positions and start > 0 and self.position(p + start, i - start)):
                self.refuse_part(index, p, n)
            start = i + 1
        return text

    cdef int refuse_part(self, uint32_t index, const char *p, size_t n) except -1:
        """A part begins with '$': the operator is refused, unless the path is none anyway."""
        for part in self.text(p, n).split("."):
            if not part or part == "__proto__" or "\0" in part:
                self.bad(index, "not a path of a field")
        return self.forbidden(index)

    cdef bint position(self, const char *p, size_t n) noexcept:
        """$, $[] or $[name]"""
        cdef size_t i
        cdef char c
        if n == 1:
            return True
        if n < 3 or p[1] != c'[' or p[n - 1] != c']':
            return False
        for i in range(2, n - 1):
            c = p[i]
            if not (c'a' <= c <= c'z' or i > 2 and (c'A' <= c <= c'Z' or c'0' <= c <= c'9')):
                return False
        return True

    cdef int name(self, uint32_t index) except -1:
        """Checks a member's name in a document."""
        cdef tj_node *node = &self.tape.nodes[index]
        if node.key_len == 0:
            return 0
        if node.key[0] == c'$':
            self.forbidden(index)
        if (memchr(node.key, c'.', node.key_len) != NULL or memchr(node.key, 0, node.key_len) != NULL
                or _is(node.key, node.key_len, b"__proto__", 9)):
            self.bad(index, "not a name of a field")
        return 0

    cdef int deep(self, uint32_t index, int depth) except -1:
        if depth > MOST_DEPTH:
            self.bad(index, f"nested deeper than {MOST_DEPTH}")
        return 0

    cdef int value(self, uint32_t index, const char *key, size_t n, int depth) except -1:
        """A value as it is, with extended JSON read."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef size_t at
        cdef uint32_t child
        if node.type == TJ_STRING:
            self.deep(index, depth)
            return self.utf8(key, n, node.v.text, node.len)
        if node.type == TJ_INT:
            self.deep(index, depth)
            if INT32_MIN <= node.v.i <= INT32_MAX:
                return self.int32(key, n, <int32_t> node.v.i)
            self.head(0x12, key, n)
            return self.raw(&node.v.i, 8)
        if node.type == TJ_DOUBLE:
            self.deep(index, depth)
            self.head(0x01, key, n)
            return self.raw(&node.v.d, 8)
        self.deep(index, depth)
        if node.type == TJ_NULL:
            return self.head(0x0A, key, n)
        if node.type == TJ_TRUE or node.type == TJ_FALSE:
            self.head(0x08, key, n)
            return self.raw(b"\1" if node.type == TJ_TRUE else b"\0", 1)
        if node.type == TJ_ARRAY:
            self.head(0x04, key, n)
            return self.items(index, depth)
        if node.len == 1 and self.dollar(index + 1) and self.extended(index, key, n):
            return 0
        self.head(0x03, key, n)
        at = self.open()
        child = index + 1
        while child < node.next:
            self.name(child)
            self.value(child, self.tape.nodes[child].key, self.tape.nodes[child].key_len, depth + 1)
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int items(self, uint32_t index, int depth) except -1:
        cdef char digits[16]
        cdef size_t at = self.open()
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        while child < self.tape.nodes[index].next:
            self.value(child, digits, _number(digits, i), depth + 1)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef bint extended(self, uint32_t index, const char *key, size_t n) except -1:
        """Writes a value of extended JSON; False when it is none by its name."""
        cdef str name = self.key(index + 1)
        reader = READERS.get(name)
        if reader is None:
            return False
        if name == "$oid" and _is_hex_id(&self.tape.nodes[index + 1]):
            self.identifier(index + 1, key, n)
            return True
        try:
            found = reader(self.python(index + 1))
        except ValueError as error:
            self.bad(index + 1, str(error))
        self.encoded(found, key, n)
        return True

    cdef object number_value(self, uint32_t index):
        """The number that a node is, in extended JSON too."""
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type == TJ_INT or node.type == TJ_DOUBLE:
            return self.python(index)
        if node.type == TJ_OBJECT and node.len == 1:
            name = self.key(index + 1)
            if name.startswith("$number") and name in READERS:
                try:
                    return READERS[name](self.python(index + 1))
                except ValueError as error:
                    self.bad(index + 1, str(error))
        self.bad(index, "a number is expected")

    cdef int number(self, uint32_t index, const char *key, size_t n) except -1:
        self.number_value(index)
        return self.value(index, key, n, 0)

    cdef int32_t integer(self, uint32_t index, int64_t low) except? -1:
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type == TJ_INT and low <= node.v.i <= INT32_MAX:
            return <int32_t> node.v.i
        if (node.type == TJ_DOUBLE and low <= node.v.d <= INT32_MAX
                and floor(node.v.d) == node.v.d):
            return <int32_t> node.v.d
        self.bad(index, "a whole number is expected")
        return 0

    cdef int direction(self, uint32_t index) except 0:
        """1 or -1"""
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type == TJ_INT and (node.v.i == 1 or node.v.i == -1):
            return <int> node.v.i
        if node.type == TJ_DOUBLE and (node.v.d == 1 or node.v.d == -1):
            return <int> node.v.d
        self.bad(index, "1 or -1 is expected")
        return 1

    cdef bytes document(self, uint32_t index, bint insert):
        """A document to be stored. insert: with an identifier, made when it has none."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef size_t start = self.out.len
        cdef size_t at
        cdef uint32_t child
        cdef int64_t given
        cdef bytes packed
        if node.type != TJ_OBJECT:
            self.bad(index, "an object is expected")
        at = self.open()
        given = self.find(index, b"_id", 3)
        if given >= 0 and self.tape.nodes[given].type == TJ_ARRAY:
            self.bad(<uint32_t> given, "a list cannot be an identifier")
        if insert and (given < 0 or self.tape.nodes[given].type == TJ_NULL):
            packed = ObjectId().binary
            self.head(0x07, b"_id", 3)
            self.raw(PyBytes_AS_STRING(packed), 12)
        else:
            insert = False
        child = index + 1
        while child < node.next:
            if not (insert and child == given):
                self.name(child)
                self.value(child, self.tape.nodes[child].key, self.tape.nodes[child].key_len, 1)
            child = self.tape.nodes[child].next
        self.close(at)
        if self.out.len - start > <size_t> self.caps.max_doc_bytes:
            self.large(index)
        return self.taken(start)

    cdef int large(self, uint32_t index) except -1:
        raise ApiError(413, "doc_too_large",
                       f"{self.where(index)}: more than {self.caps.max_doc_bytes} bytes")

    # --- filters

    cdef int filter(self, uint32_t index, int depth, bint top, str prefix) except -1:
        """A filter as a document. top: `_id` is the document's. prefix: path of the array whose
        elements are tested, with its dot."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child
        cdef size_t at
        cdef str path
        if node.type != TJ_OBJECT:
            self.bad(index, "an object is expected")
        self.deep(index, depth)
        at = self.open()
        child = index + 1
        while child < node.next:
            member = &self.tape.nodes[child]
            if self.dollar(child):
                if (_is(member.key, member.key_len, b"$and", 4)
                        or _is(member.key, member.key_len, b"$or", 3)
                        or _is(member.key, member.key_len, b"$nor", 4)):
                    self.clauses(child, depth, top, prefix)
                elif top and _is(member.key, member.key_len, b"$expr", 5):
                    self.expression_used = True
                    self.expression(child, b"$expr", 5, depth + 1)
                else:
                    self.forbidden(child)
            else:
                path = self.path(child, member.key, member.key_len, False)
                self.condition(child, depth, prefix + path if prefix else path,
                               top and _is(member.key, member.key_len, b"_id", 3))
            child = member.next
        return self.close(at)

    cdef int clauses(self, uint32_t index, int depth, bint top, str prefix) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef char digits[16]
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        cdef size_t at
        if node.type != TJ_ARRAY or node.len == 0:
            self.bad(index, "a list of at least one filter is expected")
        if node.len > MOST_LIST:
            self.bad(index, f"more than {MOST_LIST} filters")
        self.head(0x04, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            self.head(0x03, digits, _number(digits, i))
            self.filter(child, depth + 1, top, prefix)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef int condition(self, uint32_t index, int depth, str path, bint is_id) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef size_t at
        if node.type == TJ_OBJECT and self.has_operator(index) and not self.is_extended(index):
            self.head(0x03, node.key, node.key_len)
            return self.operators(index, depth + 1, path, is_id)
        self.reads.append(path)
        if is_id and _is_hex_id(node):
            self.deep(index, depth + 1)
            if self.upsert:  # an upsert inserts what the filter equals: one value
                return self.identifier(index, node.key, node.key_len)
            self.head(0x03, node.key, node.key_len)
            at = self.open()
            self.either(index, b"$in", 3)
            return self.close(at)
        return self.value(index, node.key, node.key_len, depth + 1)

    cdef int either(self, uint32_t index, const char *name, size_t n) except -1:
        """A list of the identifier and the text."""
        cdef size_t at
        self.head(0x04, name, n)
        at = self.open()
        self.identifier(index, b"0", 1)
        self.value(index, b"1", 1, 0)
        return self.close(at)

    cdef int operators(self, uint32_t index, int depth, str path, bint is_id) except -1:
        """An object of query operators as a document."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef bint has_in = False
        cdef bint has_nin = False
        cdef int code
        self.deep(index, depth)
        at = self.open()
        while child < node.next:
            found = QUERY.get(self.key(child))
            if found is None:
                if self.dollar(child):
                    self.forbidden(child)
                self.bad(child, "a name beside operators")
            code = found
            if code != Q_ELEMENT and code != Q_NOT:
                self.reads.append(path)
            if code == Q_IN or (
                    code == Q_EQ and is_id and not self.upsert
                    and _is_hex_id(&self.tape.nodes[child])):
                if has_in:
                    self.bad(child, "cannot stand beside $in here")
                has_in = True
            elif code == Q_NIN or (
                    code == Q_NE and is_id and _is_hex_id(&self.tape.nodes[child])):
                if has_nin:
                    self.bad(child, "cannot stand beside $nin here")
                has_nin = True
            self.operator(code, child, index, depth, path, is_id)
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int operator(
        self, int code, uint32_t index, uint32_t beside, int depth, str path, bint is_id
    ) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef bint hexadecimal = is_id and _is_hex_id(node)
        if code == Q_EQ or code == Q_NE or code == Q_GT:
            if not hexadecimal:
                return self.value(index, node.key, node.key_len, depth)
            self.deep(index, depth)
            if code == Q_GT or (code == Q_EQ and self.upsert):
                return self.identifier(index, node.key, node.key_len)
            return self.either(index, b"$in" if code == Q_EQ else b"$nin", 3 if code == Q_EQ else 4)
        if code == Q_IN or code == Q_NIN:
            return self.membership(index, depth, is_id)
        if code == Q_NOT:
            if node.type != TJ_OBJECT or not self.has_operator(index):
                self.bad(index, "an object of operators is expected")
            self.head(0x03, node.key, node.key_len)
            return self.operators(index, depth + 1, path, is_id)
        if code == Q_EXISTS:
            return self.exists(index)
        if code == Q_TYPE:
            return self.types(index)
        if code == Q_ALL:
            return self.all_of(index, depth, path)
        if code == Q_ELEMENT:
            return self.element(index, depth, path)
        if code == Q_SIZE:
            return self.int32(node.key, node.key_len, self.integer(index, 0))
        if code == Q_MOD:
            return self.modulus(index)
        if code == Q_REGEX:
            return self.regular(index, beside)
        if self.find(beside, b"$regex", 6) < 0 or node.type != TJ_STRING:
            self.bad(index, "stands beside $regex, as a text")
        return self.value(index, node.key, node.key_len, 0)

    cdef int membership(self, uint32_t index, int depth, bint is_id) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef char digits[16]
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        cdef size_t at
        if node.type != TJ_ARRAY or node.len > MOST_LIST:
            self.bad(index, f"a list of at most {MOST_LIST} values is expected")
        self.head(0x04, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            if is_id and _is_hex_id(&self.tape.nodes[child]):
                self.identifier(child, digits, _number(digits, i))
                i += 1
            self.value(child, digits, _number(digits, i), depth)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef int exists(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef bint wanted = False
        if node.type == TJ_TRUE or node.type == TJ_FALSE:
            wanted = node.type == TJ_TRUE
        elif node.type == TJ_INT and 0 <= node.v.i <= 1:
            wanted = node.v.i == 1
        elif node.type == TJ_DOUBLE and (node.v.d == 0 or node.v.d == 1):
            wanted = node.v.d == 1
        else:
            self.bad(index, "true or false is expected")
        self.head(0x08, node.key, node.key_len)
        return self.raw(b"\1" if wanted else b"\0", 1)

    cdef int types(self, uint32_t index) except -1:
        found = self.python(index)
        names = found if type(found) is list else [found]
        if not names:
            self.bad(index, "a type is expected")
        for name in names:
            if type(name) is int and (0 < name < 20 or name == -1 or name == 127):
                continue
            if type(name) is not str or name not in grammar.TYPES:
                self.bad(index, "not a type")
        return self.value(index, self.tape.nodes[index].key, self.tape.nodes[index].key_len, 0)

    cdef int all_of(self, uint32_t index, int depth, str path) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef char digits[16]
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        cdef size_t at
        cdef size_t inner
        cdef int64_t found
        if node.type != TJ_ARRAY or node.len > MOST_LIST:
            self.bad(index, "a list is expected")
        self.head(0x04, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            found = -1
            if self.tape.nodes[child].type == TJ_OBJECT:
                found = self.find(child, b"$elemMatch", 10)
            if found >= 0:
                if self.tape.nodes[child].len != 1:
                    self.bad(child, "$elemMatch stands alone here")
                self.head(0x03, digits, _number(digits, i))
                inner = self.open()
                self.element(<uint32_t> found, depth, path)
                self.close(inner)
            else:
                self.value(child, digits, _number(digits, i), depth)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef bint logical(self, uint32_t index) noexcept:
        cdef tj_node *node = &self.tape.nodes[index]
        return (_is(node.key, node.key_len, b"$and", 4) or _is(node.key, node.key_len, b"$or", 3)
                or _is(node.key, node.key_len, b"$nor", 4))

    cdef int element(self, uint32_t index, int depth, str path) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type != TJ_OBJECT or node.len == 0:
            self.bad(index, "an object is expected")
        self.head(0x03, node.key, node.key_len)
        if self.dollar(index + 1) and not self.logical(index + 1):
            self.reads.append(path)
            return self.operators(index, depth + 1, path, False)
        return self.filter(index, depth + 1, False, path + ".")

    cdef int modulus(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type != TJ_ARRAY or node.len != 2:
            self.bad(index, "a list of divisor and remainder is expected")
        if self.number_value(index + 1) == 0:
            self.bad(index, "the divisor is zero")
        self.number_value(self.tape.nodes[index + 1].next)
        return self.value(index, node.key, node.key_len, 0)

    cdef int regular(self, uint32_t index, uint32_t beside) except -1:
        cdef int64_t options = self.find(beside, b"$options", 8)
        self.pattern(index, options)
        return self.value(index, self.tape.nodes[index].key, self.tape.nodes[index].key_len, 0)

    cdef int pattern(self, uint32_t index, int64_t options) except -1:
        if self.tape.nodes[index].type != TJ_STRING or (
                options >= 0 and self.tape.nodes[options].type != TJ_STRING):
            self.bad(index, "a text is expected")
        try:
            check_pattern(
                self.string(index), "" if options < 0 else self.string(<uint32_t> options))
        except PatternError as error:
            self.bad(index, str(error))
        return 0

    # --- shapes of the result

    cdef bytes projection(self, uint32_t index):
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t start = self.out.len
        cdef size_t at
        cdef int taking = -1
        cdef int32_t wanted = 0
        if node.type != TJ_OBJECT:
            self.bad(index, "an object is expected")
        if node.len == 0:
            return None
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            path = self.path(child, member.key, member.key_len, False)
            if member.type == TJ_TRUE or member.type == TJ_FALSE:
                wanted = member.type == TJ_TRUE
            elif member.type == TJ_INT and 0 <= member.v.i <= 1:
                wanted = <int32_t> member.v.i
            elif member.type == TJ_DOUBLE and (member.v.d == 0 or member.v.d == 1):
                wanted = <int32_t> member.v.d
            else:
                self.bad(child, "0 or 1 is expected")
            if path != "_id":
                if wanted:
                    self.reads.append(path)
                if taking >= 0 and taking != wanted:
                    self.bad(index, "either fields to take or fields to leave out")
                taking = wanted
            self.int32(member.key, member.key_len, wanted)
            child = member.next
        self.close(at)
        return self.taken(start)

    cdef bint sort(self, uint32_t index) except -1:
        """Writes a sort as a document; False when it is empty."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT:
            self.bad(index, "an object is expected")
        if node.len > <uint32_t> grammar.MOST_KEYS:
            self.bad(index, f"more than {grammar.MOST_KEYS} fields")
        if node.len == 0:
            return False
        at = self.open()
        while child < node.next:
            self.reads.append(self.path(child, self.tape.nodes[child].key,
                                        self.tape.nodes[child].key_len, False))
            self.int32(self.tape.nodes[child].key, self.tape.nodes[child].key_len,
                       self.direction(child))
            child = self.tape.nodes[child].next
        self.close(at)
        return True

    # --- updates

    cdef bytes update(self, dict members, uint32_t parent):
        cdef uint32_t index
        cdef uint32_t child
        cdef uint32_t field
        cdef tj_node *node
        cdef size_t start = self.out.len
        cdef size_t at
        cdef size_t inner
        cdef bint reading
        cdef str operator
        cdef str path
        found = members.get("update")
        if found is None:
            self.missing(parent, "update", "an object of update operators is expected")
        index = found
        node = &self.tape.nodes[index]
        if node.type != TJ_OBJECT or node.len == 0:
            self.bad(index, "an object of update operators is expected")
        if members.get("array_filters") is not None:
            self.filters(<uint32_t> members["array_filters"])
        at = self.open()
        child = index + 1
        while child < node.next:
            operator = self.key(child)
            if not self.dollar(child):
                self.bad(child, "an update holds operators only; replaceOne takes documents")
            if operator not in grammar.UPDATE:
                self.forbidden(child)
            if self.tape.nodes[child].type != TJ_OBJECT:
                self.bad(child, "an object is expected")
            reading = operator in grammar.READING_UPDATE
            self.head(0x03, self.tape.nodes[child].key, self.tape.nodes[child].key_len)
            inner = self.open()
            field = child + 1
            while field < self.tape.nodes[child].next:
                path = self.path(field, self.tape.nodes[field].key,
                                 self.tape.nodes[field].key_len, True)
                if "$[" in path:
                    self.named.update(
                        part[2:len(part) - 1] for part in path.split(".")
                        if part.startswith("$[") and part != "$[]")
                self.writes.append((operator, path))
                if reading:
                    self.reads.append(path)
                self.change(operator, field, path)
                field = self.tape.nodes[field].next
            self.close(inner)
            child = self.tape.nodes[child].next
        self.close(at)
        if self.named or self.named_filters:
            self.match_names(index)
        if self.out.len - start > <size_t> self.caps.max_doc_bytes:
            self.large(index)
        return self.taken(start)

    cdef int match_names(self, uint32_t index) except -1:
        """Each $[name] has its filter and each filter its use; what the filters read is noted."""
        if self.named != {name for name, _ in self.named_filters}:
            self.bad(index, "each $[name] needs its entry in array_filters, and each entry its use")
        for name, reads in self.named_filters:
            for _, path in list(self.writes):
                parts = path.split(".")
                if f"$[{name}]" in parts:
                    head = ".".join(parts[: parts.index(f"$[{name}]")])
                    self.reads += [f"{head}.{rest}" if rest else head for rest in reads]
        return 0

    cdef int filters(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t start = self.out.len
        cdef bytes name
        cdef list kept = self.reads
        if node.type != TJ_ARRAY or node.len > 100:
            self.bad(index, "a list is expected")
        while child < node.next:
            self.reads = []
            self.filter(child, 0, False, "")
            data = self.taken(start)
            heads = {path.partition(".")[0] for path in self.reads}
            if len(heads) != 1:
                self.bad(child, "conditions on one name are expected")
            head = heads.pop()
            name = f"$[{head}]".encode()
            if (not head or not self.position(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
                    or any(head == other for other, _ in self.named_filters)):
                self.bad(child, "not a name for elements")
            self.named_filters.append((head, [path[len(head) + 1:] for path in self.reads]))
            self.array_filters.append(data)
            child = self.tape.nodes[child].next
        self.reads = kept
        return 0

    cdef int change(self, str operator, uint32_t index, str path) except -1:
        """The operand of an update operator for one path."""
        cdef tj_node *node = &self.tape.nodes[index]
        if operator in ("$set", "$setOnInsert", "$min", "$max"):
            return self.value(index, node.key, node.key_len, 1)
        if operator == "$unset":
            return self.utf8(node.key, node.key_len, b"", 0)
        if operator in ("$inc", "$mul"):
            return self.number(index, node.key, node.key_len)
        if operator == "$rename":
            if node.type != TJ_STRING:
                self.bad(index, "a path is expected")
            self.writes.append((operator, self.path(index, node.v.text, node.len, False)))
            return self.value(index, node.key, node.key_len, 0)
        if operator == "$currentDate":
            if node.type != TJ_TRUE and self.python(index) not in (
                    {"$type": "date"}, {"$type": "timestamp"}):
                self.bad(index, 'true or {"$type": "date"} is expected')
            if node.type == TJ_TRUE:
                return self.value(index, node.key, node.key_len, 0)
            return self.encoded(self.python(index), node.key, node.key_len)
        if operator == "$pop":
            return self.int32(node.key, node.key_len, self.direction(index))
        if operator in ("$push", "$addToSet"):
            return self.pushed(operator, index, path)
        if operator == "$pull":
            return self.pulled(index, path)
        if operator == "$pullAll":
            if node.type != TJ_ARRAY:
                self.bad(index, "a list is expected")
            return self.value(index, node.key, node.key_len, 1)
        return self.bits(index)

    cdef int pushed(self, str operator, uint32_t index, str path) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT or self.find(index, b"$each", 5) < 0:
            return self.value(index, node.key, node.key_len, 1)
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            name = self.key(child)
            if name != "$each" and (
                    operator != "$push" or name not in ("$position", "$slice", "$sort")):
                self.forbidden(child)
            if name == "$each":
                if self.tape.nodes[child].type != TJ_ARRAY:
                    self.bad(child, "a list is expected")
                self.value(child, b"$each", 5, 1)
            elif name == "$sort":
                self.sort_reads(child, path)
                self.push_sort(child)
            else:
                self.int32(self.tape.nodes[child].key, self.tape.nodes[child].key_len,
                           self.integer(child, INT32_MIN))
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int sort_reads(self, uint32_t index, str path) except -1:
        """The order of elements tells of what they are sorted by."""
        cdef uint32_t child = index + 1
        if self.tape.nodes[index].type != TJ_OBJECT:
            self.reads.append(path)
            return 0
        while child < self.tape.nodes[index].next:
            self.reads.append(f"{path}.{self.key(child)}")
            child = self.tape.nodes[child].next
        return 0

    cdef int push_sort(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT:
            return self.int32(node.key, node.key_len, self.direction(index))
        if node.len == 0 or node.len > <uint32_t> grammar.MOST_KEYS:
            self.bad(index, "fields are expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            self.path(child, self.tape.nodes[child].key, self.tape.nodes[child].key_len, False)
            self.int32(self.tape.nodes[child].key, self.tape.nodes[child].key_len,
                       self.direction(child))
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int pulled(self, uint32_t index, str path) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        if node.type != TJ_OBJECT or self.is_extended(index):
            return self.value(index, node.key, node.key_len, 1)
        self.head(0x03, node.key, node.key_len)
        while child < node.next:
            if self.dollar(child) and not self.logical(child):
                return self.operators(index, 1, path, False)
            child = self.tape.nodes[child].next
        return self.filter(index, 1, False, path + ".")

    cdef int bits(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT or node.len == 0:
            self.bad(index, "an object of and, or, xor is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            if self.key(child) not in ("and", "or", "xor"):
                self.bad(child, "and, or, xor are expected")
            if not isinstance(self.number_value(child), int):
                self.bad(child, "a whole number is expected")
            self.value(child, self.tape.nodes[child].key, self.tape.nodes[child].key_len, 0)
            child = self.tape.nodes[child].next
        return self.close(at)

    # --- pipelines

    cdef tuple pipeline(self, uint32_t index):
        cdef list found = []
        cdef size_t start = self.out.len
        cdef uint32_t child = index + 1
        self.check_stages(index)
        while child < self.tape.nodes[index].next:
            self.stage(child, False)
            found.append(self.taken(start))
            child = self.tape.nodes[child].next
        return tuple(found)

    cdef int check_stages(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type != TJ_ARRAY:
            self.bad(index, "a list of stages is expected")
        if node.len > <uint32_t> grammar.MOST_STAGES:
            self.bad(index, f"more than {grammar.MOST_STAGES} stages")
        self.stages += node.len
        if self.stages > grammar.MOST_STAGES:
            self.bad(index, f"more than {grammar.MOST_STAGES} stages")
        return 0

    cdef int nested_pipeline(self, uint32_t index, bint nested) except -1:
        cdef char digits[16]
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        cdef size_t at
        self.check_stages(index)
        self.head(0x04, self.tape.nodes[index].key, self.tape.nodes[index].key_len)
        at = self.open()
        while child < self.tape.nodes[index].next:
            self.head(0x03, digits, _number(digits, i))
            self.stage(child, nested)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef int stage(self, uint32_t index, bint nested) except -1:
        """One stage as a document. nested: within a $facet."""
        cdef uint32_t inner = index + 1
        cdef tj_node *node
        cdef size_t at
        cdef str name
        if self.tape.nodes[index].type != TJ_OBJECT or self.tape.nodes[index].len != 1:
            self.bad(index, "an object with one stage is expected")
        name = self.key(inner)
        node = &self.tape.nodes[inner]
        if not (name in grammar.STAGES
                or (self.caps.privileged and name in grammar.SERVICE_STAGES)) or (
                nested and name == "$facet"):
            raise ApiError(400, "stage_not_allowed", f"{self.where(inner)}: stage not allowed")
        at = self.open()
        if name == "$match":
            self.head(0x03, node.key, node.key_len)
            self.filter(inner, 0, True, "")
        elif name in ("$project", "$addFields", "$set"):
            if node.type != TJ_OBJECT or node.len == 0:
                self.bad(inner, "an object is expected")
            self.head(0x03, node.key, node.key_len)
            self.fields(inner, 0)
        elif name == "$unset":
            self.unset(inner)
        elif name == "$group":
            self.group(inner)
        elif name == "$sort":
            self.stage_sort(inner)
        elif name == "$limit" or name == "$skip":
            self.int32(node.key, node.key_len, self.integer(inner, 1 if name == "$limit" else 0))
        elif name == "$unwind":
            self.unwind(inner)
        elif name == "$count":
            if node.type != TJ_STRING or memchr(node.v.text, c'.', node.len) != NULL:
                self.bad(inner, "a name is expected")
            self.path(inner, node.v.text, node.len, False)
            self.value(inner, node.key, node.key_len, 0)
        elif name in ("$sortByCount", "$replaceWith", "$redact"):
            self.expression(inner, node.key, node.key_len, 1)
        elif name in ("$bucket", "$bucketAuto"):
            self.buckets(inner, name == "$bucketAuto")
        elif name == "$facet":
            self.facet(inner)
        elif name == "$replaceRoot":
            if node.type != TJ_OBJECT or node.len != 1 or self.key(inner + 1) != "newRoot":
                self.bad(inner, "an object with newRoot is expected")
            self.wrapped(inner, False)
        elif name == "$sample":
            if node.type != TJ_OBJECT or node.len != 1 or self.key(inner + 1) != "size":
                self.bad(inner, "an object with size is expected")
            self.wrapped(inner, True)
        elif name == "$lookup":
            self.lookup(inner)
        else:
            self.union_with(inner)
        return self.close(at)

    cdef int wrapped(self, uint32_t index, bint number) except -1:
        """An object with one member: an expression, or a number from 1."""
        cdef tj_node *member = &self.tape.nodes[index + 1]
        cdef size_t at
        self.head(0x03, self.tape.nodes[index].key, self.tape.nodes[index].key_len)
        at = self.open()
        if number:
            self.int32(member.key, member.key_len, self.integer(index + 1, 1))
        else:
            self.expression(index + 1, member.key, member.key_len, 1)
        return self.close(at)

    cdef int fields(self, uint32_t index, int depth) except -1:
        """An object of paths and expressions as a document."""
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at = self.open()
        while child < self.tape.nodes[index].next:
            member = &self.tape.nodes[child]
            self.path(child, member.key, member.key_len, False)
            self.expression(child, member.key, member.key_len, depth + 1)
            child = member.next
        return self.close(at)

    cdef int unset(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index
        cdef uint32_t end = index + 1
        if node.type == TJ_ARRAY and node.len > 0:
            child = index + 1
            end = node.next
        while child < end:
            if self.tape.nodes[child].type != TJ_STRING:
                self.bad(index, "a path or a list of paths is expected")
            self.path(child, self.tape.nodes[child].v.text, self.tape.nodes[child].len, False)
            child = self.tape.nodes[child].next
        return self.value(index, node.key, node.key_len, 0)

    cdef int group(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT or self.find(index, b"_id", 3) < 0:
            self.bad(index, "an object with _id is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            if _is(self.tape.nodes[child].key, self.tape.nodes[child].key_len, b"_id", 3):
                self.expression(child, b"_id", 3, 1)
            else:
                self.accumulator(child)
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int accumulator(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef size_t at
        self.path(index, node.key, node.key_len, False)
        if memchr(node.key, c'.', node.key_len) != NULL:
            self.bad(index, "not a name of a field")
        if node.type != TJ_OBJECT or node.len != 1:
            self.bad(index, "an object with one accumulator is expected")
        name = self.key(index + 1)
        if name not in grammar.ACCUMULATORS:
            self.forbidden(index + 1)
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        self.operand(name, index + 1, 2)
        return self.close(at)

    cdef int stage_sort(self, uint32_t index) except -1:
        cdef list kept = self.reads
        cdef tj_node *node = &self.tape.nodes[index]
        if node.type != TJ_OBJECT or node.len == 0:
            self.bad(index, "an object is expected")
        self.head(0x03, node.key, node.key_len)
        self.reads = []
        self.sort(index)
        self.reads = kept
        return 0

    cdef int unwind(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef int64_t found
        if node.type == TJ_STRING:
            self.reference(index)
            return self.value(index, node.key, node.key_len, 0)
        found = self.find(index, b"path", 4) if node.type == TJ_OBJECT else -1
        if found < 0 or self.tape.nodes[found].type != TJ_STRING:
            self.bad(index, 'a path such as "$items" is expected')
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            name = self.key(child)
            if name == "path":
                self.reference(child)
            elif name == "includeArrayIndex" and member.type == TJ_STRING:
                self.path(child, member.v.text, member.len, False)
            elif not (name == "preserveNullAndEmptyArrays"
                      and (member.type == TJ_TRUE or member.type == TJ_FALSE)):
                self.bad(child, "not a member of $unwind")
            self.value(child, member.key, member.key_len, 0)
            child = member.next
        return self.close(at)

    cdef int buckets(self, uint32_t index, bint automatic) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef uint32_t inner
        cdef size_t at
        cdef size_t nested
        cdef tuple known = ("groupBy", "buckets", "output", "granularity") if automatic else (
            "groupBy", "boundaries", "default", "output")
        if node.type != TJ_OBJECT or self.find(index, b"groupBy", 7) < 0:
            self.bad(index, "an object with groupBy is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            name = self.key(child)
            if name not in known:
                self.bad(child, f"known are {', '.join(known)}")
            if name == "output":
                if member.type != TJ_OBJECT:
                    self.bad(child, "an object is expected")
                self.head(0x03, member.key, member.key_len)
                nested = self.open()
                inner = child + 1
                while inner < member.next:
                    self.accumulator(inner)
                    inner = self.tape.nodes[inner].next
                self.close(nested)
            elif name == "buckets":
                self.int32(member.key, member.key_len, self.integer(child, 1))
            elif name == "granularity":
                if member.type != TJ_STRING:
                    self.bad(child, "a text is expected")
                self.value(child, member.key, member.key_len, 0)
            elif name == "groupBy":
                self.expression(child, member.key, member.key_len, 1)
            else:
                self.value(child, member.key, member.key_len, 1)
            child = member.next
        return self.close(at)

    cdef int facet(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT or node.len == 0:
            self.bad(index, "an object is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            self.path(child, self.tape.nodes[child].key, self.tape.nodes[child].key_len, False)
            if memchr(self.tape.nodes[child].key, c'.', self.tape.nodes[child].key_len) != NULL:
                self.bad(child, "not a name of a field")
            self.nested_pipeline(child, True)
            child = self.tape.nodes[child].next
        return self.close(at)

    cdef int lookup(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef int64_t found = self.find(index, b"from", 4) if node.type == TJ_OBJECT else -1
        if found < 0 or self.tape.nodes[found].type != TJ_STRING:
            self.bad(index, "an object with from is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            name = self.key(child)
            if name == "from":
                check_collection(self.string(child))
                self.value(child, member.key, member.key_len, 0)
            elif name in ("localField", "foreignField", "as"):
                if member.type != TJ_STRING:
                    self.bad(child, "a path is expected")
                self.path(child, member.v.text, member.len, False)
                self.value(child, member.key, member.key_len, 0)
            elif name == "let":
                self.bindings(child, 1)
            elif name == "pipeline":
                self.nested_pipeline(child, False)
            else:
                self.bad(child, "not a member of $lookup")
            child = member.next
        return self.close(at)

    cdef int union_with(self, uint32_t index) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef int64_t found
        if node.type == TJ_STRING:
            check_collection(self.string(index))
            return self.value(index, node.key, node.key_len, 0)
        found = self.find(index, b"coll", 4) if node.type == TJ_OBJECT else -1
        if found < 0 or self.tape.nodes[found].type != TJ_STRING:
            self.bad(index, "an object with coll is expected")
        check_collection(self.string(<uint32_t> found))
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            name = self.key(child)
            if name == "coll":
                self.value(child, b"coll", 4, 0)
            elif name == "pipeline":
                self.nested_pipeline(child, False)
            else:
                self.bad(child, "not a member of $unionWith")
            child = self.tape.nodes[child].next
        return self.close(at)

    # --- expressions

    cdef int reference(self, uint32_t index) except -1:
        """Checks a path such as "$a.b" or a variable such as "$$ROOT.a"."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef const char *p = node.v.text
        if node.len == 0 or p[0] != c'$':
            self.bad(index, 'a path such as "$items" is expected')
        if node.len < 2 or p[1] != c'$':
            self.path(index, p + 1, node.len - 1, False)
            return 0
        name, dot, _ = self.text(p + 2, node.len - 2).partition(".")
        if name not in grammar.VARIABLES and not (
                name and c'a' <= ord(name[0]) <= c'z'
                and all(c.isalnum() or c == "_" for c in name)):
            self.forbidden(index)
        if dot:
            start = 2 + len(name.encode()) + 1
            self.path(index, p + <size_t> start, node.len - <size_t> start, False)
        return 0

    cdef int expression(self, uint32_t index, const char *key, size_t n, int depth) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef char digits[16]
        cdef uint32_t child = index + 1
        cdef uint32_t i = 0
        cdef size_t at
        self.deep(index, depth)
        if node.type == TJ_STRING:
            if node.len > 0 and node.v.text[0] == c'$':
                self.reference(index)
            return self.value(index, key, n, 0)
        if node.type == TJ_ARRAY:
            self.head(0x04, key, n)
            at = self.open()
            while child < node.next:
                self.expression(child, digits, _number(digits, i), depth + 1)
                child = self.tape.nodes[child].next
                i += 1
            return self.close(at)
        if node.type != TJ_OBJECT:
            return self.value(index, key, n, 0)
        if self.has_operator(index):
            if node.len != 1:
                self.bad(index, "one operator, alone, is expected")
            if self.extended(index, key, n):
                return 0
            name = self.key(child)
            if name not in grammar.EXPRESSIONS:
                self.forbidden(child)
            self.head(0x03, key, n)
            at = self.open()
            self.operand(name, child, depth + 1)
            return self.close(at)
        self.head(0x03, key, n)
        return self.fields(index, depth)

    cdef int operand(self, str name, uint32_t index, int depth) except -1:
        """What stands behind an operator of expressions, as an element of its name."""
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef bint let = name == "$let"
        if name == "$literal":
            return self.value(index, node.key, node.key_len, depth)
        if name in grammar.PATTERNS:
            return self.matcher(index, depth)
        if name == "$range":
            self.check_range(index)
        if node.type != TJ_OBJECT or not (
                let or name in ("$top", "$topN", "$bottom", "$bottomN", "$sortArray")):
            return self.expression(index, node.key, node.key_len, depth)
        if let and (node.len != 2 or self.find(index, b"vars", 4) < 0
                    or self.find(index, b"in", 2) < 0):
            self.bad(index, "vars and in are expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            if memchr(member.key, 0, member.key_len) != NULL or self.dollar(child):
                self.bad(child, "not a name here")
            if let and self.key(child) == "vars":
                self.bindings(child, depth)
            elif not let and self.key(child) == "sortBy":
                self.push_sort(child)
            else:
                self.expression(child, member.key, member.key_len, depth)
            child = member.next
        return self.close(at)

    cdef int bindings(self, uint32_t index, int depth) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at
        if node.type != TJ_OBJECT:
            self.bad(index, "an object is expected")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            if (member.key_len == 0 or not c'a' <= member.key[0] <= c'z'
                    or memchr(member.key, c'.', member.key_len) != NULL
                    or memchr(member.key, 0, member.key_len) != NULL):
                self.bad(child, "a variable begins with a small letter")
            self.expression(child, member.key, member.key_len, depth + 1)
            child = member.next
        return self.close(at)

    cdef int matcher(self, uint32_t index, int depth) except -1:
        cdef tj_node *node = &self.tape.nodes[index]
        cdef tj_node *member
        cdef uint32_t child = index + 1
        cdef size_t at
        cdef int64_t regex = -1
        cdef int64_t options = -1
        if node.type == TJ_OBJECT:
            regex = self.find(index, b"regex", 5)
            options = self.find(index, b"options", 7)
        if regex < 0:
            self.bad(index, "input, regex and options are expected")
        self.pattern(<uint32_t> regex, options)
        member = &self.tape.nodes[regex]
        if (member.len > 0 and member.v.text[0] == c'$') or (
                options >= 0 and self.tape.nodes[options].len > 0
                and self.tape.nodes[options].v.text[0] == c'$'):
            self.bad(<uint32_t> regex, "a pattern itself is expected, not an expression")
        self.head(0x03, node.key, node.key_len)
        at = self.open()
        while child < node.next:
            member = &self.tape.nodes[child]
            if _is(member.key, member.key_len, b"input", 5):
                self.expression(child, b"input", 5, depth + 1)
            elif child == regex or child == options:
                self.value(child, member.key, member.key_len, 0)
            else:
                self.bad(child, "input, regex and options are expected")
            child = member.next
        return self.close(at)

    cdef int check_range(self, uint32_t index) except -1:
        value = self.python(index)
        if type(value) is not list or not 2 <= len(value) <= 3:
            self.bad(index, "start, end and step are expected")
        if any(type(one) is not int for one in value):
            self.bad(index, "numbers themselves are expected")
        step = value[2] if len(value) == 3 else 1
        if step == 0 or (value[1] - value[0]) // step > grammar.MOST_RANGE:
            self.bad(index, f"more than {grammar.MOST_RANGE} numbers")
        return 0


cdef size_t _number(char *digits, uint32_t v) noexcept nogil:
    """A number in decimal digits; how many."""
    cdef char tmp[16]
    cdef size_t n = 0
    cdef size_t i
    while True:
        tmp[n] = <char> (c'0' + v % 10)
        n += 1
        v //= 10
        if v == 0:
            break
    for i in range(n):
        digits[i] = tmp[n - 1 - i]
    return n
