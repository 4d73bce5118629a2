"""Values in expressions that depend on who asks."""

cimport cython
from cpython.datetime cimport PyDateTime_Check, import_datetime
from cpython.dict cimport PyDict_CheckExact

from ichicore.rules.context cimport Context
from ichicore.rules.values cimport MISSING

from bson.objectid import ObjectId

from ichicore.rules.extended import is_hex_id
from ichicore.rules.patterns import quote

import_datetime()

cdef long long INT64_MAX = 0x7FFFFFFFFFFFFFFF


@cython.final
cdef class Slot:
    """A value that depends on the identity: `spec` is a literal, a tuple of text parts, a list or a
    dict of these. `text`: regular expression, whose variables are quoted."""

    cdef object value(self, Context identity):
        cdef object found = build(self.spec, identity, self.pattern, self.loose)
        if found is MISSING:
            return MISSING
        if self.wants_list and type(found) is not list:
            return MISSING
        return found


@cython.final
cdef class Variable:
    def __init__(self, name):
        self.name = name


@cython.final
cdef class Text:
    def __init__(self, parts):
        self.parts = parts


cdef object build(object spec, Context identity, bint pattern, bint loose):
    cdef object found
    if type(spec) is Variable:
        found = identity.resolve((<Variable> spec).name)
        if found is MISSING:
            return MISSING
        if type(found) is str:
            if not is_text(found):
                return MISSING
            return quote(found) if pattern else found
        if loose and PyDateTime_Check(found):
            return found.isoformat()
        return found if _storable(found, 0) else MISSING
    if type(spec) is Text:
        texts = []
        for part in (<Text> spec).parts:
            if type(part) is str:
                texts.append(part)
                continue
            found = identity.resolve((<Variable> part).name)
            if found is MISSING:
                return MISSING
            if found is True or found is False:
                found = "true" if found else "false"
            elif PyDateTime_Check(found):
                found = _iso(found)
            elif not isinstance(found, (str, int, float)):
                return MISSING
            found = str(found)
            if not is_text(found):
                return MISSING
            texts.append(quote(found) if pattern else found)
        return "".join(texts)
    if type(spec) is Either:
        found = build((<Either> spec).spec, identity, False, loose)
        return MISSING if found is MISSING else either(found)
    if type(spec) is EitherOfAll:
        found = build((<EitherOfAll> spec).spec, identity, False, loose)
        return either_of_all(found) if type(found) is list else MISSING
    if type(spec) is list:
        values = []
        for item in <list> spec:
            found = build(item, identity, pattern, loose)
            if found is MISSING:
                return MISSING
            values.append(found)
        return values
    if type(spec) is dict:
        members = {}
        for key, item in (<dict> spec).items():
            found = build(item, identity, pattern, loose)
            if found is MISSING:
                return MISSING
            members[key] = found
        return members
    return spec


cdef bint is_text(str text) except -1:
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
        return is_text(v)
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
                    or "\0" in key or key == "__proto__" or not is_text(key)
                    or not _storable(item, depth + 1)):
                return False
        return True
    return False


@cython.final
cdef class Either:
    """An `_id` as identifier and as text, when it may be either."""

    def __init__(self, spec):
        self.spec = spec


@cython.final
cdef class EitherOfAll:
    def __init__(self, spec):
        self.spec = spec


cdef list either(object value):
    if type(value) is str and is_hex_id(value):
        return [ObjectId(value), value]
    return [value]


cdef object either_of_all(object values):
    cdef list found = []
    for value in values:
        found += either(value)
    return found
