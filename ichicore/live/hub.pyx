"""Who receives what in one project: channels with their members and presence, and the groups of
subscriptions to tables and collections.

Subscriptions that one decision settles form one group: the same rule for an identity for which it
means the same, and the same filter. A change is tested once for each group that it may concern,
and those are found by the values of the fields that their rules or filters compare for equality,
so that its cost follows the receivers. Everything here runs in the thread of the event loop.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_Check

import json
from collections import deque

import orjson

from ichicore.live.change cimport Change
from ichicore.live.frames cimport encode_bytes

cdef dict BITS = {"INSERT": 1, "UPDATE": 2, "DELETE": 4, "insert": 1, "update": 2, "delete": 4}
cdef uint64_t last_stamp = 0  # of the changes of all hubs

cdef enum:
    LONGEST = 1 << 20  # bytes of a change's frame that has all its values
    MOST_WAITING = 5_000
    MOST_WEIGHT = 8 << 20
    STEP = 32 << 10
    MOST_PATHS = 64  # that clients may add to an index: each is looked up for every change

# Nobody waits for a receiver that has not taken STEP bytes in so many seconds.
cdef double STALLED = 1.0

WAIT = 2


def event_bits(events):
    """The mask of some names of events, e.g. INSERT and UPDATE."""
    cdef int bits = 0
    for event in events:
        bits |= <int>BITS[event]
    return bits


cdef bytes framed(list parts):
    cdef bytes text = b"".join(parts)
    return encode_bytes(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), 1)


cdef object index_key(object value):
    """What values that may be equal have in common: numbers and texts of numbers are one, as loose
    rules compare them. None for what is not indexed."""
    cdef type kind = type(value)
    cdef Py_UCS4 c
    if kind is str:
        if 0 < len(<str>value) <= 40:
            for c in <str>value:
                if not (48 <= c <= 57 or c == 43 or c == 45 or c == 46 or c == 69 or c == 101):
                    return value
            try:
                return float(value)
            except ValueError:
                pass
        return value
    if kind is int:
        try:
            return float(value)
        except OverflowError:
            return "inf"
    if kind is float:
        return value if value == value else None
    if kind is bool:
        return (value,)
    return None


def broadcast_frame(Channel channel not None, bytes event, bytes payload not None,
                    bytes sender not None, bytes position=None):
    """event, payload, sender, position: as JSON; event and position may be None."""
    cdef list parts = [b'{"type":"broadcast","channel":', channel.quoted]
    if event is not None:
        parts += (b',"event":', event)
    parts += (b',"payload":', payload, b',"from":', sender)
    if position is not None:
        parts += (b',"position":', position)
    parts.append(b"}")
    return framed(parts)


@cython.final
cdef class Channel:
    """One channel of a project and the connections that have subscribed to it."""

    def __init__(self, str name not None):
        self.name = name
        self.quoted = orjson.dumps(name)
        self.members = {}
        self.present = {}
        self.remote = {}

    cdef Py_ssize_t fan(self, bytes frame, Peer sender) except -1:
        """Queues a frame for all members; for the sender when it wants its own."""
        cdef PyObject *peer
        cdef PyObject *own
        cdef Py_ssize_t at = 0, count = 0
        while PyDict_Next(self.members, &at, &peer, &own):
            if <Peer>peer is sender and <object>own is False:
                continue
            count += (<Peer>peer).push(frame)
        return count

    cdef Py_ssize_t tell(self, bytes frame, Peer sender) except -1:
        """Queues a frame for all that are present, but for one."""
        cdef PyObject *peer
        cdef PyObject *value
        cdef Py_ssize_t at = 0, count = 0
        while PyDict_Next(self.present, &at, &peer, &value):
            if <Peer>peer is not sender:
                count += (<Peer>peer).push(frame)
        return count

    def snapshot(self):
        """The frame presence_state."""
        cdef list parts = [b'{"type":"presence_state","channel":', self.quoted, b',"presences":{']
        cdef bint first = True
        for key, value in self.present.values():
            parts += (b'"' if first else b',"', key, b'":', value)
            first = False
        for key, value in self.remote.items():
            parts += (b'"' if first else b',"', key, b'":', value)
            first = False
        parts.append(b"}}")
        return framed(parts)

    def _diff(self, key, joins, leaves):
        cdef list parts = [b'{"type":"presence_diff","channel":', self.quoted, b',"joins":{']
        if joins is not None:
            parts += (b'"', key, b'":', joins)
        parts.append(b'},"leaves":{')
        if leaves is not None:
            parts += (b'"', key, b'":', leaves)
        parts.append(b"}}")
        return framed(parts)


@cython.final
cdef class Group:
    """Subscriptions that one decision settles. events: mask. rule: has test(record, old,
    partial), None for no restriction. filter: the same, of the client. whole: gets all fields."""

    def __init__(self, Source source not None, key, int events, rule, filter, bint whole,
                 tuple terms):
        self.source = source
        self.key = key
        self.events = events
        self.rule = rule
        self.filter = filter
        self.whole = whole
        self.terms = terms
        self.members = {}


@cython.final
cdef class Source:
    """A table or a collection. fields: None, or has strip(document)."""

    def __init__(self, str kind not None, str name not None, fields=None):
        self.kind = kind
        self.name = name
        self.fields = fields
        self.groups = {}
        self.index = {}
        self.parts = {}
        self.scan = []
        member = b',"table":' if kind == "postgres" else b',"collection":'
        self.head = member + orjson.dumps(name)

    def add(self, Peer peer not None, key, int events, rule=None, filter=None, bint whole=False,
            tuple terms=None):
        """Subscribes a connection; gives the group, for remove(). key: equal for subscriptions that
        every change concerns alike. terms: ((path, value), ...) of which at least one is in every
        document that rule and filter pass, None when unknown."""
        cdef Group group = self.groups.get(key)
        if group is None:
            group = Group(self, key, events, rule, filter, whole, self._usable(terms))
            self.groups[key] = group
            if group.terms is None:
                group.slot = len(self.scan)
                self.scan.append(group)
            else:
                for path, value in group.terms:
                    if path not in self.parts:
                        self.parts[path] = tuple(path.split("."))
                    self.index.setdefault(path, {}).setdefault(value, []).append(group)
        group.members[peer] = group.members.get(peer, 0) + 1
        return group

    def takes(self, tuple terms):
        """Whether terms of a client's choice may be given to add(): of few different paths only."""
        return terms is None or len(self.index) < MOST_PATHS or all(
            path in self.index for path, _ in terms)

    def remove(self, Peer peer not None, Group group not None):
        """Takes back one subscription."""
        cdef Group last
        left = group.members.get(peer, 0) - 1
        if left > 0:
            group.members[peer] = left
            return
        group.members.pop(peer, None)
        if group.members or self.groups.get(group.key) is not group:
            return
        del self.groups[group.key]
        if group.terms is None:
            last = self.scan.pop()
            if last is not group:
                self.scan[group.slot] = last
                last.slot = group.slot
            return
        for path, value in group.terms:
            table = self.index[path]
            table[value].remove(group)
            if not table[value]:
                del table[value]
            if not table:
                del self.index[path]
                del self.parts[path]

    def _usable(self, tuple terms):
        """The terms as keys of the index; None when one of them cannot be one."""
        cdef set found = set()
        if not terms:
            return None
        for path, value in terms:
            key = index_key(value)
            if key is None or any(part.isdigit() for part in path.split(".")):
                return None
            found.add((path, key))
        return tuple(found)

    cdef list candidates(self, dict subject, int bit, uint64_t stamp):
        """The groups that a change of this document may concern."""
        cdef list found = list(self.scan)  # a copy, as others come and go between two slices
        if subject is not None:
            for path, table in self.index.items():
                self.gather(found, <dict>table, subject, <tuple>self.parts[path], 0, bit, stamp)
        return found

    cdef int gather(self, list found, dict table, object value, tuple names, Py_ssize_t at, int bit,
                    uint64_t stamp) except -1:
        cdef Group group
        if type(value) is list:
            for element in <list>value:
                if type(element) is not list:
                    self.gather(found, table, element, names, at, bit, stamp)
            return 0
        if at < len(names):
            if type(value) is dict:
                value = (<dict>value).get(names[at])
                if value is not None:
                    self.gather(found, table, value, names, at + 1, bit, stamp)
            return 0
        key = index_key(value)
        if key is None:
            return 0
        groups = table.get(key)
        if groups is not None:
            for group in <list>groups:
                if group.events & bit and group.stamp != stamp:
                    group.stamp = stamp
                    found.append(group)
        return 0


