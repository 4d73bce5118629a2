from ichicore.rest.sql cimport Writer

cdef void write_record(Writer w, list fields, bint is_object, bint defaults, str alias) except *
