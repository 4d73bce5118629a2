"""Values as MongoDB compares them: numbers across types, everything else within its own type."""

from cpython.bytes cimport PyBytes_CheckExact
from cpython.datetime cimport PyDateTime_Check, import_datetime, datetime_new, timedelta
from cpython.dict cimport PyDict_CheckExact, PyDict_Check
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact, PyList_Check
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport Py_EQ, Py_LT, PyObject_RichCompareBool
from cpython.unicode cimport PyUnicode_Check

from decimal import Decimal
from re import Pattern
from uuid import UUID

from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.timestamp import Timestamp

import_datetime()

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object o)
    int PyUnicode_Compare(object a, object b) except? -1

cdef class _Missing:
    def __repr__(self):
        return "MISSING"

    def __bool__(self):
        return False

MISSING = _Missing()
MISSING_VALUE = MISSING
cdef object _OBJECT_ID = ObjectId
cdef object _EPOCH = datetime_new(1970, 1, 1, 0, 0, 0, 0, None)
cdef object _NAN = float("nan")


cdef int kind(object v) except -1:
    """The type's place in MongoDB's order of types."""
    if PyUnicode_CheckExact(v):
        return K_STRING
    if v is None:
        return K_NULL
    if v is True or v is False:
        return K_BOOL
    if PyLong_CheckExact(v) or PyFloat_CheckExact(v):
        return K_NUMBER
    if PyDict_CheckExact(v):
        return K_OBJECT
    if PyList_CheckExact(v):
        return K_ARRAY
    if v is MISSING:
        return K_MISSING
    if type(v) is _OBJECT_ID:
        return K_ID
    return _rare_kind(v)


cdef int _rare_kind(object v) except -1:
    if PyDateTime_Check(v) or isinstance(v, DatetimeMS):
        return K_DATE
    if isinstance(v, (int, float, Decimal128, Decimal)):
        return K_NUMBER
    if PyUnicode_Check(v):
        return K_STRING
    if isinstance(v, (bytes, UUID)):
        return K_BINARY
    if isinstance(v, (list, tuple)):
        return K_ARRAY
    if isinstance(v, Timestamp):
        return K_TIMESTAMP
    if isinstance(v, (Regex, Pattern)):
        return K_REGEX
    if isinstance(v, MinKey):
        return K_MIN
    if isinstance(v, MaxKey):
        return K_MAX
    if isinstance(v, ObjectId):
        return K_ID
    if hasattr(v, "items"):
        return K_OBJECT
    return K_OTHER


cdef object _millis(object v):
    """Milliseconds since the epoch of a datetime; naive ones are in UTC."""
    if isinstance(v, DatetimeMS):
        return int(v)
    offset = v.utcoffset()
    gap = v.replace(tzinfo=None) - _EPOCH
    if offset is not None:
        gap -= offset
    return gap.days * 86_400_000 + gap.seconds * 1000 + gap.microseconds // 1000


cdef object _plain_number(object v):
    """An int, float or Decimal."""
    if isinstance(v, Decimal128):
        v = v.to_decimal()
    if isinstance(v, Decimal) and v.is_nan():
        return _NAN
    return v


cdef int _order_numbers(object a, object b) except -2:
    if not (PyLong_CheckExact(a) or PyFloat_CheckExact(a)):
        a = _plain_number(a)
    if not (PyLong_CheckExact(b) or PyFloat_CheckExact(b)):
        b = _plain_number(b)
    if a == b:
        return 0
    cdef bint a_nan = a != a
    cdef bint b_nan = b != b
    if a_nan or b_nan:
        return b_nan - a_nan
    return -1 if a < b else 1


cdef tuple _binary(object v):
    if isinstance(v, UUID):
        return (16, 4, v.bytes)
    return (len(v), v.subtype if isinstance(v, Binary) else 0, bytes(v))


cdef bint equal(object a, object b) except -1:
    """Whether MongoDB takes them as equal. Missing equals only itself."""
    cdef int ka
    if PyUnicode_CheckExact(a):
        if PyUnicode_CheckExact(b):
            return a is b or PyObject_RichCompareBool(a, b, Py_EQ)
        return kind(b) == K_STRING and a == b
    if PyLong_CheckExact(a) and PyLong_CheckExact(b):
        return PyObject_RichCompareBool(a, b, Py_EQ)
    ka = kind(a)
    if ka != kind(b):
        return False
    return order(a, b) == 0


cdef int order(object a, object b) except -2:
    """-1, 0 or 1 for two values of the same kind."""
    cdef int k = kind(a)
    cdef Py_ssize_t n
    cdef Py_ssize_t i
    cdef int found
    if k == K_STRING:
        return PyUnicode_Compare(a, b)
    if k == K_NUMBER:
        return _order_numbers(a, b)
    if k == K_NULL or k == K_MISSING or k == K_MIN or k == K_MAX:
        return 0
    if k == K_ARRAY:
        n = min(len(a), len(b))
        for i in range(n):
            found = compare_any(a[i], b[i])
            if found:
                return found
        return (len(a) > len(b)) - (len(a) < len(b))
    if k == K_OBJECT:
        return _order_objects(a, b)
    if k == K_DATE:
        a, b = _millis(a), _millis(b)
    elif k == K_BINARY:
        a, b = _binary(a), _binary(b)
    elif k == K_REGEX:
        a, b = _regex(a), _regex(b)
    elif k == K_OTHER:
        return 0 if a is b else 1
    if a == b:
        return 0
    return -1 if a < b else 1


cdef tuple _regex(object v):
    flags = v.flags
    if not isinstance(v, Regex):
        flags &= ~32
    return (str(v.pattern), int(flags))


cdef int _order_objects(object a, object b) except -2:
    cdef int found
    cdef object ka, va, kb, vb
    for (ka, va), (kb, vb) in zip(a.items(), b.items()):
        found = kind(va) - kind(vb)
        if found:
            return -1 if found < 0 else 1
        if ka != kb:
            return -1 if ka < kb else 1
        found = order(va, vb)
        if found:
            return found
    return (len(a) > len(b)) - (len(a) < len(b))


cdef int compare_any(object a, object b) except -2:
    """Order across types."""
    cdef int found = kind(a) - kind(b)
    if found:
        return -1 if found < 0 else 1
    return order(a, b)


cdef object number_of(str text):
    """The number that a text is, or None."""
    if not text or len(text) > 64 or "_" in text or text != text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        found = Decimal(text)
    except ArithmeticError:
        return None
    return found if found.is_finite() else None


def values_equal(a, b) -> bool:
    """`equal` for Python."""
    return equal(a, b)


def values_order(a, b) -> int:
    """`compare_any` for Python."""
    return compare_any(a, b)
