"""The part of libpq that the executor drives, and the buffer and JSON writers of csrc/."""

from libc.stdint cimport uint32_t, uint64_t

from ichicore.buffer cimport jb_buf


cdef extern from "libpq-fe.h" nogil:
    ctypedef struct PGconn:
        pass
    ctypedef struct PGresult:
        pass
    ctypedef struct PGcancel:
        pass
    ctypedef unsigned int Oid

    ctypedef enum ExecStatusType:
        PGRES_EMPTY_QUERY
        PGRES_COMMAND_OK
        PGRES_TUPLES_OK
        PGRES_COPY_OUT
        PGRES_COPY_IN
        PGRES_BAD_RESPONSE
        PGRES_NONFATAL_ERROR
        PGRES_FATAL_ERROR
        PGRES_COPY_BOTH
        PGRES_SINGLE_TUPLE
        PGRES_PIPELINE_SYNC
        PGRES_PIPELINE_ABORTED

    ctypedef enum ConnStatusType:
        CONNECTION_OK
        CONNECTION_BAD

    ctypedef enum PGTransactionStatusType:
        PQTRANS_IDLE
        PQTRANS_ACTIVE
        PQTRANS_INTRANS
        PQTRANS_INERROR
        PQTRANS_UNKNOWN

    int PG_DIAG_SEVERITY_NONLOCALIZED
    int PG_DIAG_SQLSTATE
    int PG_DIAG_MESSAGE_PRIMARY
    int PG_DIAG_MESSAGE_DETAIL
    int PG_DIAG_MESSAGE_HINT
    int PG_DIAG_CONTEXT
    int PG_DIAG_SOURCE_FUNCTION

    int PQlibVersion()
    ConnStatusType PQstatus(const PGconn *conn)
    PGTransactionStatusType PQtransactionStatus(const PGconn *conn)
    const char *PQparameterStatus(const PGconn *conn, const char *name)
    int PQserverVersion(const PGconn *conn)
    int PQbackendPID(const PGconn *conn)
    int PQsocket(const PGconn *conn)
    char *PQerrorMessage(const PGconn *conn)
    int PQsetnonblocking(PGconn *conn, int arg)
    int PQenterPipelineMode(PGconn *conn)
    int PQsendFlushRequest(PGconn *conn)
    int PQflush(PGconn *conn)
    int PQconsumeInput(PGconn *conn)
    int PQisBusy(PGconn *conn)
    PGresult *PQgetResult(PGconn *conn)
    void PQclear(PGresult *res)

    int PQsendPrepare(PGconn *conn, const char *name, const char *query, int n,
                      const Oid *types)
    int PQsendDescribePrepared(PGconn *conn, const char *name)
    int PQsendQueryPrepared(PGconn *conn, const char *name, int n, const char *const *values,
                            const int *lengths, const int *formats, int result_format)
    int PQsendQueryParams(PGconn *conn, const char *command, int n, const Oid *types,
                          const char *const *values, const int *lengths, const int *formats,
                          int result_format)

    ExecStatusType PQresultStatus(const PGresult *res)
    char *PQresultErrorField(const PGresult *res, int code)
    int PQntuples(const PGresult *res)
    int PQnfields(const PGresult *res)
    char *PQfname(const PGresult *res, int column)
    Oid PQftype(const PGresult *res, int column)
    char *PQcmdStatus(PGresult *res)
    char *PQcmdTuples(PGresult *res)
    char *PQgetvalue(const PGresult *res, int row, int column)
    int PQgetlength(const PGresult *res, int row, int column)
    int PQgetisnull(const PGresult *res, int row, int column)

    PGcancel *PQgetCancel(PGconn *conn)
    void PQfreeCancel(PGcancel *cancel)
    int PQcancel(PGcancel *cancel, char *error, int size)


cdef extern from "libpq_optional.h" nogil:
    int ICHI_TUPLES_CHUNK
    int ichi_has_chunks()
    int ichi_sync(PGconn *conn)
    int ichi_incremental(PGconn *conn, int chunk)


cdef extern from "pgjson.h" nogil:
    int PJ_OK
    int PJ_NO_MEMORY
    int PJ_MALFORMED
    unsigned PJ_ZONE
    unsigned PJ_INTERVAL
    unsigned PJ_BYTEA
    unsigned PJ_FLOAT
    unsigned PJ_DOCUMENT
    int PJ_POW10_MIN
    int PJ_POW10_MAX
    ctypedef struct pj_codec:
        int (*fn)(jb_buf *, const pj_codec *, const unsigned char *, int) noexcept nogil
        const pj_codec *element
        unsigned needs
    ctypedef struct pj_column:
        const char *key
        int key_len
        const pj_codec *codec
    const pj_codec *pj_builtin(uint32_t oid)
    const pj_codec *pj_text()
    pj_codec *pj_array_of(const pj_codec *element)
    int PJ_KEY_PAD
    int pj_read_in_place(int wanted)
    int pj_row(jb_buf *out, const PGresult *res, int row, const pj_column *columns, int ncolumns,
               int strip)
    int pj_string(jb_buf *out, const unsigned char *p, size_t len)
    void pj_set_pow10(int exponent, uint64_t high, uint64_t low)
