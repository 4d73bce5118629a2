"""Match expressions: compiled to a tree of small tests, bound to an identity, run over documents.

A path that leads through arrays is looked up as MongoDB does: in every element that is an object,
and at the position when the name is a number.
"""

cimport cython
from cpython.datetime cimport (
    PyDateTime_Check, datetime_new, get_utc, import_datetime, timedelta_new,
)
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem, PyDict_GetItemWithError
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE

from ichicore.rules.encode cimport encode_document
from ichicore.rules.values cimport (
    K_ARRAY, K_ID, K_NULL, K_NUMBER, K_OBJECT, K_STRING, MISSING, compare_any, equal, kind,
    number_of, order,
)

from bson.objectid import ObjectId

from ichicore.rules import names
from ichicore.rules.codec import decode
from ichicore.rules.errors import RuleError
from ichicore.rules.extended import READERS, is_hex_id
from ichicore.rules.patterns import PatternError, compile_pattern, quote

import_datetime()

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)

cdef object _UTC = get_utc()

cdef long long INT64_MAX = 0x7FFFFFFFFFFFFFFF
cdef int MOST_DEPTH = 32
cdef int MOST_LIST = 1000
cdef int MOST_PATH = 512


# --- identity -------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class Context:

    def __init__(self, str role="anon", uid=None, email=None, dict claims=None, now=None):
        self.role = role
        self.uid = uid or None
        self.email = email or None
        self.claims = {} if claims is None else claims
        self._now = now
        self._auth = None

    @property
    def now(self):
        if self._now is None or PyDateTime_Check(self._now):
            return self._now
        self._now = _from_seconds(self._now)
        return self._now

    cdef object resolve(self, str name):
        """The value of a variable, or MISSING."""
        cdef object found
        if name == "auth.uid":
            found = self.uid
        elif name == "auth.role":
            found = self.role
        elif name == "auth.email":
            found = self.email
        elif name == "now":
            found = self.now
        else:
            found = self.claims
            for part in name[12:].split("."):  # "auth.claims."
                if not PyDict_CheckExact(found):
                    return MISSING
                found = (<dict> found).get(part)
        return MISSING if found is None else found

    cdef dict auth(self):
        """The identity as the document that `auth.*` paths read: without what does not exist."""
        if self._auth is None:
            self._auth = {"role": self.role, "claims": self.claims}
            if self.uid is not None:
                self._auth["uid"] = self.uid
            if self.email is not None:
                self._auth["email"] = self.email
        return self._auth

    def value(self, str name):
        """The value of a variable such as "auth.uid", or None."""
        found = self.resolve(name)
        return None if found is MISSING else found

    def __repr__(self):
        return f"Context({self.role!r}, {self.uid!r})"


