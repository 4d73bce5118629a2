# distutils: sources = csrc/jsontape.c
"""A body as a flat list of nodes, and BSON written from them.

Where a mistake is, is found out only when there is one.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport floor
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memchr

from ichicore.buffer cimport jb_free, jb_init
from ichicore.bsonwrite cimport (
    bw_close, bw_head, bw_int32, bw_open, bw_raw, bw_text,
)
from ichicore.mongo.tape cimport (
    TJ_ARRAY, TJ_DEEP, TJ_DOUBLE, TJ_FALSE, TJ_INT, TJ_MANY, TJ_NO_MEMORY, TJ_NULL, TJ_NUMBER,
    TJ_OBJECT, TJ_STRING, TJ_TRUE, TJ_TWICE, tj_free, tj_node, tj_parse,
)

from bson import encode as _bson_encode
from bson.objectid import ObjectId

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.rules.extended import READERS

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *s, Py_ssize_t size, const char *errors)

cdef int MOST_DEPTH = grammar.MOST_DEPTH


cdef class Tape:
    """One body. Methods that write an element append it to `out`; they return 0, or raise."""

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
            name = self.text(node.key, node.key_len)[:80]
            message = f"the member {name!r} appears twice in one object"
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

    cdef str text(self, const char *p, size_t n):
        return PyUnicode_DecodeUTF8(p, n, NULL)

    cdef str key(self, uint32_t index):
        return PyUnicode_DecodeUTF8(
            self.tape.nodes[index].key, self.tape.nodes[index].key_len, NULL)

    cdef str string(self, uint32_t index):
        return PyUnicode_DecodeUTF8(
            self.tape.nodes[index].v.text, self.tape.nodes[index].len, NULL)

    cdef bint dollar(self, uint32_t index) noexcept:
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
            if same(self.tape.nodes[child].key, self.tape.nodes[child].key_len, name, n):
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

    # --- BSON

    cdef int head(self, int type, const char *key, size_t n) except -1:
        return bw_head(&self.out, type, key, n)

    cdef size_t open(self) except 0x7FFFFFFFFFFFFFFF:
        return bw_open(&self.out)

    cdef int close(self, size_t at) except -1:
        return bw_close(&self.out, at)

    cdef int raw(self, const void *p, size_t n) except -1:
        return bw_raw(&self.out, p, n)

    cdef int int32(self, const char *key, size_t n, int32_t v) except -1:
        return bw_int32(&self.out, key, n, v)

    cdef int utf8(self, const char *key, size_t n, const char *p, uint32_t size) except -1:
        return bw_text(&self.out, key, n, p, size)

    cdef int identifier(self, uint32_t index, const char *key, size_t n) except -1:
        """24 hexadecimal digits as an ObjectId."""
        cdef char packed[12]
        cdef int i
        cdef const char *p = self.tape.nodes[index].v.text
        for i in range(12):
            packed[i] = <char> (digit(p[2 * i]) << 4 | digit(p[2 * i + 1]))
        self.head(0x07, key, n)
        return self.raw(packed, 12)

    cdef int encoded(self, object value, const char *key, size_t n) except -1:
        """A value of Python's."""
        cdef bytes data = _bson_encode({"v": value})
        cdef const char *p = PyBytes_AS_STRING(data)
        self.head(<unsigned char> p[4], key, n)
        return self.raw(p + 7, PyBytes_GET_SIZE(data) - 8)

    cdef bytes taken(self, size_t start):
        """What was written since `start`, which is then forgotten."""
        cdef bytes found = PyBytes_FromStringAndSize(self.out.data + start, self.out.len - start)
        self.out.len = start
        return found

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
            if i == start or same(p + start, i - start, b"__proto__", 9):
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
        if (memchr(node.key, c'.', node.key_len) != NULL
                or memchr(node.key, 0, node.key_len) != NULL
                or same(node.key, node.key_len, b"__proto__", 9)):
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
            self.value(child, digits, number_text(digits, i), depth + 1)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef bint extended(self, uint32_t index, const char *key, size_t n) except -1:
        """Writes a value of extended JSON; False when it is none by its name."""
        cdef str name = self.key(index + 1)
        reader = READERS.get(name)
        if reader is None:
            return False
        if name == "$oid" and is_hex_id(&self.tape.nodes[index + 1]):
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
