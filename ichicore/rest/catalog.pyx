"""What the compiler knows of a database: tables, relationships, functions, media handlers.

Plain immutable records. The queries that fill them are in server/postgres; nothing here reads a
database. A `Catalog` never changes: a reload makes a new one with a higher version.
"""

cimport cython


@cython.final
cdef class Column:
    def __init__(
        self, *, str name not None, str type not None, str nominal_type not None, int type_oid,
        bint nullable=True, str default=None, max_length=None, tuple enum=(),
        str description=None,
    ):
        self.name = name
        self.type = type
        self.nominal_type = nominal_type
        self.type_oid = type_oid
        self.nullable = nullable
        self.default = default
        self.max_length = max_length
        self.enum = enum
        self.description = description

    def __repr__(self):
        return f"Column({self.name!r}, {self.nominal_type!r})"


@cython.final
cdef class Table:
    def __init__(
        self, *, str schema not None, str name not None, dict columns not None, str kind="r",
        str description=None, bint insertable=True, bint updatable=True, bint deletable=True,
        tuple primary_key=(), bint has_triggers=False, bint sets_on_read=False,
        bint row_security=False,
    ):
        self.schema = schema
        self.name = name
        self.description = description
        self.kind = kind
        self.insertable = insertable
        self.updatable = updatable
        self.deletable = deletable
        self.primary_key = primary_key
        self.columns = columns
        self.has_triggers = has_triggers
        self.sets_on_read = sets_on_read
        self.row_security = row_security

    def __repr__(self):
        return f"Table({self.schema!r}, {self.name!r})"


@cython.final
cdef class Junction:
    def __init__(
        self, *, tuple table not None, str constraint1 not None, str constraint2 not None,
        tuple source_columns not None, tuple target_columns not None,
    ):
        self.table = table
        self.constraint1 = constraint1
        self.constraint2 = constraint2
        self.source_columns = source_columns
        self.target_columns = target_columns


@cython.final
cdef class Relationship:
    def __init__(
        self, *, tuple table not None, tuple foreign not None, str kind not None,
        str constraint=None, tuple columns=(), Junction junction=None, to_one=None,
        bint is_parent=False, bint is_self=False, bint table_is_view=False,
        bint foreign_is_view=False, tuple function=None,
    ):
        self.table = table
        self.foreign = foreign
        self.kind = kind
        self.constraint = constraint
        self.columns = columns
        self.junction = junction
        self.to_one = kind in ("m2o", "o2o") if to_one is None else to_one
        self.is_parent = is_parent
        self.is_self = is_self
        self.table_is_view = table_is_view
        self.foreign_is_view = foreign_is_view
        self.function = function

    def __repr__(self):
        name = self.constraint or self.function or (self.junction and self.junction.table)
        return f"Relationship({self.kind} {self.table} -> {self.foreign} by {name})"


@cython.final
cdef class Param:
    def __init__(
        self, *, str name not None, str type not None, str type_max_length=None,
        bint required=True, bint variadic=False,
    ):
        self.name = name
        self.type = type
        self.type_max_length = type if type_max_length is None else type_max_length
        self.required = required
        self.variadic = variadic

    def __repr__(self):
        return f"Param({self.name!r}, {self.type!r})"


@cython.final
cdef class Routine:
    def __init__(
        self, *, str schema not None, str name not None, tuple params=(),
        tuple return_type=("pg_catalog", "text"), bint returns_set=False,
        bint returns_composite=False, bint returns_void=False, bint return_is_alias=False,
        str volatility="volatile", bint has_variadic=False, str isolation=None,
        tuple settings=(), rows=0.0, str description=None,
        unsigned int oid=0,
    ):
        self.schema = schema
        self.name = name
        self.description = description
        self.params = params
        self.returns_set = returns_set
        self.returns_composite = returns_composite
        self.returns_void = returns_void
        self.return_type = return_type
        self.return_is_alias = return_is_alias
        self.volatility = volatility
        self.has_variadic = has_variadic
        self.isolation = isolation
        self.settings = settings
        self.rows = rows
        self.oid = oid

    def __repr__(self):
        return f"Routine({self.schema!r}, {self.name!r}, {self.params!r})"


