"""Updates: checked, written as BSON, with the paths that they write and those that they tell of."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t

from ichicore.mongo.stages cimport Stages
from ichicore.mongo.tape cimport INT32_MIN, TJ_ARRAY, TJ_OBJECT, TJ_STRING, TJ_TRUE, tj_node

from ichicore.mongo import grammar


cdef class Updates(Stages):
    """Reads updates and their array filters."""

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
