"""What the executor uses of the ring of commands."""

cdef enum Kind:
    CMD_PREPARE
    CMD_DESCRIBE
    CMD_TYPES
    CMD_EXECUTE
    CMD_SYNC

cdef struct Command:
    int kind
    int index                       # of the statement in its group
    void *group                     # borrowed from Executor._groups; NULL for our own commands
    void *prepared                  # borrowed from Group._prepared


cdef class Ring:
    cdef Command *commands
    cdef unsigned int size          # a power of two
    cdef unsigned int first
    cdef unsigned int end
    cdef bint empty(self) noexcept
    cdef Command *head(self) noexcept
    cdef void pop(self) noexcept
    cdef void clear(self) noexcept
    cdef int push(self, int kind, int index, object group, object prepared) except -1
    cdef int grow(self) except -1
