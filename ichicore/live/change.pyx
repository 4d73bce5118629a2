"""What a feed tells the hub: one changed row or document, or one message published from SQL."""

cimport cython
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint32_t, uint64_t

import json

import orjson

cdef const char *HEX = b"0123456789abcdef"


cdef str write_position(uint64_t lsn, uint32_t sequence):
    """16 hexadecimal digits, a hyphen, 8 more: texts that sort as the changes were committed."""
    cdef char out[25]
    cdef int i
    for i in range(16):
        out[i] = HEX[(lsn >> (4 * (15 - i))) & 15]
    out[16] = b"-"
    for i in range(8):
        out[17 + i] = HEX[(sequence >> (4 * (7 - i))) & 15]
    return PyUnicode_DecodeASCII(out, 25, NULL)


cdef dict parse(bytes text):
    """None for what cannot be read: nested too deeply. Nobody may then be shown it by a rule."""
    try:
        found = orjson.loads(text)
    except ValueError:
        try:  # Postgres' json holds lone surrogates and numbers of any size
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return found if type(found) is dict else None


@cython.final
@cython.freelist(64)
cdef class Change:
    """One committed change, immutable.

    kind: "postgres" or "mongo". source: schema.table or the collection. event: upper case for
    tables, lower case for collections. record, old: the row or document after and before as plain
    values, None where there is none or where it cannot be read (then no rule may pass it).
    record_json, old_json: the same as the bytes that clients get; None where there is none, and
    for a source that gives only values. position: texts that sort as the changes were committed.
    partial: names that record or old lack may stand for values all the same, as is always so for
    tables: the log does not repeat long values that did not change, and of old rows mostly has the
    key alone.
    """

    def __init__(self, str kind not None, str source not None, str event not None,
                 dict record=None, dict old=None, bytes record_json=None, bytes old_json=None,
                 str position not None="", bint partial=False):
        self.kind = kind
        self.source = source
        self.event = event
        self.record_json = record_json
        self.old_json = old_json
        self.partial = partial or kind == "postgres"
        self._position = position
        self._record = record
        self._old = old
        self._parsed = record is not None or record_json is None
        self._old_parsed = old is not None or old_json is None

    cdef dict get_record(self):
        if not self._parsed:
            self._record = parse(self.record_json)
            self._parsed = True
        return self._record

    cdef dict get_old(self):
        if not self._old_parsed:
            self._old = parse(self.old_json)
            self._old_parsed = True
        return self._old

    cdef str get_position(self):
        if self._position is None:
            self._position = write_position(self.lsn, self.sequence)
        return self._position

    @property
    def record(self):
        return self.get_record()

    @property
    def old(self):
        return self.get_old()

    @property
    def position(self):
        return self.get_position()

    def __repr__(self):
        return f"<Change {self.kind} {self.source} {self.event} {self.get_position()}>"


@cython.final
@cython.freelist(16)
cdef class Publish:
    """One message published inside a committed transaction by realtime.publish or
    realtime.to_user. channel: "user:<uid>" for the latter. payload_json: the payload as JSON."""

    def __init__(self, str channel not None, str event not None, bytes payload_json not None,
                 str position not None=""):
        self.channel = channel
        self.event = event
        self.payload_json = payload_json
        self._position = position

    @property
    def position(self):
        if self._position is None:
            self._position = write_position(self.lsn, self.sequence)
        return self._position

    def __repr__(self):
        return f"<Publish {self.channel} {self.event} {self.position}>"


cdef Change new_change(str source, str event, bytes record_json, bytes old_json,
                       uint64_t lsn, uint32_t sequence):
    cdef Change made = Change.__new__(Change)
    made.kind = "postgres"
    made.source = source
    made.event = event
    made.record_json = record_json
    made.old_json = old_json
    made.partial = True
    made.lsn = lsn
    made.sequence = sequence
    made._parsed = record_json is None
    made._old_parsed = old_json is None
    return made


cdef Publish new_publish(str channel, str event, bytes payload_json, uint64_t lsn,
                         uint32_t sequence):
    cdef Publish made = Publish.__new__(Publish)
    made.channel = channel
    made.event = event
    made.payload_json = payload_json
    made.lsn = lsn
    made.sequence = sequence
    return made
