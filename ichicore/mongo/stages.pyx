"""Pipelines of aggregations and their expressions: only what is listed passes."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memchr

from ichicore.mongo.filters cimport Filters
from ichicore.mongo.tape cimport (
    number_text, same, TJ_ARRAY, TJ_FALSE, TJ_OBJECT, TJ_STRING, TJ_TRUE, tj_node,
)

from ichicore.errors import ApiError
from ichicore.mongo import grammar


def check_collection(str name not None) -> None:
    if not grammar.COLLECTION.fullmatch(name) or name.startswith("system."):
        raise ApiError(400, "invalid_collection", f"not a name of a collection: {name[:130]}")


cdef class Stages(Filters):
    """Reads pipelines of aggregations."""

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
            self.head(0x03, digits, number_text(digits, i))
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
            if same(self.tape.nodes[child].key, self.tape.nodes[child].key_len, b"_id", 3):
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
                self.expression(child, digits, number_text(digits, i), depth + 1)
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
            if same(member.key, member.key_len, b"input", 5):
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
