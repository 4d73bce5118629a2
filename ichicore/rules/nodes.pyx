"""The tests that an expression is compiled to, and the way to the values they test.

A path that leads through arrays is looked up as MongoDB does: in every element that is an object,
and at the position when the name is a number.
"""

cimport cython
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItemWithError
from cpython.list cimport PyList_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

from ichicore.rules.context cimport Frame
from ichicore.rules.values cimport K_NUMBER, K_STRING, MISSING, equal, kind, number_of, order

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)


@cython.final
cdef class Path:
    def __init__(self, str text, tuple parts, int root):
        self.text = text
        self.parts = parts
        self.last = len(parts) - 1
        self.positions = [
            int(p) if p.isdecimal() and p.isascii() and len(p) < 8 and (p == "0" or p[0] != "0")
            else -1 for p in parts
        ]
        self.root = root
        self.is_id = root == ROOT_DOCUMENT and text == "_id"


# --- tests of one value ---------------------------------------------------------------------------

cdef class Test:
    """A test of the value at a path. `whole`: of the value itself, never of an array's elements."""

    def __cinit__(self):
        self.slot = -1

    @cython.final
    cdef object operand(self, Frame f):
        return self.constant if self.slot < 0 else f.values[self.slot]

    cdef bint holds(self, object v, Frame f) except -1:
        raise NotImplementedError


cdef bint _loosely_equal(object v, object operand) except -1:
    """Numbers and texts by value, for records in which both stand for the same column type."""
    cdef int ka = kind(v)
    cdef int kb = kind(operand)
    if ka == K_NUMBER and kb == K_STRING:
        return str(v) == operand
    if ka == K_STRING and kb == K_NUMBER:
        number = number_of(v)
        return number is not None and equal(number, operand)
    return False


@cython.final
cdef class Equal(Test):
    cdef bint holds(self, object v, Frame f) except -1:
        cdef object operand = self.operand(f)
        if PyUnicode_CheckExact(v) and PyUnicode_CheckExact(operand):
            return v == operand
        if operand is None:
            return v is None or v is MISSING
        if operand is MISSING:
            return False
        if equal(v, operand):
            return True
        return self.loose and _loosely_equal(v, operand)


@cython.final
cdef class Ordered(Test):
    """$gt $gte $lt $lte: `low` and `high` are the results of the comparison that hold."""

    cdef bint holds(self, object v, Frame f) except -1:
        cdef object operand = self.operand(f)
        cdef int k
        cdef int found
        if operand is None:
            return self.same and (v is None or v is MISSING)
        if operand is MISSING:
            return False
        k = kind(operand)
        if kind(v) != k:
            if not self.loose:
                return False
            if k == K_STRING and kind(v) == K_NUMBER:
                v = str(v)
            elif k == K_NUMBER and kind(v) == K_STRING:
                v = number_of(v)
                if v is None:
                    return False
            else:
                return False
        if k == K_NUMBER and (v != v or operand != operand):  # NaN is only equal to itself
            return self.same and v != v and operand != operand
        found = order(v, operand)
        return self.less if found < 0 else self.more if found > 0 else self.same


@cython.final
cdef class In(Test):
    cdef bint holds(self, object v, Frame f) except -1:
        cdef object operand = self.operand(f)
        cdef object item
        if operand is MISSING:
            return False
        if PyUnicode_CheckExact(v):
            if v in <list> operand:
                return True
            if not self.loose:
                return False
        for item in <list> operand:
            if item is None:
                if v is None or v is MISSING:
                    return True
            elif item is not MISSING and (
                    equal(v, item) or self.loose and _loosely_equal(v, item)):
                return True
        return False


@cython.final
cdef class Exists(Test):
    cdef bint holds(self, object v, Frame f) except -1:
        return v is not MISSING


@cython.final
cdef class Size(Test):
    cdef bint holds(self, object v, Frame f) except -1:
        cdef object operand = self.operand(f)
        return PyList_CheckExact(v) and operand is not MISSING and equal(len(<list> v), operand)


@cython.final
cdef class Regular(Test):
    cdef bint holds(self, object v, Frame f) except -1:
        if not PyUnicode_CheckExact(v):
            return False
        if self.slot < 0:
            return self.search(v)
        operand = f.values[self.slot]
        return operand is not MISSING and operand(v)


@cython.final
cdef class Element(Test):
    """$elemMatch. `plain`: the node tests the elements themselves, else objects."""

    cdef bint holds(self, object v, Frame f) except -1:
        cdef int partial = f.partial
        if not PyList_CheckExact(v):
            return False
        f.partial = 0  # what is in it is known
        try:
            for item in <list> v:
                if self.plain or PyDict_CheckExact(item):
                    if self.node.test(item, f):
                        return True
                elif PyList_CheckExact(item) and self.node.test(_as_object(<list> item), f):
                    return True
            return False
        finally:
            f.partial = partial


