/* The values of a result where libpq keeps them. Its functions for one value check their arguments
 * each time, which for many small values takes as long as writing them. */
#ifndef ICHIBASE_PGVALUES_H
#define ICHIBASE_PGVALUES_H

#include <libpq-fe.h>

typedef struct {
    int len; /* -1: SQL NULL */
    const unsigned char *p;
} pg_value;

/* How results begin in libpq 10 to 18. */
typedef struct {
    int rows, columns;
    void *names;
    const pg_value *const *tuples;
} pg_rows;

/* Whether results of the library that is loaded are like that: tried on one made for it. */
static inline int pg_rows_known(void)
{
    PGresAttDesc columns[3] = {{.name = "a"}, {.name = "b"}, {.name = "c"}};
    const pg_rows *found;
    PGresult *res;
    int known, row, column;
    if (PQlibVersion() < 100000 || PQlibVersion() >= 190000)
        return 0;
    res = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    known = res != NULL && PQsetResultAttrs(res, 3, columns);
    for (row = 0; known && row < 2; row++)
        known = PQsetvalue(res, row, 0, (char *)"two", 3) && PQsetvalue(res, row, 1, NULL, -1)
                && PQsetvalue(res, row, 2, (char *)"", 0);
    found = (const pg_rows *)res;
    known = known && found->rows == 2 && found->columns == 3;
    for (row = 0; known && row < 2; row++) {
        for (column = 0; known && column < 3; column++) {
            const pg_value *value = &found->tuples[row][column];
            int len = PQgetisnull(res, row, column) ? -1 : PQgetlength(res, row, column);
            known = value->len == len
                    && value->p == (const unsigned char *)PQgetvalue(res, row, column);
        }
    }
    PQclear(res);
    return known;
}

static inline const pg_value *pg_values(const PGresult *res, int row)
{
    return ((const pg_rows *)res)->tuples[row];
}

#endif
