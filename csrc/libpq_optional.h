/* Functions of newer libpq versions, used when the library found at run time has them: built
 * against an old header, the program still gains from a new library. */
#ifndef ICHIBASE_LIBPQ_OPTIONAL_H
#define ICHIBASE_LIBPQ_OPTIONAL_H

#include <libpq-fe.h>

#pragma weak PQsendPipelineSync
extern int PQsendPipelineSync(PGconn *conn); /* 17: queues a sync without flushing */
#pragma weak PQsetChunkedRowsMode
extern int PQsetChunkedRowsMode(PGconn *conn, int chunk_size); /* 17 */

enum { ICHI_TUPLES_CHUNK = 12 }; /* PGRES_TUPLES_CHUNK */

static inline int ichi_has_chunks(void)
{
    return PQsetChunkedRowsMode != NULL;
}

static inline int ichi_sync(PGconn *conn)
{
    return PQsendPipelineSync != NULL ? PQsendPipelineSync(conn) : PQpipelineSync(conn);
}

/* Rows as they arrive, `chunk` at a time where the library can, else one by one. */
static inline int ichi_incremental(PGconn *conn, int chunk)
{
    return PQsetChunkedRowsMode != NULL ? PQsetChunkedRowsMode(conn, chunk)
                                        : PQsetSingleRowMode(conn);
}

#endif