cdef dict _as_object(list items):
    """An array as $elemMatch sees it: an object whose names are positions."""
    return {str(i): item for i, item in enumerate(items)}


# --- nodes ----------------------------------------------------------------------------------------

cdef class Node:
    cdef bint test(self, object document, Frame f) except -1:
        raise NotImplementedError


@cython.final
cdef class Constant(Node):
    cdef bint test(self, object document, Frame f) except -1:
        return self.value


@cython.final
cdef class All(Node):
    cdef bint test(self, object document, Frame f) except -1:
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self.nodes)):
            if not (<Node> <object> PyTuple_GET_ITEM(self.nodes, i)).test(document, f):
                return False
        return True


@cython.final
cdef class Some(Node):
    cdef bint test(self, object document, Frame f) except -1:
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self.nodes)):
            if (<Node> <object> PyTuple_GET_ITEM(self.nodes, i)).test(document, f):
                return True
        return False


@cython.final
cdef class Not(Node):
    cdef bint test(self, object document, Frame f) except -1:
        cdef bint found
        if not f.partial:
            return not self.node.test(document, f)
        f.inverted = not f.inverted
        found = not self.node.test(document, f)
        f.inverted = not f.inverted
        return found


@cython.final
cdef class AllOf(Node):
    """$all of a list that is known when it is bound."""

    cdef bint test(self, object document, Frame f) except -1:
        cdef object operand = f.values[self.slot]
        cdef Equal one
        if operand is MISSING or not operand:
            return False
        if f.partial and _unknown(self.path, document, f):
            return f.inverted
        for item in <list> operand:
            one = Equal()
            one.constant = item
            one.loose = self.loose
            if not _find(self.path, one, document, f):
                return False
        return True


@cython.final
cdef class Field(Node):
    cdef bint test(self, object document, Frame f) except -1:
        cdef PyObject *found
        if self.path.last == 0 and self.path.root == ROOT_DOCUMENT and PyDict_CheckExact(document):
            found = PyDict_GetItemWithError(
                document, <object> PyTuple_GET_ITEM(self.path.parts, 0))
            if found == NULL:
                if f.partial & 1:
                    return f.inverted
                return self.check.holds(MISSING, f) != self.negated
            return _leaf(<object> found, self.check, f) != self.negated
        if f.partial and _unknown(self.path, document, f):
            return f.inverted
        return _find(self.path, self.check, document, f) != self.negated


cdef bint _unknown(Path path, object document, Frame f) except -1:
    """Whether the path leads to what the frame says is not known."""
    if path.root == ROOT_OLD:
        document = f.old
        if not f.partial & 2:
            return False
    elif path.root != ROOT_DOCUMENT or not f.partial & 1:
        return False
    return not PyDict_CheckExact(document) or PyDict_GetItemWithError(
        document, <object> PyTuple_GET_ITEM(path.parts, 0)) == NULL


cdef bint _find(Path path, Test test, object document, Frame f) except -1:
    if path.root == ROOT_AUTH:
        document = f.identity.auth() if f.identity is not None else {}
    elif path.root == ROOT_OLD:
        document = f.old
    elif path.root == ROOT_REQUEST:
        document = f.request
    elif path.root == ROOT_SELF:
        return _leaf(document, test, f)
    if not PyDict_CheckExact(document):
        return test.holds(MISSING, f)
    return _inside(path, test, <dict> document, 0, f)


cdef bint _inside(Path path, Test test, dict document, Py_ssize_t i, Frame f) except -1:
    cdef PyObject *found = PyDict_GetItemWithError(
        document, <object> PyTuple_GET_ITEM(path.parts, i))
    if found == NULL:
        return test.holds(MISSING, f)
    cdef object value = <object> found
    if i == path.last:
        return _leaf(value, test, f)
    if PyDict_CheckExact(value):
        return _inside(path, test, <dict> value, i + 1, f)
    if PyList_CheckExact(value):
        return _through(path, test, <list> value, i + 1, f)
    return test.holds(MISSING, f)


cdef bint _through(Path path, Test test, list items, Py_ssize_t i, Frame f) except -1:
    """Part i of the path is looked up in an array: in its objects, and as a position."""
    cdef Py_ssize_t position
    cdef object item
    for item in items:
        if PyDict_CheckExact(item) and _inside(path, test, <dict> item, i, f):
            return True
    position = path.positions[i]
    if 0 <= position < len(items):
        item = items[position]
        if i == path.last:
            return test.holds(item, f)
        if PyDict_CheckExact(item):
            return _inside(path, test, <dict> item, i + 1, f)
        if PyList_CheckExact(item):
            return _through(path, test, <list> item, i + 1, f)
    return False


cdef bint _leaf(object value, Test test, Frame f) except -1:
    if PyList_CheckExact(value) and not test.whole:
        for item in <list> value:
            if test.holds(item, f):
                return True
    return test.holds(value, f)
