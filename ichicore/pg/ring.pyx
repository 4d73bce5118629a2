"""The commands that were sent on a connection and have not been answered, in their order."""
cimport cython
from libc.stdlib cimport free, malloc


@cython.final
cdef class Ring:
    """A queue that grows. A pointer to a command is good until the next push."""

    def __cinit__(self):
        self.size = 256
        self.commands = <Command *> malloc(self.size * sizeof(Command))
        if self.commands is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.commands)

    cdef bint empty(self) noexcept:
        return self.first == self.end

    cdef Command *head(self) noexcept:
        return &self.commands[self.first & (self.size - 1)]

    cdef void pop(self) noexcept:
        self.first += 1

    cdef void clear(self) noexcept:
        self.first = self.end

    cdef int push(self, int kind, int index, object group, object prepared) except -1:
        """group and prepared, each an object or None, are kept alive by others."""
        cdef Command *command
        if self.end - self.first == self.size:
            self.grow()
        command = &self.commands[self.end & (self.size - 1)]
        command.kind = kind
        command.index = index
        command.group = <void *> group if group is not None else NULL
        command.prepared = <void *> prepared if prepared is not None else NULL
        self.end += 1
        return 0

    cdef int grow(self) except -1:
        cdef Command *larger = <Command *> malloc(2 * self.size * sizeof(Command))
        cdef unsigned int i
        if larger is NULL:
            raise MemoryError
        for i in range(self.size):
            larger[i] = self.commands[(self.first + i) & (self.size - 1)]
        free(self.commands)
        self.commands = larger
        self.first = 0
        self.end = self.size
        self.size *= 2
        return 0
