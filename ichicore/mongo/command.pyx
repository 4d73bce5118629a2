"""Request bodies to BSON-ready operations: JSON checked against the grammar of each operation.

The body is parsed once into a flat list of nodes; walking them writes BSON and notes which paths
are read and written.
"""

cimport cython
from libc.math cimport floor
from libc.stdint cimport int64_t, uint32_t

from ichicore.mongo.updates cimport Updates
from ichicore.mongo.tape cimport (
    INT32_MAX, TJ_ARRAY, TJ_DOUBLE, TJ_FALSE, TJ_INT, TJ_NULL, TJ_OBJECT, TJ_STRING, TJ_TRUE,
    is_hex_id, same, tj_node,
)

from ichicore.errors import ApiError
from ichicore.mongo import grammar
from ichicore.mongo.parts import EMPTY, Command, Part
from ichicore.mongo.reply import id_text
from ichicore.mongo.stages import check_collection

cdef frozenset READS = frozenset(grammar.READS)
cdef frozenset INSERTS = frozenset(grammar.INSERTS)
cdef frozenset UPDATES = frozenset(grammar.UPDATES)
cdef dict MEMBERS = grammar.MEMBERS


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


cpdef bytes plain_filter(bytes body, object caps):
    cdef _Reader reader = _Reader(body, caps)
    cdef uint32_t end = reader.tape.nodes[0].next
    if end == 1:
        return EMPTY
    if reader.tape.nodes[1].next != end or not same(
            reader.tape.nodes[1].key, reader.tape.nodes[1].key_len, b"filter", 6):
        return None
    if reader.tape.nodes[1].type == TJ_NULL:
        return EMPTY
    reader.reads = []
    reader.filter(1, 0, True, "")
    return reader.taken(0)


@cython.final
cdef class _Reader(Updates):
    """Reads one body."""

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
        if path == "_id" and is_hex_id(&self.tape.nodes[index]):
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
