"""Statements whose single row holds the whole response body, for media types made in Postgres."""
from ichicore.rest.ident cimport qualify, quote

cdef str ROW = "ichi_row"
cdef str QUOTES = "''"


cpdef str body_of(str kind, object handler, bint single, str scalar, bint strip):
    """SQL of the body over the rows "ichi_row".

    kind: json, csv, geojson or custom. handler: catalog MediaHandler for custom. single: the first
    row alone, not an array. scalar: column that is the row's whole value, or None. strip: leave
    null members out.
    """
    cdef str value = ROW if scalar is None else ROW + "." + quote(scalar)
    cdef str json
    if kind == "csv":
        return (
            "coalesce((SELECT string_agg(key, ',') FROM json_object_keys((SELECT row_to_json(first)"
            " FROM ichi_rows AS first LIMIT 1)) AS key), '') || E'\\n' || coalesce(string_agg("
            "substring(ichi_row::text, 2, length(ichi_row::text) - 2), E'\\n'), '')"
        )
    if kind == "geojson":
        return (
            "json_build_object('type', 'FeatureCollection', 'features', "
            "coalesce(json_agg(ST_AsGeoJSON(ichi_row)::json), '[]'))"
        )
    if kind == "custom":
        if handler.kind == "function":
            return value + "::" + handler.domain
        if scalar is None and handler.target is not None:
            value = ROW + "::" + qualify(handler.target[0], handler.target[1])
        return qualify(handler.function[0], handler.function[1]) + "(" + value + ")"
    json = f"json_agg({value})"
    if single:
        json += "->0"
    if strip:
        json = f"json_strip_nulls({json})"
    return f"coalesce({json}, '{'null' if single else '[]'}')"


cpdef str wrap(str prefix, str rows, str body, str total, bint one_row):
    """SELECT body, number of rows, oid of the body's base type, total; over a statement's rows.

    prefix: a WITH query that `rows` reads from ("name AS (...)"), since Postgres takes changes of
    data at the top level only; or None. rows: a SELECT, or a change with RETURNING. total: SQL of
    the count without limit, or "null". one_row: the result is one row, so nothing aggregates.
    """
    return (
        f"WITH {'' if prefix is None else prefix + ', '}ichi_rows AS ({rows}) "
        "SELECT ichi_body, ichi_count, "
        "(SELECT coalesce(nullif(typbasetype, 0), oid) FROM pg_catalog.pg_type "
        f"WHERE oid = pg_typeof(ichi_body)::oid), {total} FROM (SELECT {body} AS ichi_body, "
        f"{'1' if one_row else 'count(*)'} AS ichi_count FROM ichi_rows AS {ROW}) AS ichi_result"
    )


cpdef str explain(str prefix, str rows, str body, tuple options, bint one_row, bint write=False,
                  bint counted=False):
    """EXPLAIN of a response made in one statement. prefix, rows, one_row: as for `wrap`.

    It has the columns of PostgREST's statement in their order, which readers of plans look for.
    write: the rows were changed; counted: with an upsert's number of inserted ones.
    """
    inserted = "nullif(current_setting('ichibase.inserted', true), '')::int" if counted else "''"
    return (
        f"EXPLAIN ({', '.join(options)}) "
        f"{'' if prefix is None else 'WITH ' + prefix + ' '}"
        f"SELECT {QUOTES if write else 'null::bigint'} AS total_result_set, "
        f"{'1' if one_row else 'count(ichi_row)'} AS page_total, "
        f"{'array[]::text[] AS header, ' if write else ''}{body} AS body, "
        "nullif(current_setting('response.headers', true), '') AS response_headers, "
        "nullif(current_setting('response.status', true), '') AS response_status, "
        f"{inserted} AS response_inserted FROM ({rows}) AS ichi_row"
    )


cpdef str with_query(str prefix, str sql):
    """A statement behind its WITH query, when it has one."""
    return sql if prefix is None else f"WITH {prefix} {sql}"


cpdef str count_rows(str prefix, str sql):
    """The number of rows a statement gives."""
    return with_query(prefix, f"SELECT count(*) FROM ({sql}) AS ichi_row")
