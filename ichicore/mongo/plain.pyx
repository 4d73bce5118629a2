"""Reads that say nothing but a filter, by an identity whose rule is known: the command is put
together straight from the body.

What is kept of an identity lives as long as the rules it was bound by, and not where they look at
the time.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t
from libc.string cimport memcpy

from ichicore.mongo.command cimport plain_filter
from ichicore.mongo.reply cimport doc_reply, succeeded
from ichicore.mongo.splice cimport both

from ichicore.mongo import message
from ichicore.mongo.parts import EMPTY

cdef enum:
    MOST_READS = 1024   # identities of one path that are remembered
cdef bytes _empty = EMPTY


@cython.final
@cython.freelist(64)
cdef class Ready:

    def __init__(self, plan, str collection not None, double seconds):
        self.plan = plan
        self.collection = collection
        self.seconds = seconds
        self.command = b""


@cython.final
cdef class Place:

    def __init__(self, str operation not None, str collection not None):
        self.operation = operation
        self.collection = collection
        self.reads = {}

    @property
    def known(self):
        return len(self.reads)

    def keep(self, PlainRead read not None):
        if len(self.reads) >= MOST_READS:
            self.reads.clear()
        self.reads[<size_t> <void *> read.identity] = read

    cdef Ready ready(self, object identity, bytes body):
        """None for what has to be looked at as a whole."""
        cdef object found = self.reads.get(<size_t> <void *> identity)
        if found is None or (<PlainRead> found).identity is not identity:
            return None
        return (<PlainRead> found).ready(body)


@cython.final
cdef class PlainRead:

    def __init__(self, identity, caps, plan, str collection not None, bytes elements not None,
                 bytes rule not None, double seconds, bytes tail not None):
        cdef Py_ssize_t at = elements.index(_empty)
        self.identity = identity
        self.caps = caps
        self.plan = plan
        self.collection = collection
        self.seconds = seconds
        self.rule = rule
        self.one = plan.operation == "findOne"
        self.head = elements[:at]
        # a sealed document of the members behind the filter, without its size
        self.foot = message.sealed(elements[at + len(_empty):], seconds, tail)[4:]

    cpdef bytes command(self, bytes body):
        cdef bytes filter = plain_filter(body, self.caps)
        cdef bytes made
        cdef Py_ssize_t a = PyBytes_GET_SIZE(self.head)
        cdef Py_ssize_t b
        cdef Py_ssize_t c = PyBytes_GET_SIZE(self.foot)
        cdef int32_t size
        cdef char *o
        if filter is None:
            return None
        filter = both(filter, self.rule)
        b = PyBytes_GET_SIZE(filter)
        size = <int32_t> (4 + a + b + c)
        made = PyBytes_FromStringAndSize(NULL, size)
        o = PyBytes_AS_STRING(made)
        memcpy(o, &size, 4)
        memcpy(o + 4, PyBytes_AS_STRING(self.head), a)
        memcpy(o + 4 + a, PyBytes_AS_STRING(filter), b)
        memcpy(o + 4 + a + b, PyBytes_AS_STRING(self.foot), c)
        return made

    cdef Ready ready(self, bytes body):
        cdef bytes command = self.command(body)
        cdef Ready ready
        if command is None:
            return None
        ready = Ready.__new__(Ready)
        ready.read = self
        ready.plan = self.plan
        ready.collection = self.collection
        ready.seconds = self.seconds
        ready.command = command
        return ready

    cdef bytes answer(self, bytes found):
        """What a reply becomes; None where the guide has to say it."""
        return doc_reply(found, None) if self.one and succeeded(found) else None
