"""Constructors of the syntax nodes. Field meanings stand in ast.pxd."""
cimport cython


@cython.final
@cython.freelist(32)
cdef class JsonStep:
    def __init__(self, bint as_text, str key, bint is_index):
        self.as_text = as_text
        self.key = key
        self.is_index = is_index


@cython.final
@cython.freelist(64)
cdef class Field:
    def __init__(self, str name, tuple path=()):
        self.name = name
        self.path = path


@cython.final
@cython.freelist(64)
cdef class Filter:
    def __init__(self, Field field, str op, str value, *, bint negated=False,
                 str quantifier=None, str config=None, int slot=-1):
        self.field = field
        self.op = op
        self.value = value
        self.negated = negated
        self.quantifier = quantifier
        self.config = config
        self.slot = slot


@cython.final
@cython.freelist(16)
cdef class Logic:
    def __init__(self, str op, tuple children, bint negated=False):
        self.op = op
        self.children = children
        self.negated = negated


@cython.final
@cython.freelist(64)
cdef class SelectField:
    def __init__(self, Field field, *, str alias=None, str cast=None, str aggregate=None,
                 str aggregate_cast=None):
        self.field = field
        self.alias = alias
        self.cast = cast
        self.aggregate = aggregate
        self.aggregate_cast = aggregate_cast


@cython.final
@cython.freelist(16)
cdef class SelectRelation:
    def __init__(self, str name, tuple children, *, str alias=None, str hint=None, str join=None,
                 bint spread=False):
        self.name = name
        self.children = children
        self.alias = alias
        self.hint = hint
        self.join = join
        self.spread = spread


@cython.final
@cython.freelist(16)
cdef class OrderTerm:
    def __init__(self, Field field, str direction=None, str nulls=None, str relation=None):
        self.field = field
        self.direction = direction
        self.nulls = nulls
        self.relation = relation


@cython.final
@cython.freelist(16)
cdef class Query:
    def __init__(self, *, tuple select=(), list filters=None, list logic=None, list order=None,
                 dict limits=None, dict limit_slots=None, tuple columns=None,
                 tuple on_conflict=None, list params=None, list param_slots=None,
                 list values=None, set filter_keys=None, str canonical=""):
        self.select = select
        self.filters = [] if filters is None else filters
        self.logic = [] if logic is None else logic
        self.order = [] if order is None else order
        self.limits = {} if limits is None else limits
        self.limit_slots = {} if limit_slots is None else limit_slots
        self.columns = columns
        self.on_conflict = on_conflict
        self.params = [] if params is None else params
        self.param_slots = [] if param_slots is None else param_slots
        self.values = [] if values is None else values
        self.filter_keys = set() if filter_keys is None else filter_keys
        self.canonical = canonical
