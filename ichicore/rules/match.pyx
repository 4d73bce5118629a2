"""Compiled expressions: bound to an identity, run over documents, or sent as filters."""

cimport cython

from ichicore.rules.context cimport Context, Frame
from ichicore.rules.encode cimport encode_document
from ichicore.rules.nodes cimport Node
from ichicore.rules.operands cimport Slot
from ichicore.rules.values cimport MISSING

from ichicore.rules.codec import decode
from ichicore.rules.patterns import PatternError, compile_pattern


@cython.final
cdef class Match:

    def test(self, document, Context identity not None, old=None, request=None, int partial=0):
        cdef Frame f = Frame()
        f.values = self.values_for(identity)
        if f.values is None:
            return False
        f.identity = identity
        f.old = old
        f.request = request
        f.partial = partial
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

    def test(self, document, old=None, int partial=0):
        cdef Frame f = self.frame
        if old is not None or partial:
            f = Frame()
            f.values = self.frame.values
            f.identity = self.frame.identity
            f.request = self.frame.request
            f.old = old
            f.partial = partial
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
