"""Filters, projections and sorts: checked, written as BSON, with the paths that they read."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from ichicore.mongo.tape cimport (
    Tape, TJ_ARRAY, TJ_DOUBLE, TJ_FALSE, TJ_INT, TJ_OBJECT, TJ_STRING, TJ_TRUE, is_hex_id,
    number_text, same, tj_node,
)

from ichicore.mongo import grammar
from ichicore.rules.patterns import PatternError, check_pattern

cdef uint32_t MOST_LIST = grammar.MOST_LIST

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


cdef class Filters(Tape):
    """Reads filters, projections and sorts."""

    cdef int expression(self, uint32_t index, const char *key, size_t n, int depth) except -1:
        """Writes an expression of `$expr`."""
        raise NotImplementedError

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
                if (same(member.key, member.key_len, b"$and", 4)
                        or same(member.key, member.key_len, b"$or", 3)
                        or same(member.key, member.key_len, b"$nor", 4)):
                    self.clauses(child, depth, top, prefix)
                elif top and same(member.key, member.key_len, b"$expr", 5):
                    self.expression_used = True
                    self.expression(child, b"$expr", 5, depth + 1)
                else:
                    self.forbidden(child)
            else:
                path = self.path(child, member.key, member.key_len, False)
                self.condition(child, depth, prefix + path if prefix else path,
                               top and same(member.key, member.key_len, b"_id", 3))
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
            self.head(0x03, digits, number_text(digits, i))
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
        if is_id and is_hex_id(node):
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
                    and is_hex_id(&self.tape.nodes[child])):
                if has_in:
                    self.bad(child, "cannot stand beside $in here")
                has_in = True
            elif code == Q_NIN or (
                    code == Q_NE and is_id and is_hex_id(&self.tape.nodes[child])):
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
        cdef bint hexadecimal = is_id and is_hex_id(node)
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
            if is_id and is_hex_id(&self.tape.nodes[child]):
                self.identifier(child, digits, number_text(digits, i))
                i += 1
            self.value(child, digits, number_text(digits, i), depth)
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
                self.head(0x03, digits, number_text(digits, i))
                inner = self.open()
                self.element(<uint32_t> found, depth, path)
                self.close(inner)
            else:
                self.value(child, digits, number_text(digits, i), depth)
            child = self.tape.nodes[child].next
            i += 1
        return self.close(at)

    cdef bint logical(self, uint32_t index) noexcept:
        cdef tj_node *node = &self.tape.nodes[index]
        return (same(node.key, node.key_len, b"$and", 4) or same(node.key, node.key_len, b"$or", 3)
                or same(node.key, node.key_len, b"$nor", 4))

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