cdef object _from_seconds(object seconds):
    """An aware datetime in milliseconds, as MongoDB keeps them."""
    cdef long long millis = <long long> (seconds * 1000)
    start = datetime_new(1970, 1, 1, 0, 0, 0, 0, _UTC)
    return start + timedelta_new(
        <int> (millis // 86_400_000), <int> (millis % 86_400_000 // 1000),
        <int> (millis % 1000 * 1000)
    )


@cython.final
@cython.freelist(64)
cdef class Frame:
    """What one evaluation needs beside the document: values of the slots, the old document."""


# --- operands -------------------------------------------------------------------------------------

@cython.final
cdef class Slot:
    """A value that depends on the identity: `spec` is a literal, a tuple of text parts, a list or a
    dict of these. `text`: regular expression, whose variables are quoted."""

    cdef object spec
    cdef bint pattern
    cdef bint wants_list
    cdef bint loose
    cdef readonly Py_ssize_t index

    cdef object value(self, Context identity):
        cdef object found = _build(self.spec, identity, self.pattern, self.loose)
        if found is MISSING:
            return MISSING
        if self.wants_list and type(found) is not list:
            return MISSING
        return found


@cython.final
cdef class _Variable:
    cdef str name

    def __init__(self, name):
        self.name = name


@cython.final
cdef class _Text:
    cdef tuple parts  # texts and _Variable

    def __init__(self, parts):
        self.parts = parts


cdef object _build(object spec, Context identity, bint pattern, bint loose):
    cdef object found
    if type(spec) is _Variable:
        found = identity.resolve((<_Variable> spec).name)
        if found is MISSING:
            return MISSING
        if type(found) is str:
            if not _is_text(found):
                return MISSING
            return quote(found) if pattern else found
        if loose and PyDateTime_Check(found):
            return found.isoformat()
        return found if _storable(found, 0) else MISSING
    if type(spec) is _Text:
        texts = []
        for part in (<_Text> spec).parts:
            if type(part) is str:
                texts.append(part)
                continue
            found = identity.resolve((<_Variable> part).name)
            if found is MISSING:
                return MISSING
            if found is True or found is False:
                found = "true" if found else "false"
            elif PyDateTime_Check(found):
                found = _iso(found)
            elif not isinstance(found, (str, int, float)):
                return MISSING
            found = str(found)
            if not _is_text(found):
                return MISSING
            texts.append(quote(found) if pattern else found)
        return "".join(texts)
    if type(spec) is _Either:
        found = _build((<_Either> spec).spec, identity, False, loose)
        return MISSING if found is MISSING else _either(found)
    if type(spec) is _EitherOfAll:
        found = _build((<_EitherOfAll> spec).spec, identity, False, loose)
        return _either_of_all(found) if type(found) is list else MISSING
    if type(spec) is list:
        values = []
        for item in <list> spec:
            found = _build(item, identity, pattern, loose)
            if found is MISSING:
                return MISSING
            values.append(found)
        return values
    if type(spec) is dict:
        members = {}
        for key, item in (<dict> spec).items():
            found = _build(item, identity, pattern, loose)
            if found is MISSING:
                return MISSING
            members[key] = found
        return members
    return spec


cdef bint _is_text(str text) except -1:
    """Whether a text can be stored: JSON can hold halves of characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


cdef str _iso(object moment):
    text = moment.isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


cdef bint _storable(object v, int depth) except -1:
    """Whether a value of a token may stand in a document or a filter: no operators, no dotted keys,
    no number beyond 64 bits, not deep."""
    if depth > 16:
        return False
    if isinstance(v, str):
        return _is_text(v)
    if v is None or isinstance(v, (bool, float)) or PyDateTime_Check(v):
        return True
    if isinstance(v, int):
        return -INT64_MAX - 1 <= v <= INT64_MAX
    if type(v) is list:
        for item in <list> v:
            if not _storable(item, depth + 1):
                return False
        return True
    if type(v) is dict:
        for key, item in (<dict> v).items():
            if (not isinstance(key, str) or not key or key[0] == "$" or "." in key
                    or "\0" in key or key == "__proto__" or not _is_text(key) or not _storable(item, depth + 1)):
                return False
        return True
    return False


# --- paths ----------------------------------------------------------------------------------------

cdef enum:
    ROOT_DOCUMENT = 0
    ROOT_AUTH = 1
    ROOT_OLD = 2
    ROOT_REQUEST = 3
    ROOT_SELF = 4  # the value itself, of the elements of an array


@cython.final
cdef class Path:
    cdef str text
    cdef tuple parts
    cdef Py_ssize_t last
    cdef list positions  # of each part: the array index that it names, or -1
    cdef int root
    cdef bint is_id

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

    cdef bint whole
    cdef object constant
    cdef Py_ssize_t slot  # of the operand, -1 for a constant
    cdef bint loose

    def __cinit__(self):
        self.slot = -1

    cdef inline object operand(self, Frame f):
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

    cdef bint less
    cdef bint same
    cdef bint more

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
    cdef object search  # of a constant pattern
    cdef str options

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

    cdef Node node
    cdef bint plain

    cdef bint holds(self, object v, Frame f) except -1:
        if not PyList_CheckExact(v):
            return False
        for item in <list> v:
            if self.plain or PyDict_CheckExact(item):
                if self.node.test(item, f):
                    return True
            elif PyList_CheckExact(item) and self.node.test(_as_object(<list> item), f):
                return True
        return False


cdef dict _as_object(list items):
    """An array as $elemMatch sees it: an object whose names are positions."""
    return {str(i): item for i, item in enumerate(items)}


# --- nodes ----------------------------------------------------------------------------------------

cdef class Node:
    cdef bint test(self, object document, Frame f) except -1:
        raise NotImplementedError


@cython.final
cdef class Constant(Node):
    cdef bint value

    cdef bint test(self, object document, Frame f) except -1:
        return self.value


@cython.final
cdef class All(Node):
    cdef tuple nodes

    cdef bint test(self, object document, Frame f) except -1:
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self.nodes)):
            if not (<Node> <object> PyTuple_GET_ITEM(self.nodes, i)).test(document, f):
                return False
        return True


@cython.final
cdef class Some(Node):
    cdef tuple nodes

    cdef bint test(self, object document, Frame f) except -1:
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self.nodes)):
            if (<Node> <object> PyTuple_GET_ITEM(self.nodes, i)).test(document, f):
                return True
        return False


@cython.final
cdef class Not(Node):
    cdef Node node

    cdef bint test(self, object document, Frame f) except -1:
        return not self.node.test(document, f)


@cython.final
cdef class AllOf(Node):
    """$all of a list that is known when it is bound."""

    cdef Path path
    cdef Py_ssize_t slot
    cdef bint loose

    cdef bint test(self, object document, Frame f) except -1:
        cdef object operand = f.values[self.slot]
        cdef Equal one
        if operand is MISSING or not operand:
            return False
        for item in <list> operand:
            one = Equal()
            one.constant = item
            one.loose = self.loose
            if not _find(self.path, one, document, f):
                return False
        return True


@cython.final
cdef class Field(Node):
    cdef Path path
    cdef Test check
    cdef bint negated

    cdef bint test(self, object document, Frame f) except -1:
        cdef PyObject *found
        if self.path.last == 0 and self.path.root == ROOT_DOCUMENT and PyDict_CheckExact(document):
            found = PyDict_GetItemWithError(
                document, <object> PyTuple_GET_ITEM(self.path.parts, 0))
            if found == NULL:
                return self.check.holds(MISSING, f) != self.negated
            return _leaf(<object> found, self.check, f) != self.negated
        return _find(self.path, self.check, document, f) != self.negated


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


# --- compiled -------------------------------------------------------------------------------------

@cython.final
cdef class Match:

    def test(self, document, Context identity not None, old=None, request=None):
        cdef Frame f = Frame()
        f.values = self.values_for(identity)
        if f.values is None:
            return False
        f.identity = identity
        f.old = old
        f.request = request
        return (<Node> self.root).test(document, f)

    def bind(self, Context identity not None, request=None):
        cdef Bound bound
        cdef tuple values = self.values_for(identity)
        if values is None:
            return None
        bound = Bound()
        bound.match = self
        bound.frame = Frame()
        bound.frame.values = values
        bound.frame.identity = identity
        bound.frame.request = request
        return bound

    cdef bytes constant_bson(self):
        """The filter's BSON when it is the same for everybody, else None."""
        if self.slots:
            return None
        if self._constant_bson is None:
            self._constant_bson = encode_document(self.template)
        return self._constant_bson

    cdef tuple values_for(self, Context identity):
        cdef list values
        cdef Slot slot
        if not self.slots:
            return ()
        values = []
        for slot in self.slots:
            found = slot.value(identity)
            if slot.pattern and found is not MISSING:
                try:
                    found = compile_pattern(found[0], found[1])
                except PatternError:
                    found = MISSING
            if found is MISSING and not self.lenient:
                return None
            values.append(found)
        return tuple(values)

    def equalities(self):
        return self._equalities

    def index(self):
        return self._index

    def __repr__(self):
        return f"Match({self.source!r})"


@cython.final
cdef class Bound:

    def test(self, document, old=None):
        cdef Frame f = self.frame
        if old is not None:
            f = Frame()
            f.values = self.frame.values
            f.identity = self.frame.identity
            f.request = self.frame.request
            f.old = old
        return (<Node> self.match.root).test(document, f)

    def test_raw(self, bytes document not None):
        return (<Node> self.match.root).test(decode(document), self.frame)

    @property
    def key(self):
        cdef list found = [_hashable(v) for v in self.frame.values]
        if self.match.needs_identity:
            found.append(_hashable(self.frame.identity.auth()))
        return tuple(found)

    @property
    def filter(self):
        if self._filter is None:
            self._filter = _fill(self.match.template, self.frame.values)
        return self._filter

    @property
    def bson(self):
        if self._bson is None:
            self._bson = self.match.constant_bson() or encode_document(self.filter)
        return self._bson

    def equality_terms(self):
        cdef dict found = {}
        _terms(self.filter, found)
        return found

    def __repr__(self):
        return f"Bound({self.filter!r})"


cdef void _terms(dict expression, dict found) except *:
    for key, value in expression.items():
        if key == "$and":
            for member in value:
                _terms(member, found)
        elif key[:1] != "$":
            if not isinstance(value, dict) or not value or next(iter(value))[:1] != "$":
                found[key] = value
            elif "$eq" in value:
                found[key] = value["$eq"]


cdef object _hashable(object v):
    if isinstance(v, dict):
        return ("{", *[(k, _hashable(item)) for k, item in v.items()])
    if isinstance(v, list):
        return ("[", *[_hashable(item) for item in v])
    if isinstance(v, (bool, float)):
        return (type(v).__name__, v)
    return v


cdef object _fill(object template, tuple values):
    """A filter from its template: slots become values, wrapped where they could be operators."""
    if type(template) is dict:
        return {key: _fill(value, values) for key, value in (<dict> template).items()}
    if type(template) is list:
        return [_fill(value, values) for value in <list> template]
    if type(template) is Slot:
        return _portable(values[(<Slot> template).index])
    return template


cdef object _portable(object value):
    return value.text if hasattr(value, "text") and hasattr(value, "options") else value


# --- from JSON ------------------------------------------------------------------------------------

cdef class _Compiler:
    """Compiles one expression; mistakes are collected in `errors`."""

    cdef list errors
    cdef list slots
    cdef set variables
    cdef set paths
    cdef tuple roots
    cdef object default
    cdef bint interpolate
    cdef bint loose
    cdef bint uses_old
    cdef bint needs_identity

    def __init__(self, errors, roots, default, interpolate, loose):
        self.errors = errors
        self.slots = []
        self.variables = set()
        self.paths = set()
        self.roots = roots
        self.default = default
        self.interpolate = interpolate
        self.loose = loose

    cdef object wrong(self, str where, str message):
        self.errors.append((where, message))
        return None

    # Each of these gives (node, template).

    cdef tuple expression(self, object source, str where, int depth):
        cdef Constant constant
        cdef list nodes
        if source is True or source is False:
            constant = Constant()
            constant.value = source
            return constant, {} if source else {"$nor": [{}]}
        if type(source) is not dict:
            self.wrong(where, "an object, true or false is expected")
            return None, None
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return None, None
        nodes = []
        template = {}
        for key, value in (<dict> source).items():
            inner = f"{where}.{key}"
            if key[:1] == "$":
                node, part = self.logical(key, value, inner, depth)
            else:
                node, part = self.field(key, value, inner, depth)
            if node is None:
                continue
            nodes.append(node)
            if key == "$not":  # MongoDB knows it only below a field
                template["$nor"] = [*template.get("$nor", ()), part]
            elif key == "$nor":
                template["$nor"] = [*template.get("$nor", ()), *part]
            else:
                template[key] = part
        return _all(nodes), template

    cdef tuple logical(self, str key, object value, str where, int depth):
        cdef Some some
        cdef Not negation
        if key not in ("$and", "$or", "$nor", "$not"):
            self.wrong(where, "unknown operator")
            return None, None
        if key == "$not":
            node, part = self.expression(value, where, depth + 1)
            if node is None:
                return None, None
            negation = Not()
            negation.node = node
            return negation, part
        if type(value) is not list or not value:
            self.wrong(where, "a list of at least one expression is expected")
            return None, None
        if len(value) > MOST_LIST:
            self.wrong(where, f"more than {MOST_LIST} expressions")
            return None, None
        nodes = []
        parts = []
        for number, member in enumerate(value):
            node, part = self.expression(member, f"{where}[{number}]", depth + 1)
            if node is not None:
                nodes.append(node)
                parts.append(part)
        if key == "$and":
            return _all(nodes), parts
        some = Some()
        some.nodes = tuple(nodes)
        if key == "$or":
            return some, parts
        negation = Not()
        negation.node = some
        return negation, parts

    cdef Path path(self, str text, str where):
        cdef tuple parts = tuple(text.split("."))
        cdef int root = ROOT_DOCUMENT
        head = parts[0]
        if len(text) > MOST_PATH:
            return self.wrong(where, f"a path longer than {MOST_PATH}")
        if "" in parts:
            return self.wrong(where, "a path with an empty name")
        if "\0" in text or not _is_text(text):
            return self.wrong(where, "a path with a NUL or half of a character")
        if "__proto__" in parts:
            return self.wrong(where, "'__proto__' is not a name")
        for part in parts:
            if part[0] == "$":
                return self.wrong(where, "a name in a path cannot begin with '$'")
        if head in self.roots:
            if len(parts) == 1:
                return self.wrong(where, f"a path below '{head}' is expected")
            parts = parts[1:]
            text = text[len(head) + 1:]
            if head == "auth":
                self.needs_identity = True
                root = ROOT_AUTH
                if parts[0] not in ("uid", "role", "email", "claims"):
                    return self.wrong(where, "unknown name; known are auth.uid, auth.role, "
                                             "auth.email and auth.claims.<path>")
                if (parts[0] == "claims") == (len(parts) == 1):
                    return self.wrong(where, "auth.claims needs a name after it, the others none")
            elif head == "request":
                root = ROOT_REQUEST
                if text not in ("operation", "collection"):
                    return self.wrong(
                        where, "unknown name; known are request.operation and request.collection")
            elif head == "old":
                root = ROOT_OLD
                self.uses_old = True
        elif self.default is None:
            return self.wrong(where, f"a path begins with one of {', '.join(self.roots)}")
        elif head in ("auth", "request"):
            return self.wrong(where, f"paths here are of the document; '{head}.*' is tested in "
                                     "'when' and inserted as '${auth.…}'")
        if root == ROOT_DOCUMENT:
            self.paths.add(text)
        elif root == ROOT_OLD:
            self.paths.add("old." + text)
        return Path(text, parts, root)

    cdef tuple field(self, str key, object value, str where, int depth):
        cdef Path path = self.path(key, where)
        if path is None:
            return None, None
        if (type(value) is dict and value and self.is_operators(<dict> value)
                and _extended(value) is None):
            return self.operators(path, <dict> value, where, depth)
        return self.equality(path, value, where, depth)

    cdef bint is_operators(self, dict value) except -1:
        for key in value:
            if key[:1] == "$":
                return True
        return False

    cdef tuple equality(self, Path path, object value, str where, int depth):
        ids = path.is_id and not self.loose
        test, part = self.compared(Equal(), value, where, depth)
        if test is None:
            return None, None
        if ids:
            return self.id_equality(path, <Test> test, part, False)
        if type(part) is Slot or type(part) is dict or (type(part) is str and part[:1] == "$"):
            part = {"$eq": part}
        return _field(path, <Test> test, False), part

    cdef tuple id_equality(self, Path path, Test test, object part, bint negated):
        """A hexadecimal `_id` stands for the identifier and for the text."""
        cdef In any_of
        cdef Slot slot
        if test.slot >= 0:
            slot = self.slots[test.slot]
            slot.spec = _Either(slot.spec)
        else:
            found = _either(test.constant)
            if len(found) == 1:
                return (_field(path, test, negated),
                        {"$ne": part} if negated else
                        {"$eq": part} if type(part) is dict else part)
            part = found
        any_of = In()
        any_of.slot = test.slot
        any_of.constant = part
        return _field(path, any_of, negated), {"$nin" if negated else "$in": part}

    cdef tuple operators(self, Path path, dict value, str where, int depth):
        cdef list nodes = []
        template = {}
        if "$options" in value and "$regex" not in value:
            self.wrong(f"{where}.$options", "stands beside $regex only")
        for key, operand in value.items():
            if key == "$options":
                template[key] = operand
                continue
            node, part = self.operator(path, key, operand, value, f"{where}.{key}", depth)
            if node is not None:
                nodes.append(node)
                if type(part) is _Renamed:
                    template[(<_Renamed> part).key] = (<_Renamed> part).value
                else:
                    template[key] = part
        return _all(nodes), template

    cdef tuple operator(
        self, Path path, str key, object operand, dict value, str where, int depth
    ):
        cdef Ordered ordered
        cdef Test test
        cdef Not negation
        cdef bint negated
        if key in ("$eq", "$ne"):
            negated = key == "$ne"
            found, part = self.compared(Equal(), operand, where, depth)
            if found is None:
                return None, None
            if path.is_id and not self.loose:
                node, part = self.id_equality(path, <Test> found, part, negated)
                if type(part) is dict:
                    for name in part:
                        return node, _Renamed(name, part[name])
                return node, _Renamed("$ne" if negated else "$eq", part)
            return _field(path, <Test> found, negated), part
        if key in ("$gt", "$gte", "$lt", "$lte"):
            ordered = Ordered()
            ordered.less = key in ("$lt", "$lte")
            ordered.more = key in ("$gt", "$gte")
            ordered.same = key in ("$gte", "$lte")
            found, part = self.compared(ordered, operand, where, depth)
            return (None, None) if found is None else (_field(path, <Test> found, False), part)
        if key in ("$in", "$nin"):
            return self.membership(path, operand, where, depth, key == "$nin")
        if key == "$exists":
            if operand is not True and operand is not False:
                self.wrong(where, "true or false is expected")
                return None, None
            test = Exists()
            test.whole = True
            return _field(path, test, not operand), operand
        if key == "$size":
            if type(operand) is not int or operand < 0 or operand > 0x7FFFFFFF:
                self.wrong(where, "a number of elements is expected")
                return None, None
            test = Size()
            test.whole = True
            test.constant = operand
            return _field(path, test, False), operand
        if key == "$all":
            return self.all_of(path, operand, where, depth)
        if key == "$elemMatch":
            found, part = self.element(operand, where, depth)
            return (None, None) if found is None else (_field(path, <Test> found, False), part)
        if key == "$regex":
            return self.regular(path, operand, value.get("$options", ""), where)
        if key == "$not":
            if type(operand) is not dict or not operand or not self.is_operators(operand):
                self.wrong(where, "an object of operators is expected")
                return None, None
            node, part = self.operators(path, operand, where, depth + 1)
            if node is None:
                return None, None
            negation = Not()
            negation.node = node
            return negation, part
        self.wrong(where, "unknown operator")
        return None, None

    cdef tuple compared(self, Test test, object operand, str where, int depth):
        """A test with its operand: a constant or a slot."""
        spec, varies = self.value(operand, where, depth)
        if spec is MISSING:
            return None, None
        test.loose = self.loose
        if varies:
            slot = self.new_slot(spec)
            test.slot = (<Slot> slot).index
            return test, slot
        test.constant = spec
        return test, spec

    cdef object new_slot(self, object spec):
        cdef Slot slot = Slot()
        slot.spec = spec
        slot.index = len(self.slots)
        slot.loose = self.loose
        self.slots.append(slot)
        return slot

    cdef tuple membership(self, Path path, object operand, str where, int depth, bint negated):
        cdef In test = In()
        cdef Slot slot
        test.loose = self.loose
        ids = path.is_id and not self.loose
        spec, varies = self.value(operand, where, depth)
        if spec is MISSING:
            return None, None
        if type(spec) is list:
            if len(spec) > MOST_LIST:
                self.wrong(where, f"more than {MOST_LIST} values")
                return None, None
        elif type(spec) is not _Variable:
            self.wrong(where, "a list, or a variable that holds one, is expected")
            return None, None
        if varies:
            slot = self.new_slot(_EitherOfAll(spec) if ids else spec)
            slot.wants_list = True
            test.slot = slot.index
            return _field(path, test, negated), slot
        test.constant = _either_of_all(spec) if ids else spec
        return _field(path, test, negated), test.constant

    cdef tuple all_of(self, Path path, object operand, str where, int depth):
        cdef AllOf dynamic
        cdef Constant never
        cdef Slot slot
        spec, varies = (MISSING, False)
        if type(operand) is list:
            nodes = []
            parts = []
            for number, item in enumerate(operand):
                inner = f"{where}[{number}]"
                if type(item) is dict and "$elemMatch" in item:
                    if len(item) != 1:
                        self.wrong(inner, "$elemMatch stands alone here")
                        return None, None
                    found, part = self.element(item["$elemMatch"], f"{inner}.$elemMatch", depth)
                    part = {"$elemMatch": part}
                else:
                    found, part = self.compared(Equal(), item, inner, depth)
                if found is None:
                    return None, None
                nodes.append(_field(path, <Test> found, False))
                parts.append(part)
            if not nodes:
                never = Constant()
                never.value = False
                return never, []
            if len(nodes) > MOST_LIST:
                self.wrong(where, f"more than {MOST_LIST} values")
                return None, None
            return _all(nodes), parts
        spec, varies = self.value(operand, where, depth)
        if type(spec) is not _Variable:
            if spec is not MISSING:
                self.wrong(where, "a list, or a variable that holds one, is expected")
            return None, None
        slot = self.new_slot(spec)
        slot.wants_list = True
        dynamic = AllOf()
        dynamic.path = path
        dynamic.slot = slot.index
        dynamic.loose = self.loose
        return dynamic, slot

    cdef tuple element(self, object operand, str where, int depth):
        cdef Element test = Element()
        cdef _Compiler inner
        test.whole = True
        if type(operand) is not dict or not operand:
            self.wrong(where, "an object is expected")
            return None, None
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return None, None
        logical = ("$and", "$or", "$nor")
        if self.is_operators(operand) and not any(key in logical for key in operand):
            # of plain values: each test is one of the element itself
            node, part = self.operators(_SELF, operand, where, depth + 1)
            if node is None:
                return None, None
            test.node = node
            test.plain = True
            return test, part
        roots, default = self.roots, self.default
        paths, self.paths = self.paths, set()
        self.roots, self.default = (), "record"
        node, part = self.expression(operand, where, depth + 1)
        self.roots, self.default = roots, default
        self.paths = paths
        if node is None:
            return None, None
        test.node = node
        return test, part

    cdef tuple regular(self, Path path, object operand, object options, str where):
        cdef Regular test = Regular()
        cdef Slot slot
        if type(operand) is not str or type(options) is not str:
            self.wrong(where, "a pattern is expected")
            return None, None
        try:
            compiled = compile_pattern("", options)
        except PatternError as error:
            self.wrong(where, str(error))
            return None, None
        # in a pattern '$' is an anchor: only '${…}' names a variable
        spec, varies = (operand, False)
        if self.interpolate and "${" in operand:
            spec, varies = self.value(operand, where, 0)
            if spec is MISSING:
                return None, None
        if varies:
            slot = self.new_slot([spec, options])
            slot.pattern = True
            test.slot = slot.index
            return _field(path, test, False), slot
        try:
            test.search = compile_pattern(spec, options)
        except PatternError as error:
            self.wrong(where, str(error))
            return None, None
        return _field(path, test, False), spec

    cdef tuple value(self, object source, str where, int depth):
        """(spec, varies) of a literal; spec is MISSING when it is wrong."""
        cdef bint varies = False
        if type(source) is str:
            if not _is_text(source):
                self.wrong(where, "not a text: half of a character")
                return MISSING, False
            if not self.interpolate or "$" not in source:
                return source, False
            try:
                parts = names.parse(source)
            except ValueError as error:
                self.wrong(where, str(error))
                return MISSING, False
            if type(parts) is str:
                return parts, False
            found = []
            for part in parts:
                if type(part) is tuple:
                    self.variables.add(part[0])
                    part = _Variable(part[0])
                found.append(part)
            if len(found) == 1:
                return found[0], True
            return _Text(tuple(found)), True
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return MISSING, False
        if type(source) is list:
            items = []
            for number, item in enumerate(source):
                spec, one = self.value(item, f"{where}[{number}]", depth + 1)
                if spec is MISSING:
                    return MISSING, False
                varies = varies or one
                items.append(spec)
            return items, varies
        if type(source) is dict:
            found = _extended(source)
            if found is not None:
                if found is MISSING:
                    self.wrong(where, "not a value of extended JSON")
                return found, False
            members = {}
            for key, item in (<dict> source).items():
                inner = f"{where}.{key}"
                if not key or key[0] == "$":
                    self.wrong(inner, "unknown operator")
                    return MISSING, False
                if "." in key or "\0" in key or key == "__proto__" or not _is_text(key):
                    self.wrong(inner, "not a name of a field")
                    return MISSING, False
                spec, one = self.value(item, inner, depth + 1)
                if spec is MISSING:
                    return MISSING, False
                varies = varies or one
                members[key] = spec
            return members, varies
        if type(source) is int and not -INT64_MAX - 1 <= source <= INT64_MAX:
            self.wrong(where, "a number beyond 64 bits")
            return MISSING, False
        if source is None or isinstance(source, (bool, int, float)):
            return source, False
        return source, False


cdef Path _SELF = Path("", ("",), ROOT_SELF)


@cython.final
cdef class _Renamed:
    cdef str key
    cdef object value

    def __init__(self, key, value):
        self.key = key
        self.value = value


@cython.final
cdef class _Either:
    """An `_id` as identifier and as text, when it may be either."""

    cdef object spec

    def __init__(self, spec):
        self.spec = spec


@cython.final
cdef class _EitherOfAll:
    cdef object spec

    def __init__(self, spec):
        self.spec = spec


cdef list _either(object value):
    if type(value) is str and is_hex_id(value):
        return [ObjectId(value), value]
    return [value]


cdef object _either_of_all(object values):
    cdef list found = []
    for value in values:
        found += _either(value)
    return found


cdef object _extended(object source):
    """A value of extended JSON; None when it is none, MISSING when it is a wrong one."""
    if len(source) != 1:
        return None
    for key in source:
        reader = READERS.get(key)
        if reader is None:
            return None
        try:
            return reader(source[key])
        except ValueError:
            return MISSING


cdef Node _all(list nodes):
    cdef All found
    cdef Constant always
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        always = Constant()
        always.value = True
        return always
    found = All()
    found.nodes = tuple(nodes)
    return found


cdef Field _field(Path path, Test test, bint negated):
    cdef Field found = Field()
    found.path = path
    found.check = test
    found.negated = negated
    return found


cdef tuple _pair(object node, list slots):
    """(path, variable) of an equality with a single variable, or None."""
    cdef Field field
    cdef Slot slot
    if type(node) is not Field:
        return None
    field = node
    if field.negated or type(field.check) is not Equal or field.path.root != ROOT_DOCUMENT:
        return None
    if field.check.slot < 0:
        return None
    slot = slots[field.check.slot]
    if type(slot.spec) is not _Variable:
        return None
    return (field.path.text, (<_Variable> slot.spec).name)


cdef list _pairs(object node, list slots):
    if type(node) is All:
        return [p for member in (<All> node).nodes for p in _pairs(member, slots)]
    found = _pair(node, slots)
    return [] if found is None else [found]


cdef object _cover(object node, list slots):
    """Equalities of which one must hold, or None."""
    if type(node) is All:
        best = None
        for member in (<All> node).nodes:
            found = _cover(member, slots)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best
    if type(node) is Some:
        every = []
        for member in (<Some> node).nodes:
            found = _cover(member, slots)
            if found is None:
                return None
            every += [pair for pair in found if pair not in every]
        return every
    found = _pair(node, slots)
    return None if found is None else [found]


def compile_match(
    expression, str path="filter", *, tuple roots=(), default="record", bint interpolate=True,
    bint loose=False,
):
    errors = []
    found = compile_into(
        errors, expression, path, roots=roots, default=default, interpolate=interpolate,
        loose=loose,
    )
    if errors:
        raise RuleError.of(errors)
    return found


def compile_into(
    list errors, expression, str path, *, tuple roots=(), default="record",
    bint interpolate=True, bint loose=False, bint lenient=False,
):
    """As compile_match, but adds the mistakes to `errors` and gives None then. lenient: a variable
    that does not resolve equals nothing, instead of refusing all."""
    cdef _Compiler compiler = _Compiler(
        errors, ("record", *roots) if roots and "record" not in roots and default else roots,
        default, interpolate, loose)
    cdef Match match
    before = len(errors)
    root, template = compiler.expression(expression, path, 0)
    if len(errors) > before:
        return None
    match = Match()
    match.source = expression
    match.root = root
    match.template = template
    match.slots = compiler.slots
    match.variables = tuple(sorted(compiler.variables))
    match.paths = tuple(sorted(compiler.paths))
    match.uses_old = compiler.uses_old
    match.needs_identity = compiler.needs_identity
    match.lenient = lenient
    match._equalities = tuple(_pairs(root, compiler.slots))
    covered = _cover(root, compiler.slots)
    match._index = None if not covered else tuple(covered)
    return match


def compile_values(list errors, source, str path, *, bint interpolate=True):
    """An object of paths and values as a Match whose bound `filter` is that object with the values
    of an identity: what `set` writes."""
    cdef _Compiler compiler = _Compiler(errors, (), "record", interpolate, False)
    cdef Match match
    cdef Constant always = Constant()
    cdef dict template = {}
    before = len(errors)
    for key, value in source.items():
        where = f"{path}.{key}"
        compiler.path(key, where)
        spec, varies = compiler.value(value, where, 0)
        template[key] = compiler.new_slot(spec) if varies else spec
    if len(errors) > before:
        return None
    always.value = True
    match = Match()
    match.source = source
    match.root = always
    match.template = template
    match.slots = compiler.slots
    match.variables = tuple(sorted(compiler.variables))
    match.paths = tuple(sorted(compiler.paths))
    match._equalities = ()
    match._index = None
    return match


ALWAYS = compile_match(True)
NEVER = compile_match(False)
