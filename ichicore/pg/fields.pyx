# distutils: libraries = pq
"""Texts, numbers and errors of a result of libpq."""
from libc.string cimport strcmp, strlen

from ichicore.pg.libpq cimport (
    PG_DIAG_CONTEXT, PG_DIAG_MESSAGE_DETAIL, PG_DIAG_MESSAGE_HINT, PG_DIAG_MESSAGE_PRIMARY,
    PG_DIAG_SEVERITY_NONLOCALIZED, PG_DIAG_SOURCE_FUNCTION, PG_DIAG_SQLSTATE, PGresult,
    PQresultErrorField,
)

from ichicore.pg.errors import PgError


cdef str text_or_none(const char *p):
    return None if p is NULL else p[:strlen(p)].decode("utf-8", "replace")


cdef object error_of(const PGresult *res, int index):
    """The server's error about statement `index` of a group. None when libpq itself made it: the
    connection is gone."""
    cdef str message = text_or_none(PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY))
    if message is None:
        return None
    return PgError(
        text_or_none(PQresultErrorField(res, PG_DIAG_SQLSTATE)) or "XX000",
        text_or_none(PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED)) or "ERROR",
        message,
        text_or_none(PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL)),
        text_or_none(PQresultErrorField(res, PG_DIAG_MESSAGE_HINT)),
        text_or_none(PQresultErrorField(res, PG_DIAG_CONTEXT)),
        index,
    )


cdef bint is_stale(object error, const PGresult *res) except -1:
    """Whether a prepared statement failed because its tables have changed or it is gone."""
    cdef const char *function = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION)
    return error.sqlstate == "26000" or (
        error.sqlstate == "0A000" and function is not NULL
        and strcmp(function, b"RevalidateCachedQuery") == 0)


cdef Py_ssize_t number(const char *digits) noexcept:
    """The count of a command tag, -1 when it has none."""
    cdef Py_ssize_t value = 0
    if digits[0] == 0:
        return -1
    while digits[0]:
        value = value * 10 + (digits[0] - 48)
        digits += 1
    return value
