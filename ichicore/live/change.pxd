from libc.stdint cimport uint32_t, uint64_t


cdef class Change:
    cdef readonly str kind                # "postgres" or "mongo"
    cdef readonly str source              # "public.messages" or a collection's name
    cdef readonly str event
    cdef readonly bytes record_json
    cdef readonly bytes old_json
    cdef readonly bint partial            # what record and old lack may be there all the same
    cdef readonly uint64_t lsn            # where the transaction's commit is in the log
    cdef readonly uint32_t sequence       # which one of the transaction's changes, from 1
    cdef str _position
    cdef object _record
    cdef object _old
    cdef bint _parsed
    cdef bint _old_parsed
    cdef dict get_record(self)
    cdef dict get_old(self)
    cdef str get_position(self)


cdef class Publish:
    cdef readonly str channel
    cdef readonly str event
    cdef readonly bytes payload_json
    cdef readonly uint64_t lsn
    cdef readonly uint32_t sequence
    cdef str _position


# A Change of the write-ahead log, made without the argument parsing of the constructor.
cdef Change new_change(str source, str event, bytes record_json, bytes old_json,
                       uint64_t lsn, uint32_t sequence)
cdef Publish new_publish(str channel, str event, bytes payload_json, uint64_t lsn,
                         uint32_t sequence)
cdef str write_position(uint64_t lsn, uint32_t sequence)
