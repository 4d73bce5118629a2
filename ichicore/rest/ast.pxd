"""Syntax of one Postgres REST request, as the query-string parser leaves it. No schema knowledge."""

cdef class JsonStep:
    cdef readonly bint as_text      # ->> when true, -> otherwise
    cdef readonly str key           # operand: object key, or the digits of an index
    cdef readonly bint is_index     # operand was a (possibly negative) integer

cdef class Field:
    cdef readonly str name
    cdef readonly tuple path        # of JsonStep; () for a plain column

cdef class Filter:
    cdef readonly Field field
    cdef readonly bint negated
    cdef readonly str op            # operator as in the URL: eq, neq, ..., in, is, fts, isdistinct
    cdef readonly str quantifier    # 'any', 'all' or None
    cdef readonly str config        # text-search configuration or None
    cdef readonly str value         # final parameter text (see values in Query); for `is` the word
    cdef readonly int slot          # index into Query.values, -1 when the value is part of the shape

cdef class Logic:
    cdef readonly bint negated
    cdef readonly str op            # 'and' or 'or'
    cdef readonly tuple children    # of Filter and Logic

cdef class SelectField:
    cdef readonly Field field       # field.name is '*' for all columns
    cdef readonly str aggregate     # sum avg min max count, or None; count() alone has field None
    cdef readonly str aggregate_cast
    cdef readonly str cast
    cdef readonly str alias

cdef class SelectRelation:
    cdef readonly str name
    cdef readonly str alias
    cdef readonly str hint
    cdef readonly str join          # 'inner', 'left' or None
    cdef readonly bint spread
    cdef readonly tuple children    # of SelectField and SelectRelation; () for an empty embed

cdef class OrderTerm:
    cdef readonly Field field
    cdef readonly str relation      # related order `rel(col)`: the embed's name, else None
    cdef readonly str direction     # 'asc', 'desc' or None
    cdef readonly str nulls         # 'nullsfirst', 'nullslast' or None

cdef class Query:
    cdef readonly tuple select      # of SelectField / SelectRelation; default is one '*' field
    cdef readonly list filters      # of (embed_path: tuple[str, ...], Filter)
    cdef readonly list logic        # of (embed_path, Logic)
    cdef readonly list order        # of (embed_path, tuple[OrderTerm, ...])
    cdef readonly dict limits       # embed_path -> (limit | None, offset | None) as ints
    cdef readonly dict limit_slots  # embed_path -> (limit slot | -1, offset slot | -1)
    cdef readonly tuple columns     # of str, or None when not given
    cdef readonly tuple on_conflict # of str, or None
    cdef readonly list params       # rpc reads: (name, value) of the pairs that are arguments,
                                    # that is, whose value is no operator expression
    cdef readonly list param_slots  # index into values of each of params
    cdef readonly list values       # str: parameter texts in order of appearance in the URL
    cdef readonly set filter_keys   # keys of the filters and arguments, whole, as written
    cdef readonly str canonical     # sorted, re-encoded query string for Content-Location