@cython.final
cdef class MediaHandler:
    def __init__(
        self, *, str media_type not None, str kind not None, tuple function=None,
        tuple target=None, str domain=None,
    ):
        self.media_type = media_type
        self.kind = kind
        self.function = function
        self.target = target
        self.domain = domain

    def __repr__(self):
        return f"MediaHandler({self.media_type!r}, {self.kind}, {self.function}, {self.target})"


cdef bint _leads_to(Relationship rel, str target, str hint):
    """Whether `target`, narrowed by `hint`, names this relationship.

    A target is a table, or (without a hint) the foreign key or its single column on this side; a
    hint is the foreign key, its single column on either side, or the junction table. A foreign key
    to its own table gives two relationships: the table's name means the referencing rows, the
    column's name the referenced one.
    """
    cdef tuple pair
    cdef str column = None
    cdef str foreign_column = None
    if rel.kind == "computed":
        return target == <str>rel.function[1]
    if len(rel.columns) == 1:
        pair = <tuple>rel.columns[0]
        column = <str>pair[0]
        foreign_column = <str>pair[1]
    if rel.is_self:
        if hint is None:
            if rel.kind == "o2m":
                return target == <str>rel.foreign[1]
            return rel.kind == "m2o" and target == column
        return target == <str>rel.foreign[1] and rel.kind == "o2m" and hint == foreign_column
    if hint is None:
        if target == <str>rel.foreign[1]:
            return True
        if rel.foreign_is_view:
            return False
        return target == rel.constraint or target == column
    if target != <str>rel.foreign[1]:
        return False
    if rel.kind == "m2m":
        return hint == <str>rel.junction.table[1]
    return hint == rel.constraint or hint == column or hint == foreign_column


@cython.final
cdef class Catalog:
    def __init__(
        self, *, int version=1, int server_version=0, tuple schemas=("public",), dict tables=None,
        dict relationships=None, dict routines=None, dict representations=None,
        dict media_handlers=None, frozenset timezones=frozenset(), dict schema_descriptions=None,
    ):
        self.version = version
        self.server_version = server_version
        self.schemas = schemas
        self.tables = {} if tables is None else tables
        self.relationships = {} if relationships is None else relationships
        self.routines = {} if routines is None else routines
        self.representations = {} if representations is None else representations
        self.media_handlers = {} if media_handlers is None else media_handlers
        self.timezones = timezones
        self.schema_descriptions = {} if schema_descriptions is None else schema_descriptions
        self.fuzzy = {}

    cpdef Table table(self, str schema, str name):
        """The exposed table or view of that name, or None."""
        return <Table>self.tables.get((schema, name))

    cpdef tuple functions(self, str schema, str name):
        """All overloads of an exposed function, fewest parameters first; () when there is none."""
        found = self.routines.get((schema, name))
        return () if found is None else <tuple>found

    cpdef tuple relationships_from(self, str schema, str name, str foreign_schema):
        """Every relationship from one table into one schema, in a stable order."""
        found = self.relationships.get(((schema, name), foreign_schema))
        return () if found is None else <tuple>found

    cpdef tuple candidates(self, str schema, str origin, str target, str hint):
        """The relationships that `origin?select=target!hint(...)` may mean: none, one or several."""
        cdef list found = []
        cdef Relationship rel
        for rel in self.relationships_from(schema, origin, schema):
            if _leads_to(rel, target, hint):
                found.append(rel)
        return tuple(found)

    cpdef str representation(self, str source, str target):
        """SQL name of the function that casts between two types, or None."""
        return self.representations.get((source, target))

    cpdef MediaHandler handler(self, tuple target, str media_type):
        """The handler of a media type for one table or function; None target: for all of them."""
        return <MediaHandler>self.media_handlers.get((target, media_type))