@cython.final
cdef class Hub:
    """One project."""

    def __init__(self):
        self.channels = {}
        self.sources = {}
        self.waiting = deque()
        self.lagging = {}

    @property
    def behind(self):
        """How many changes have not been told to all their receivers."""
        return len(self.waiting) + (self.groups is not None)

    @property
    def has_room(self):
        """Whether more changes should be brought: a limited number and size of them may wait."""
        return len(self.waiting) < MOST_WAITING and self.weight < MOST_WEIGHT

    # channels

    def channel(self, str name not None):
        """The channel of this name, or None when nobody has subscribed to it."""
        return self.channels.get(name)

    def join(self, Peer peer not None, str name not None, bint own=False):
        """Subscribes a connection to a channel; gives the channel."""
        cdef Channel channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name)
        channel.members[peer] = own
        return channel

    def leave(self, Peer peer not None, Channel channel not None):
        """Takes it back, presence included."""
        self.absent(peer, channel)
        channel.members.pop(peer, None)
        self.tidy(channel)

    cdef int tidy(self, Channel channel) except -1:
        """Forgets a channel that nobody is in any more."""
        if not channel.members and not channel.remote and (
                self.channels.get(channel.name) is channel):
            del self.channels[channel.name]
        return 0

    def send(self, Channel channel not None, bytes frame not None, Peer sender=None):
        """Queues a frame for the members; gives for how many."""
        cdef Py_ssize_t count = channel.fan(frame, sender)
        self.delivered += count
        return count

    def appear(self, Peer peer not None, Channel channel not None, bytes key not None,
               bytes value not None):
        """Joins the presence of a channel or changes the value there. key: without quotes. value:
        JSON. The one who joins gets presence_state, the others presence_diff."""
        cdef Py_ssize_t count = 0
        before = channel.present.get(peer)
        channel.present[peer] = (key, value)
        channel.present_size += len(value) - (0 if before is None else len(before[1]))
        if before is None:
            count += peer.push(channel.snapshot())
            if len(channel.present) > 1:
                count += channel.tell(channel._diff(key, value, None), peer)
        else:
            # its own members see the new value too: several tabs of one user, one of them this
            count += channel.tell(channel._diff(key, value, before[1]), None)
        self.delivered += count
        return count

    def absent(self, Peer peer not None, Channel channel not None):
        """Leaves the presence of a channel."""
        before = channel.present.pop(peer, None)
        if before is not None:
            channel.present_size -= len(before[1])
        if before is not None and channel.present:
            self.delivered += channel.tell(channel._diff(before[0], None, before[1]), None)

    def elsewhere(self, str name not None, bytes key not None, bytes value):
        """Somebody is present in a channel on another node, or in another way; no longer when
        `value` (JSON) is None."""
        cdef Channel channel = self.channels.get(name)
        if channel is None:
            if value is None:
                return
            channel = self.channels[name] = Channel(name)
        before = channel.remote.get(key)
        if before == value:
            return
        if value is None:
            del channel.remote[key]
        else:
            channel.remote[key] = value
        channel.present_size += (0 if value is None else len(value)) - (
            0 if before is None else len(before))
        if channel.present:
            self.delivered += channel.tell(channel._diff(key, value, before), None)
        self.tidy(channel)

    # changes

    def source(self, str kind not None, str name not None, fields=None):
        """The source of this name, made when there is none."""
        found = self.sources.get((kind, name))
        if found is None:
            found = self.sources[kind, name] = Source(kind, name, fields)
        return found

    def drop(self, Source source not None):
        """Forgets a source that has no groups any more."""
        if not source.groups:
            self.sources.pop((source.kind, source.name), None)

    def put(self, change not None):
        """Takes a change to be delivered by pump(), after those before it. Gives how many wait."""
        if (change.kind, change.source) not in self.sources:
            return len(self.waiting)
        self.waiting.append(change)
        self.weight += weight(change)
        return len(self.waiting)

    def pump(self, Py_ssize_t most=2000, double now=-1.0):
        """Delivers what waits, with about `most` decisions and frames at a time; True when more is
        left, WAIT when that is for receivers who have much queued: to be tried again a little
        later. now: seconds of a clock, or negative to wait for nobody."""
        cdef Py_ssize_t budget = most
        cdef Group group
        self.now = now
        while True:
            if self.groups is None:
                if not self.waiting:
                    return False
                if self.lagging and now >= 0 and self.held_up():
                    return WAIT
                budget -= 1
                try:
                    change = self.waiting.popleft()
                    self.weight -= weight(change)
                    self.begin(change)
                except Exception as error:
                    self.groups = []
                    self.faults += 1
                    self.last_fault = error
            while self.at < len(self.groups):
                if budget <= 0:
                    return True
                group = <Group>self.groups[self.at]
                self.at += 1
                budget -= 1 + self.deliver(group)
            self.groups = None
            self.about = None
            self.change = None
            self.subject = None
            self.old = None
            self.frames = None
            if budget <= 0 and self.waiting:
                return True

    cdef bint held_up(self) except -1:
        """Whether a receiver takes what it is sent, but has more than a quarter of what it may
        have queued before it."""
        cdef Peer peer
        cdef list known
        cdef bint found = False
        for peer, known in list(self.lagging.items()):
            if not peer.open or peer.queued <= peer.wire.max_buffer >> 2:
                del self.lagging[peer]
            elif peer.queued <= <Py_ssize_t>known[0] - STEP:
                self.lagging[peer] = [peer.queued, self.now]
                found = True
            elif self.now - <double>known[1] < STALLED:
                found = True
        return found

    cdef bint begin(self, change) except -1:
        global last_stamp
        cdef int bit = <int>BITS.get(change.event, 0)
        self.changes += 1
        last_stamp += 1
        self.stamp = last_stamp
        self.bit = bit
        self.at = 0
        self.groups = []
        self.about = self.sources.get((change.kind, change.source))
        if self.about is None or not bit:
            return False
        self.change = change
        self.old = self.subject = None
        self.read = self.old_read = False
        self.unknown = 0
        if change.partial:
            self.unknown = 1 if bit == 1 else 3
        elif bit == 2 and change.old_json is None and change.old is None:
            self.unknown = 2
        self.frames = [None, None, None, None]
        if self.about.index:
            self.look()
        self.groups = self.about.candidates(self.subject, bit, self.stamp)
        return True

    cdef int look(self) except -1:
        """Reads the values that rules look at. Where nobody asks, nothing is parsed."""
        if not self.read:
            self.read = True
            if BITS[self.change.event] == 4:
                self.look_back()
                self.subject = self.old
            else:
                self.subject = self.change.record
        return 0

    cdef int look_back(self) except -1:
        if not self.old_read:
            self.old_read = True
            self.old = self.change.old
        return 0

    cdef int deliver(self, Group group) except -1:
        """Decides for one group and queues the frame for its members; gives for how many."""
        cdef PyObject *member
        cdef PyObject *number
        cdef Py_ssize_t at = 0
        cdef int count = 0
        cdef Peer peer
        cdef bytes frame
        cdef bint with_old
        if not group.members or not group.events & self.bit:
            return 0
        with_old = self.change.old_json is not None or self.change.old is not None
        if group.rule is not None or group.filter is not None:
            self.tests += 1
            try:
                self.look()
                self.look_back()
                if self.subject is None:
                    return 0
                if group.rule is not None:
                    if not group.rule.test(self.subject, self.old, self.unknown):
                        return 0
                    if with_old and self.subject is not self.old:
                        with_old = self.old is not None and group.rule.test(
                            self.old, self.old, self.unknown)
                if group.filter is not None and not group.filter.test(
                        self.subject, self.old, self.unknown):
                    return 0
            except Exception as error:  # what cannot be decided is not delivered
                self.faults += 1
                self.last_fault = error
                return 0
        try:
            frame = self.frame_for(with_old, group.whole)
        except Exception as error:  # one change that cannot be told must not hold up the others
            self.faults += 1
            self.last_fault = error
            return 0
        while PyDict_Next(group.members, &at, &member, &number):
            peer = <Peer>member
            if peer.stamp != self.stamp:
                peer.stamp = self.stamp
                count += peer.push(frame)
                if peer.queued > peer.wire.max_buffer >> 2 and self.now >= 0 and (
                        peer not in self.lagging):
                    self.lagging[peer] = [peer.queued, self.now]
        self.delivered += count
        return count

    cdef bytes frame_for(self, bint with_old, bint whole):
        """The frame of the change, encoded when it is first needed."""
        cdef int which = with_old + 2 * whole
        cdef bytes frame = self.frames[which]
        cdef Py_ssize_t longest = 0
        if frame is None:
            fields = None if whole else self.about.fields
            frame = self.write_frame(with_old, fields, -1)
            for longest in (1024, 32, 0):
                if PyBytes_GET_SIZE(frame) <= LONGEST:
                    break
                frame = self.write_frame(with_old, fields, longest)
            self.frames[which] = frame
        return frame

    cdef bytes write_frame(self, bint with_old, object fields, Py_ssize_t longest):
        """longest: bytes of JSON of a value; longer ones are left out. -1 for all values."""
        cdef list parts
        change = self.change
        parts = [b'{"type":"change","event":"', (<str>change.event).encode(), b'"', self.about.head]
        if change.record_json is not None or change.record is not None:
            parts += (b',"record":', as_json(change.record, change.record_json, fields, longest))
        if with_old:
            parts += (b',"old":', as_json(change.old, change.old_json, fields, longest))
        if change.position:
            parts += (b',"position":"', (<str>change.position).encode(), b'"')
        parts.append(b"}" if longest < 0 else b',"truncated":true}')
        return framed(parts)


cdef Py_ssize_t weight(Change change) except -1:
    cdef Py_ssize_t size = 0
    if change.record_json is not None:
        size += PyBytes_GET_SIZE(change.record_json)
    if change.old_json is not None:
        size += PyBytes_GET_SIZE(change.old_json)
    return size


cdef bytes as_json(object value, bytes text, object fields, Py_ssize_t longest):
    cdef dict kept
    if fields is None and text is not None and longest < 0:
        return text
    if fields is not None:
        value = fields.strip(value) if value is not None else {}
    if longest >= 0:
        kept = {}
        for name, one in (value or {}).items():
            if PyBytes_GET_SIZE(dumped(one)) <= longest:
                kept[name] = one
        value = kept
    return dumped(value)


cdef bytes dumped(object value):
    try:
        return orjson.dumps(value)
    except TypeError:  # numbers beyond 64 bits and halves of characters, which jsonb and json hold
        return json.dumps(value, separators=(",", ":")).encode()
