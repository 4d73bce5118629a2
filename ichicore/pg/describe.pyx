# distutils: libraries = pq
"""How the rows of a statement are to be read: from the columns that the server describes."""
from ichicore.pg.fields cimport text_or_none
from ichicore.pg.group cimport Described, Shared, Statement
from ichicore.pg.libpq cimport (
    PJ_DOCUMENT, PGresult, PQfname, PQftype, PQgetisnull, PQgetvalue, PQnfields, PQntuples,
)
from ichicore.rest.rows cimport RowFormat, TypeTable

from ichicore.pg.wrap import wrap

# What is asked of types that are not known: oid, kind, and the base type of a domain that is an
# array's element.
cdef bytes TYPE_QUERY = b"""\
select t.oid,
       case
         when exists (select from pg_catalog.pg_cast c
                      where c.castsource = t.oid and c.casttarget = 114) then 'x'
         when t.typtype = 'e' then 'e'
         when e.typtype = 'e' and not exists (select from pg_catalog.pg_cast c
                      where c.castsource = e.oid and c.casttarget = 114) then 'E'
         when e.typtype = 'd' then 'd'
         else 'x'
       end,
       case when e.typtype = 'd' then (
         with recursive base(oid, typtype, typbasetype) as (
           select e.oid, e.typtype, e.typbasetype
           union all
           select b.oid, b.typtype, b.typbasetype
           from base join pg_catalog.pg_type b on b.oid = base.typbasetype
           where base.typtype = 'd')
         select base.oid from base where base.typtype <> 'd') end
from pg_catalog.pg_type t
left join pg_catalog.pg_type e
  on e.oid = t.typelem and t.typlen = -1 and t.typcategory = 'A'
where t.oid = any ($1::pg_catalog.oid[])"""


cdef list columns_of(const PGresult *res):
    """(name, type oid) of each column."""
    cdef int i
    return [(text_or_none(PQfname(res, i)), PQftype(res, i)) for i in range(PQnfields(res))]


cdef bytes unknown_types(TypeTable types, list columns):
    """The parameter of TYPE_QUERY for the types that have to be learned, or None."""
    cdef set unknown = {oid for _, oid in columns if not types.knows(oid)}
    return b"{" + b",".join([b"%d" % oid for oid in unknown]) + b"}" if unknown else None


cdef int learn_types(TypeTable types, list columns, const PGresult *res) except -1:
    """Takes in an answer to TYPE_QUERY. Types that it does not tell of are written by Postgres."""
    cdef int row
    for row in range(PQntuples(res)):
        oid = int(PQgetvalue(res, row, 0))
        kind = PQgetvalue(res, row, 1)[0]
        if kind == b'e':
            types.add_text(oid)
        elif kind == b'E':
            types.add_array(oid, 25)
        elif kind == b'd' and not PQgetisnull(res, row, 2):
            types.add_array(oid, int(PQgetvalue(res, row, 2)))
        else:
            types.add_foreign(oid)
    for _, oid in columns:
        if not types.knows(oid):
            types.add_foreign(oid)
    return 0


cdef Described describe(Shared shared, Statement statement, list columns, unsigned int defaults):
    """The description of a statement all of whose column types are known; `shared` keeps it.
    defaults: the settings that have their default where the statement runs."""
    cdef Described described = Described()
    cdef TypeTable types = shared.types
    cdef list foreign = []
    cdef list oids = []
    for _, oid in columns:
        needs = types.needs(oid)
        native = needs >= 0 and not needs & ~defaults and not (
            statement.strip_nulls and (needs & PJ_DOCUMENT))
        foreign.append(not native)
        oids.append(oid if native else 114)
    names = tuple([name for name, _ in columns])
    described.sql = statement.sql
    described.text = statement._text
    described.wrapped = True in foreign
    if described.wrapped:
        described.text = wrap(statement.sql, names, foreign, statement.strip_nulls).encode()
    described.format = RowFormat(names, tuple(oids), types, statement.strip_nulls)
    if len(shared.described) >= shared.limit:
        for old in list(shared.described)[:shared.limit // 8]:
            del shared.described[old]
    shared.described[(statement.sql, (defaults << 1) | statement.strip_nulls)] = described
    return described
