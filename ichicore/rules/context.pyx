"""Who asks: the identity that expressions are bound to."""

cimport cython
from cpython.datetime cimport (
    PyDateTime_Check, datetime_new, get_utc, import_datetime, timedelta_new,
)
from cpython.dict cimport PyDict_CheckExact

from ichicore.rules.values cimport MISSING

import_datetime()

cdef object _UTC = get_utc()


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
        self.timed = True
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
    """What one evaluation needs beside the document: values of the slots, the old document.

    partial: names that the document (1) or the old one (2) lacks may stand for values that are not
    known. Then a test of such a value gives what is against it, so that an expression holds only
    when it does whatever those values are."""
