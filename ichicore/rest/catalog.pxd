"""What the compiler knows of a database: tables, relationships, functions, media handlers."""

cdef class Column:
    cdef readonly str name
    cdef readonly str type          # format_type() text of the declared type ("character varying")
    cdef readonly str nominal_type  # same, but the domain's own name when it is a domain
    cdef readonly int type_oid      # pg_type oid of the declared type (domain's oid for a domain)
    cdef readonly bint nullable
    cdef readonly str default       # expression text or None
    cdef readonly object max_length # int or None
    cdef readonly tuple enum        # labels, () when not an enum
    cdef readonly str description

cdef class Table:
    cdef readonly str schema
    cdef readonly str name
    cdef readonly str description
    cdef readonly str kind          # pg_class.relkind: r v m f p
    cdef readonly bint insertable
    cdef readonly bint updatable
    cdef readonly bint deletable
    cdef readonly tuple primary_key # column names, () when none (views: from their base tables)
    cdef readonly dict columns      # name -> Column in attnum order
    cdef readonly bint has_triggers # writing may run code (a trigger, rule, or a default or check
                                    # that sets something), here or behind a view or cascade
    cdef readonly bint sets_on_read # a policy may set something
    cdef readonly bint row_security

cdef class Junction:
    cdef readonly tuple table       # (schema, name)
    cdef readonly str constraint1
    cdef readonly str constraint2
    cdef readonly tuple source_columns  # ((source column, junction column), ...)
    cdef readonly tuple target_columns  # ((target column, junction column), ...)

cdef class Relationship:
    cdef readonly tuple table       # (schema, name) it starts from
    cdef readonly tuple foreign     # (schema, name) it leads to
    cdef readonly str kind          # 'm2o' 'o2m' 'o2o' 'm2m' 'computed'
    cdef readonly str constraint    # foreign-key name; None for computed and m2m
    cdef readonly tuple columns     # ((column, foreign column), ...); () for m2m and computed
    cdef readonly Junction junction # m2m only
    cdef readonly bint to_one       # m2o, o2o, and computed ones that give one row
    cdef readonly bint is_parent    # o2o: true on the referenced side
    cdef readonly bint is_self
    cdef readonly bint table_is_view
    cdef readonly bint foreign_is_view
    cdef readonly tuple function    # computed only: (schema, name)

cdef class Param:
    cdef readonly str name          # '' for an unnamed one
    cdef readonly str type
    cdef readonly str type_max_length  # type with its length modifier, for casts in signatures
    cdef readonly bint required
    cdef readonly bint variadic

cdef class Routine:
    cdef readonly str schema
    cdef readonly str name
    cdef readonly str description
    cdef readonly tuple params      # of Param, input ones
    cdef readonly bint returns_set
    cdef readonly bint returns_composite   # table type, composite, or OUT/TABLE columns
    cdef readonly bint returns_void
    cdef readonly tuple return_type        # (schema, name) of the type or table; for records ('pg_catalog','record')
    cdef readonly bint return_is_alias     # the return type is a domain over a composite type
    cdef readonly str volatility    # 'immutable' 'stable' 'volatile'
    cdef readonly bint has_variadic
    cdef readonly str isolation     # default_transaction_isolation set on the function, or None
    cdef readonly tuple settings    # ((name, value), ...) hoisted function settings
    cdef readonly object rows       # prorows as float, for planning choices
    cdef readonly unsigned int oid

cdef class MediaHandler:
    cdef readonly str media_type    # resolved media type text, '*/*' when the handler says any
    cdef readonly str kind          # 'builtin' 'aggregate' 'function'
    cdef readonly tuple function    # (schema, name) of the aggregate / function, None when builtin
    cdef readonly tuple target      # (schema, name) of the relation or routine it serves, None: any
    cdef readonly str domain        # quoted domain type used as the result type, None when builtin

cdef class Catalog:
    cdef readonly int version       # grows with every reload; part of plan-cache keys
    cdef readonly int server_version    # server_version_num
    cdef readonly tuple schemas     # exposed schemas in order of preference
    cdef readonly dict tables       # (schema, name) -> Table
    cdef readonly dict relationships  # ((schema, name), foreign schema) -> tuple[Relationship]
    cdef readonly dict routines     # (schema, name) -> tuple[Routine]
    cdef readonly dict representations  # (source type, target type) -> function text (schema.name quoted)
    cdef readonly dict media_handlers   # (target tuple | None, media type) -> MediaHandler
    cdef readonly frozenset timezones   # lower-case names
    cdef readonly dict schema_descriptions  # schema -> comment
    cdef readonly object fuzzy      # memo of the hints module: schema -> prepared name index

    cpdef Table table(self, str schema, str name)
    cpdef tuple functions(self, str schema, str name)
    cpdef tuple relationships_from(self, str schema, str name, str foreign_schema)
    cpdef tuple candidates(self, str schema, str origin, str target, str hint)
    cpdef str representation(self, str source, str target)
    cpdef MediaHandler handler(self, tuple target, str media_type)
